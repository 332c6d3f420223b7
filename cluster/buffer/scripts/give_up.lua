-- ARGV: policy, id, token, reason, requeue
if answer_of('give_up:' .. ARGV[3]) then return {'ok'} end
expire()
local at, token = unpack(call('HMGET', group_key(ARGV[2]), 'state', 'token'))
if token ~= ARGV[3] or at ~= 'leased' then return lost(ARGV[2]) end
drop(ARGV[2], ARGV[4], ARGV[5] == '1')
remember('give_up:' .. ARGV[3], 1)
return {'ok'}
