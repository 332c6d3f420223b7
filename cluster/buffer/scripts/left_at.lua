-- ARGV: policy, epoch
local refused = stale(ARGV[2])
if refused then return refused end
return {'ok', call('HGET', own .. 'state', 'left_at')}
