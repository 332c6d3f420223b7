-- ARGV: policy, the version the engine has ('' for none)
local step = call('HGET', own .. 'state', 'published_step')
if step and state('epoch') .. '.' .. step ~= ARGV[2] then return {'ok', call('GET', own .. 'published')} end
return wait(bell('version'))
