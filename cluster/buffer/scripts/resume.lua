-- Rules 7, 8 and 11. ARGV: policy, request, rollback, manifest (MessagePack, '' for none)
local before = answer_of(ARGV[2])
if before then return {'ok', tonumber(before)} end
if call('EXISTS', run .. 'limits') == 0 then return {'unconfigured'} end
local manifest = {step = 0, epoch = 0, frontier = 0, requeued = {}, outstanding = {}, trained = {}}
if ARGV[4] ~= '' then manifest = cmsgpack.unpack(ARGV[4]) end
local step = manifest.step

local function members(...)
  local ids = {}
  for _, name in ipairs({...}) do
    for _, id in ipairs(call('ZRANGE', own .. name, 0, -1)) do ids[#ids + 1] = id end
  end
  return ids
end

-- Sums of what has left the ledger: groups of steps from `step` on were not trained, nor were their tasks.
local function unfold()
  local steps = call('HGETALL', own .. 'past_steps')
  for i = 1, #steps, 2 do
    if tonumber(steps[i]) >= step then
      call('HDEL', own .. 'past_steps', steps[i])
      call('HINCRBY', own .. 'past', 'dropped:rolled_back', steps[i + 1])
    end
  end
  local last = math.floor(manifest.frontier / 8)
  local bits = call('GETRANGE', own .. 'past_tasks', 0, last)
  call('SET', own .. 'past_tasks', bits)
  for task = manifest.frontier, last * 8 + 7 do call('SETBIT', own .. 'past_tasks', task, 0) end
  for _, name in ipairs({'outstanding', 'requeued'}) do
    for _, task in ipairs(manifest[name]) do call('SETBIT', own .. 'past_tasks', task, 0) end
  end
end

local function forget_records()
  for _, recorded in ipairs(call('ZRANGE', own .. 'records', 0, -1)) do call('UNLINK', own .. 'record:' .. recorded) end
  call('DEL', own .. 'records')
  call('HSET', own .. 'state', 'next_step', step)
end

-- What happened after the manifest did not happen: groups dropped, queue and frontier as they were.
local function roll_back()
  trim_before(step, {})
  for _, id in ipairs(members('open', 'ready', 'assembled')) do drop(id, 'rolled_back', false) end
  local trained = {}
  for _, id in ipairs(manifest.trained) do trained[id] = true end
  local lines = call('HGETALL', own .. 'ledger')
  for i = 1, #lines, 2 do
    local trained_at = tonumber(string.match(lines[i + 1], ' assembled:[%d,]-(%d+)$'))
    if trained[lines[i]] then
      if not (trained_at and trained_at < step) then
        -- Redis lost in which step. No later one than the bound had let it: more would be read as a broken bound.
        local version = tonumber(string.match(lines[i + 1], '^%S+ %S+ (%S+)'))
        settle(lines[i], 'assembled:' .. math.min(step - 1, version + limit('max_staleness')))
        final(lines[i])
      end
    elseif trained_at and trained_at >= step then
      settle(lines[i], 'dropped:rolled_back')
    end
  end
  forget_records()
  unfold()
  local tasks = {}
  for _, name in ipairs({'outstanding', 'requeued'}) do
    for _, task in ipairs(manifest[name]) do tasks[#tasks + 1] = task end
  end
  table.sort(tasks)
  call('DEL', own .. 'requeued')
  for _, task in ipairs(tasks) do call('RPUSH', own .. 'requeued', task) end
  call('HSET', own .. 'state', 'frontier', manifest.frontier, 'trimmed', step)
end

-- Synchronous training samples with the weights it trains: groups of the dead epoch have other ones behind them.
local function drop_dead_epochs()
  local ids = {}
  for _, id in ipairs(members('open', 'ready', 'assembled')) do
    ids[#ids + 1] = {id, tonumber(call('HGET', group_key(id), 'seq') or 0)}
  end
  table.sort(ids, function(a, b) return a[2] > b[2] end)
  for _, entry in ipairs(ids) do drop(entry[1], 'dead_epoch', true) end
  forget_records()
end

local behind = state('epoch') < manifest.epoch or state('frontier') < manifest.frontier or state('next_step') < step
local trimmed_away = state('trimmed') > step -- an older checkpoint: its records are gone, so there is nothing to assemble again
if call('EXISTS', own .. 'state') == 0 or ARGV[3] == '1' or behind or trimmed_away then
  roll_back()
else
  trim_before(step, manifest.trained)
  if limit('max_staleness') == 0 then drop_dead_epochs() end
end

local epoch = math.max(state('epoch'), manifest.epoch) + 1
call('HSET', own .. 'state', 'epoch', epoch, 'version', step)
call('HDEL', own .. 'state', 'published_step', 'left_at') -- engines may hold a dead history's weights until the next one
call('DEL', own .. 'released', own .. 'saved')
for _, name in ipairs(names_in('members')) do -- their learners end and begin with ours
  local theirs = run .. 'policy:' .. name .. ':'
  call('HSET', theirs .. 'state', 'epoch', epoch)
  call('HDEL', theirs .. 'state', 'published_step')
  ring(theirs .. 'bell:version')
end
call('SADD', run .. 'policies', policy)
for _, name in ipairs({'capacity', 'ready', 'version', 'assembled'}) do ring(bell(name)) end
remember(ARGV[2], epoch)
return {'ok', epoch}
