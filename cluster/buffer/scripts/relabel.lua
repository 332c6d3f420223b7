-- Rewards whose judge, template or model has a new version: a new era begins, and every stored group is asked again.
-- ARGV: '', reward, version, …
local KEPT_ERAS = 100 -- a group that carries an older one changes over like any other, once all of the newest is there
local newest = tonumber(call('GET', run .. 'era') or 0)
local versions, changed = versions_of(newest), {}
for i = 2, #ARGV, 2 do
  if versions[ARGV[i]] ~= ARGV[i + 1] then changed[#changed + 1] = ARGV[i] end
  versions[ARGV[i]] = ARGV[i + 1]
end
if #changed == 0 then return {'ok'} end
newest = call('INCR', run .. 'era')
for name, version in pairs(versions) do
  call('HSET', run .. 'era:' .. newest, name, version)
  call('HSET', run .. 'last_eras', name .. '\0' .. version, newest)
end
local gone = newest - KEPT_ERAS
for name, version in pairs(versions_of(gone)) do
  local field = name .. '\0' .. version
  if call('HGET', run .. 'last_eras', field) == tostring(gone) then call('HDEL', run .. 'last_eras', field) end
end
call('UNLINK', run .. 'era:' .. gone)
for _, name in ipairs(call('SMEMBERS', run .. 'policies')) do
  for _, set in ipairs({'open', 'ready'}) do
    for _, id in ipairs(call('ZRANGE', run .. 'policy:' .. name .. ':' .. set, 0, -1)) do
      if call('HEXISTS', group_key(id), 'data') == 1 then
        for _, reward in ipairs(changed) do
          call('HDEL', group_key(id), 'new:' .. reward)
          if call('HGET', group_key(id), 'carried:' .. reward) ~= versions[reward] then
            -- A version that was current before, and has answered then, answers anew.
            call('HDEL', group_key(id), 'v:' .. reward .. '\0' .. versions[reward])
          end
        end
        call('HDEL', group_key(id), 'scorer')
        call('ZADD', run .. 'unscored', now, id)
      end
    end
  end
end
ring(run .. 'bell:unscored')
return {'ok'}
