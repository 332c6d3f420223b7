-- ARGV: '', then field, value, …
call('DEL', run .. 'limits')
call('HSET', run .. 'limits', unpack(ARGV, 2))
for _, name in ipairs(call('SMEMBERS', run .. 'policies')) do
  ring(run .. 'policy:' .. name .. ':bell:capacity')
  ring(run .. 'policy:' .. name .. ':bell:ready')
end
return {'ok'}
