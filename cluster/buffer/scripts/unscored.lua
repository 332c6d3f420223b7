-- The set holds when each group is due to be handed out: at once after `put`, and again when the one who took it
-- has not finished in time. ARGV: '', request, worker, how many
local before = answer_of(ARGV[2])
if before then return {'ok', before} end
local key, ids = run .. 'unscored', {}
for _, id in ipairs(call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, ARGV[4])) do
  call('ZADD', key, now + limit('scoring_lease_ms'), id)
  call('HSET', group_key(id), 'scorer', ARGV[3])
  ids[#ids + 1] = id
end
if #ids > 0 then
  local answer = table.concat(ids, '\n')
  remember(ARGV[2], answer)
  return {'ok', answer}
end
local first = call('ZRANGE', key, 0, 0, 'WITHSCORES')
return wait(run .. 'bell:unscored', '', tonumber(first[2]))
