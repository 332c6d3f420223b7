-- ARGV: policy, step
local record = call('GET', own .. 'record:' .. ARGV[2])
if record then return {'ok', record} end
return wait(bell('assembled'))
