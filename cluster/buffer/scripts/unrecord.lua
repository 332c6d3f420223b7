-- The record of a step that is not trained cannot be read: it and those behind it are forgotten, and their groups are
-- ready again. ARGV: policy, step
local step = tonumber(ARGV[2])
if step < state('version') or step >= state('next_step') then return {'ok'} end
for _, id in ipairs(call('ZRANGEBYSCORE', own .. 'assembled', step, '+inf')) do
  call('ZREM', own .. 'assembled', id)
  settle(id, 'live')
  make_ready(id)
end
for _, recorded in ipairs(call('ZRANGEBYSCORE', own .. 'records', step, '+inf')) do
  call('UNLINK', own .. 'record:' .. recorded)
  call('ZREM', own .. 'records', recorded)
end
call('HSET', own .. 'state', 'next_step', step)
return {'ok'}
