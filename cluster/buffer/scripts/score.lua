-- ARGV: policy, id, then signal, version, scores, …
local id = ARGV[2]
local key = group_key(id)
local at = call('HGET', key, 'state')
if not at then
  count('scores_unused')
  return {'ok'}
end
for i = 3, #ARGV, 3 do
  -- The first answer of a version stays, also when it is repeated after one of a newer version.
  if call('HSETNX', key, 'v:' .. ARGV[i] .. '\0' .. ARGV[i + 1], 1) == 1 then
    call('HSET', key, 's:' .. ARGV[i], ARGV[i + 2])
  end
end
local names = admit()
for _, name in ipairs(names) do
  if call('HEXISTS', key, 's:' .. name) == 0 then
    call('ZADD', run .. 'unscored', 'XX', now + limit('scoring_lease_ms'), id) -- progress renews the scoring lease
    return {'ok'}
  end
end
call('ZREM', run .. 'unscored', id)
if at == 'pending' then make_ready(id) end
return {'ok'}
