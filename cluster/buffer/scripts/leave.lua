-- ARGV: policy, epoch, step
local refused = stale(ARGV[2])
if refused then return refused end
call('HSET', own .. 'state', 'left_at', ARGV[3])
return {'ok'}
