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
add(call('ZRANGEBYSCORE', own .. 'cut', state('version'), '+inf'))
return {'ok', call('HGETALL', own .. 'ledger'), call('HGETALL', own .. 'counters'), state('version'), present}
