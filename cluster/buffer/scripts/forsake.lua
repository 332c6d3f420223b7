-- A worker is dead (all are, if it is ''): nothing need wait for its leases. ARGV: policy, request, worker, blame
-- With blame, what the dead reward worker had in hand is suspected of its death. Suspects are tried alone, one reward at
-- a time (`unscored`): the pair of group and reward that a second worker dies over is condemned, everything else cleared.
local before = answer_of(ARGV[2])
if before then return {'ok', before} end
local dead, blame = ARGV[3], ARGV[4] == '1'
local ids = call('ZREVRANGE', own .. 'open', 0, -1) -- backwards: the oldest ends up first in the queue
for _, id in ipairs(ids) do
  local at, worker = unpack(call('HMGET', group_key(id), 'state', 'worker'))
  if at == 'leased' and (dead == '' or worker == dead) then drop(id, 'worker_died', true) end
end

local explained, suspected = {}, false
if dead == '' then
  call('DEL', run .. 'excused')
elseif not blame then
  call('SADD', run .. 'excused', dead) -- it says so itself before it ends, and has failed the group that is the cause
elseif call('SREM', run .. 'excused', dead) == 1 then
  explained[1] = dead
end
for _, id in ipairs(call('ZRANGE', run .. 'unscored', 0, -1)) do
  local key = group_key(id)
  local scorer, trial, suspect = unpack(call('HMGET', key, 'scorer', 'trial', 'suspect'))
  if scorer and (dead == '' or scorer == dead) then
    call('HDEL', key, 'scorer', 'trial')
    call('ZADD', run .. 'unscored', now, id)
    ring(run .. 'bell:unscored')
    suspected = suspected or blame
    if blame and trial then
      local so_far = call('HGET', key, 'condemned') or '\n'
      tried(id, trial)
      -- One that is condemned is not asked again: a worker that dies here still dies of something else.
      if not string.find(so_far, '\n' .. trial .. '\0', 1, true) then
        call('HSET', key, 'condemned', so_far .. trial .. '\0' .. suspect .. '\0' .. dead .. '\n')
        count('condemned')
        explained[#explained + 1] = suspect
        explained[#explained + 1] = dead
      end
    elseif blame and not suspect then
      call('HSET', key, 'suspect', dead)
      call('SADD', run .. 'suspects', id)
    end
  end
  if dead == '' and suspect then call('HSET', key, 'suspect', '') end -- names of workers are used anew
end
-- No score could be sent, and trials take time: all score deadlines get one fresh period, and those of suspects do not
-- pass before their trial.
for _, name in ipairs(suspected and call('SMEMBERS', run .. 'policies') or {}) do
  local deadlines = run .. 'policy:' .. name .. ':deadlines'
  for _, id in ipairs(call('ZRANGE', deadlines, 0, -1)) do
    call('ZADD', deadlines, now + limit('score_deadline_ms'), id)
  end
end
for _, field in ipairs(call('HKEYS', run .. 'asked')) do
  if dead == '' or string.sub(field, 1, #dead + 1) == dead .. '\n' then call('HDEL', run .. 'asked', field) end
end
local answer = table.concat(explained, '\n')
remember(ARGV[2], answer)
return {'ok', answer}
