-- ARGV: policy, id, token
expire()
local at, token = unpack(call('HMGET', group_key(ARGV[2]), 'state', 'token'))
if token ~= ARGV[3] then
  if answer_of('put:' .. ARGV[3]) then return {'ok'} end -- a heartbeat that arrives after the group
  return lost(ARGV[2])
end
if at == 'leased' then call('ZADD', own .. 'leases', now + limit('lease_ms'), ARGV[2]) end
return {'ok'}
