-- The record of a step that is not trained cannot be read: it and those behind it are forgotten, and their groups are
-- ready again. ARGV: policy, step
local step = tonumber(ARGV[2])
if step < state('version') or step >= state('next_cut') then return {'ok'} end
for _, id in ipairs(call('ZRANGEBYSCORE', own .. 'cut', step, '+inf')) do
  call('ZREM', own .. 'cut', id)
  settle(id, 'live')
  make_ready(id)
end
for _, cut in ipairs(call('ZRANGEBYSCORE', own .. 'records', step, '+inf')) do
  call('UNLINK', own .. 'record:' .. cut)
  call('ZREM', own .. 'records', cut)
end
call('HSET', own .. 'state', 'next_cut', step)
return {'ok'}
