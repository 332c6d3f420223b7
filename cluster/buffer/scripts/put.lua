-- ARGV: policy, id, token, group
local id = ARGV[2]
if answer_of('put:' .. ARGV[3]) then return {'ok'} end
expire()
local at, token = unpack(call('HMGET', group_key(id), 'state', 'token'))
if token ~= ARGV[3] then return lost(id) end
if at ~= 'leased' then return {'ok'} end
call('HSET', group_key(id), 'data', ARGV[4])
call('ZREM', own .. 'leases', id)
remember('put:' .. ARGV[3], 1)
if #blocking() == 0 then
  make_ready(id)
else
  call('HSET', group_key(id), 'state', 'pending')
  call('ZADD', own .. 'deadlines', now + limit('score_deadline_ms'), id)
end
call('ZADD', run .. 'unscored', now, id)
ring(run .. 'bell:unscored')
return {'ok'}
