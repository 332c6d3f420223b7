-- ARGV: policy, epoch, step, publication
local refused = stale(ARGV[2])
if refused then return refused end
local step = tonumber(ARGV[3])
local before = call('HGET', own .. 'state', 'published_step')
if before and tonumber(before) > step then return {'ok'} end
call('HSET', own .. 'state', 'published_step', step)
call('SET', own .. 'published', ARGV[4])
ring(bell('version'))
ring(bell('capacity')) -- engines that wait for capacity are behind now
return {'ok'}
