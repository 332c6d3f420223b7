-- A group carries scores of one era: the versions of all rewards that were current together. What answers under the
-- newest era's versions is put aside until it is complete, then the group changes over in one step.
-- ARGV: policy, id, then reward, version, scores, …
local id = ARGV[2]
local key = group_key(id)
local at = call('HGET', key, 'state')
if not at or at == 'assembled' then
  count('scores_unused')
  return {'ok'}
end
local names, newest = rewards(), tonumber(call('GET', run .. 'era') or 0)
local wanted = versions_of(newest)

local function carries(name) return call('HGET', key, 'carried:' .. name) end
local function outdated(name) return wanted[name] and carries(name) and carries(name) ~= wanted[name] end
local function any(property)
  for _, name in ipairs(names) do if property(name) then return true end end
  return false
end
local function store(name, version, scores) call('HSET', key, 's:' .. name, scores, 'carried:' .. name, version) end

for i = 3, #ARGV, 3 do
  local name, version, scores = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  -- The first answer of a version stays, also when it is repeated after one of a newer version.
  if call('HSETNX', key, 'v:' .. name .. '\0' .. version, 1) == 1 then
    local era = tonumber(call('HGET', key, 'era'))
    if not era then -- the first score decides; one from before a change still makes a whole of its own
      era = tonumber(wanted[name] and version ~= wanted[name] and call('HGET', run .. 'last_eras', name .. '\0' .. version) or newest)
      call('HSET', key, 'era', era)
    end
    if not wanted[name] or versions_of(era)[name] == version then
      store(name, version, scores)
    elseif version == wanted[name] then
      call('HSET', key, 'new:' .. name, scores)
    else
      count('scores_outdated')
    end
  end
end

local function still_missing(name) return outdated(name) and call('HEXISTS', key, 'new:' .. name) == 0 end
if tonumber(call('HGET', key, 'era') or newest) < newest and not any(still_missing) then
  if any(outdated) then count('relabelled') end
  for _, name in ipairs(names) do
    local scores = call('HGET', key, 'new:' .. name)
    if scores then
      store(name, wanted[name], scores)
      call('HDEL', key, 'new:' .. name)
    end
  end
  call('HSET', key, 'era', newest)
end

local function unanswered(name) return not carries(name) or outdated(name) end
if any(unanswered) then
  call('ZADD', run .. 'unscored', 'XX', now + limit('scoring_lease_ms'), id) -- progress renews the scoring lease
else
  call('ZREM', run .. 'unscored', id)
end
if at == 'pending' then
  for _, name in ipairs(blocking()) do if not carries(name) then return {'ok'} end end
  make_ready(id)
end
return {'ok'}
