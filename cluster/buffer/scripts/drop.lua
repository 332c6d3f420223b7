-- ARGV: policy, epoch, requeue, then id, reason, …
local refused = stale(ARGV[2])
if refused then return refused end
at_hand = true
for i = #ARGV - 1, 4, -2 do
  local at = call('HGET', group_key(ARGV[i]), 'state')
  if at and at ~= 'assembled' then drop(ARGV[i], ARGV[i + 1], ARGV[3] == '1') end
end
return {'ok'}
