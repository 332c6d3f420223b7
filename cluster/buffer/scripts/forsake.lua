-- A worker is known to be dead (all are, if it is ''): nobody need wait for its leases. ARGV: policy, worker
local dead = ARGV[2]
local ids = call('ZREVRANGE', own .. 'open', 0, -1) -- backwards: the oldest ends up first in the queue
for _, id in ipairs(ids) do
  local at, worker = unpack(call('HMGET', group_key(id), 'state', 'worker'))
  if at == 'leased' and (dead == '' or worker == dead) then drop(id, 'worker_died', true) end
end
for _, id in ipairs(call('ZRANGEBYSCORE', run .. 'unscored', '(' .. now, '+inf')) do
  if dead == '' or call('HGET', group_key(id), 'scorer') == dead then
    call('ZADD', run .. 'unscored', now, id)
    ring(run .. 'bell:unscored')
  end
end
return {'ok'}
