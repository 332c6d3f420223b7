-- The set holds when each group is due to be handed out: at once after `put`, and again when the one who took it
-- has not finished in time. A suspect (`forsake`) is handed to a worker that has nothing else in hand, and while suspects
-- are due nothing else is handed out: so a worker that dies over it names it. ARGV: '', request, worker, how many
local before = answer_of(ARGV[2])
if before then return {'ok', before} end
local key, worker, ids = run .. 'unscored', ARGV[3], {}
local num_held, on_trial = 0, false
local suspicious = call('SCARD', run .. 'suspects') > 0 -- else no worker has a trial in hand
for _, id in ipairs(suspicious and call('ZRANGEBYSCORE', key, '(' .. now, '+inf') or {}) do
  local scorer, trial = unpack(call('HMGET', group_key(id), 'scorer', 'trial'))
  if scorer == worker then
    num_held = num_held + 1
    on_trial = on_trial or trial
  end
end
local function take(id, periods)
  call('ZADD', key, now + limit('scoring_lease_ms') * periods, id)
  call('HSET', group_key(id), 'scorer', worker)
  ids[#ids + 1] = id
end

local suspect, reward = next_suspect()
if suspect and num_held == 0 then
  take(suspect, 2) -- longer than a worker lives that hangs: no second one must hang over the same trial
  call('HSET', group_key(suspect), 'trial', reward)
elseif not suspect and not on_trial then
  for _, id in ipairs(call('ZRANGEBYSCORE', key, '-inf', now, 'LIMIT', 0, ARGV[4])) do take(id, 1) end
end
if #ids > 0 then
  local answer = table.concat(ids, '\n')
  remember(ARGV[2], answer)
  return {'ok', answer}
end
local next_due = call('ZRANGEBYSCORE', key, '(' .. now, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)
return wait(run .. 'bell:unscored', '', tonumber(next_due[2]))
