-- A suspect's reward has been asked, and the worker lives. ARGV: policy, request, id, reward
if answer_of(ARGV[2]) then return {'ok'} end
local id = ARGV[3]
remember(ARGV[2], 1)
if call('HGET', group_key(id), 'trial') ~= ARGV[4] then return {'ok'} end
call('HDEL', group_key(id), 'trial', 'scorer')
tried(id, ARGV[4])
call('ZADD', run .. 'unscored', 'XX', now, id)
ring(run .. 'bell:unscored')
return {'ok'}
