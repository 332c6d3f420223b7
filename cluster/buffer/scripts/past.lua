-- One atomic look at a policy's past. A script and not MULTI, which a Redis that is out of memory refuses.
-- ARGV: policy
local present = {} -- ids of the groups that are outstanding and really there
local function add(members)
  for _, id in ipairs(members) do
    if call('EXISTS', group_key(id)) == 1 then present[#present + 1] = id end
  end
end
add(call('ZRANGE', own .. 'open', 0, -1))
add(call('ZRANGE', own .. 'ready', 0, -1))
add(call('ZRANGEBYSCORE', own .. 'assembled', state('version'), '+inf'))
local lines, again = call('HGETALL', own .. 'ledger'), {} -- `again`: ids whose task was trained before, by the sums
for i = 1, #lines, 2 do
  local task, kind = string.match(lines[i + 1], '^(%S+) %S+ %S+ (%l+)')
  if kind == 'assembled' and call('GETBIT', own .. 'past_tasks', task) == 1 then again[#again + 1] = lines[i] end
end
local trained = 0
for _, groups in ipairs(call('HVALS', own .. 'past_steps')) do trained = trained + groups end
return {'ok', lines, call('HGETALL', own .. 'counters'), state('version'), present, call('HGETALL', own .. 'past'),
  trained, again}
