-- The version is that which the policy and all members have released; whoever is ahead of another waits for it.
-- ARGV: policy, epoch, version, who
local refused = stale(ARGV[2])
if refused then return refused end
local version, before, who = tonumber(ARGV[3]), state('version'), ARGV[4]
local function released(name) return tonumber(call('HGET', own .. 'released', name) or before) end
if version <= released(who) then return {'ok'} end
if version ~= released(who) + 1 or version > state('next_step') then
  return {'wrong', 'version ' .. version .. ' cannot follow ' .. released(who) .. '; the next step to assemble is ' .. state('next_step')}
end
call('HSET', own .. 'released', who, version)
local all = math.min(version, released(policy))
for _, name in ipairs(names_in('members')) do all = math.min(all, released(name)) end
if all > before then
  call('HSET', own .. 'state', 'version', all)
  ring(bell('capacity'))
end
return {'ok'}
