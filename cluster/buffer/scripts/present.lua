-- Ids of the groups that are outstanding and really there. ARGV: policy
local ids = {}
local function add(members)
  for _, id in ipairs(members) do
    if call('EXISTS', group_key(id)) == 1 then ids[#ids + 1] = id end
  end
end
add(call('ZRANGE', own .. 'open', 0, -1))
add(call('ZRANGE', own .. 'ready', 0, -1))
add(call('ZRANGEBYSCORE', own .. 'cut', state('version'), '+inf'))
return ids
