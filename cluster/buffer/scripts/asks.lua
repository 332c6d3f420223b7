-- What a reward worker asks now, for the case that it dies of it. ARGV: '', worker, id, 1 to note it or 0, rewards …
local field = table.concat({ARGV[2], ARGV[3], unpack(ARGV, 5)}, '\n')
if ARGV[4] == '1' then call('HSET', run .. 'asked', field, 1) else call('HDEL', run .. 'asked', field) end
return {'ok'}
