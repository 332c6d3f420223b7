-- What every transition shares. KEYS[1] is the prefix of the run, ARGV[1] the policy ('' for none).
-- A script is atomic: it runs whole or not at all, also in the append-only file.
local call = redis.call
local run, policy = KEYS[1], ARGV[1]
local own = run .. 'policy:' .. policy .. ':'
local clock = call('TIME')
local now = clock[1] * 1000 + math.floor(clock[2] / 1000)
local ANSWER_MS = 600000 -- how long a repeated call finds the first one's answer

local function state(field) return tonumber(call('HGET', own .. 'state', field) or 0) end
local function limit(field) return tonumber(call('HGET', run .. 'limits', field) or 0) end
local function waits_for_late() return call('HGET', run .. 'limits', 'when_late') == 'wait' end
local function count(what) call('HINCRBY', own .. 'counters', what, 1) end
local function group_key(id) return run .. 'group:' .. id end

-- The order of groups: version, then seq.
local function place(version, seq) return version * 4294967296 + seq end

local function names_in(field)
  local names = {}
  for name in string.gmatch(call('HGET', run .. 'limits', field) or '', '[^\n]+') do names[#names + 1] = name end
  return names
end
local function blocking() return names_in('blocking') end
local function rewards() return names_in('rewards') end

-- reward → version, of the rewards that had one in this era.
local function versions_of(era)
  local versions, fields = {}, call('HGETALL', run .. 'era:' .. era)
  for i = 1, #fields, 2 do versions[fields[i]] = fields[i + 1] end
  return versions
end

-- Bells: streams of one entry. Who finds nothing to do is told the last entry's id and blocks until there is another.
local rung = {}
local function ring(bell)
  if rung[bell] then return end
  rung[bell] = true
  call('XADD', bell, 'MAXLEN', 1, '*', 'r', 1)
end
local function bell(name) return own .. 'bell:' .. name end

-- 'wait': nothing yet. `found` is what there is, `due` when a deadline passes without anybody ringing.
local function wait(key, found, due)
  local last = call('XREVRANGE', key, '+', '-', 'COUNT', 1)
  return {'wait', found or '', key, last[1] and last[1][1] or '0-0', due and math.max(1, due - now + 1) or -1}
end

local function first_due()
  local due
  for _, name in ipairs({'leases', 'deadlines'}) do
    local entry = call('ZRANGE', own .. name, 0, 0, 'WITHSCORES')
    if entry[2] and (not due or tonumber(entry[2]) < due) then due = tonumber(entry[2]) end
  end
  return due
end

-- A line of the ledger: task, epoch, version, outcome (`live`, `assembled:STEP`, `dropped:REASON`).
local function outcome(id)
  local line = call('HGET', own .. 'ledger', id)
  return line and string.match(line, '^%S+ %S+ %S+ (.*)$') or 'unknown'
end
local function settle(id, result)
  local line = call('HGET', own .. 'ledger', id)
  if line then call('HSET', own .. 'ledger', id, string.match(line, '^%S+ %S+ %S+ ') .. result) end
end

-- The newest final lines stay; older ones become sums. `past` holds dropped:REASON, trained_twice and max_staleness,
-- `past_steps` how many groups each step trained, `past_tasks` a bit for each task that was trained.
local LINES_KEPT = 20000
local function fold(id)
  local line = call('HGET', own .. 'ledger', id)
  local task, version, result = string.match(line or '', '^(%S+) %S+ (%S+) (.*)$')
  local kind, detail = string.match(result or '', '^(%l+):(.*)$')
  if kind == 'dropped' then
    call('HINCRBY', own .. 'past', result, 1)
  elseif kind == 'assembled' then
    local last
    local twice = call('SETBIT', own .. 'past_tasks', task, 1) - 1
    local stalest = tonumber(call('HGET', own .. 'past', 'max_staleness') or 0)
    for step in string.gmatch(detail, '%d+') do
      twice, last, stalest = twice + 1, step, math.max(stalest, step - version)
    end
    call('HINCRBY', own .. 'past_steps', last, 1)
    call('HSET', own .. 'past', 'max_staleness', stalest)
    if twice > 0 then call('HINCRBY', own .. 'past', 'trained_twice', twice) end
  else
    return -- live after all
  end
  call('HDEL', own .. 'ledger', id)
end
local function final(id)
  if call('RPUSH', own .. 'settled', id) > LINES_KEPT then fold(call('LPOP', own .. 'settled')) end
end

local function remove(id)
  for _, name in ipairs({'open', 'ready', 'assembled', 'leases', 'deadlines'}) do call('ZREM', own .. name, id) end
  call('ZREM', run .. 'unscored', id)
  call('UNLINK', group_key(id))
end

-- The last groups that the buffer itself dropped, rollouts and all: the driver writes them to `samples.jsonl`.
local DROPPED_KEPT = 16
local function keep_dropped(id, reason)
  if call('HEXISTS', group_key(id), 'data') == 0 then return end
  call('RENAME', group_key(id), run .. 'dropped:' .. id)
  call('RPUSH', run .. 'dropped', id)
  while call('LLEN', run .. 'dropped') > DROPPED_KEPT do
    call('UNLINK', run .. 'dropped:' .. call('LPOP', run .. 'dropped'))
  end
  local fields = cmsgpack.pack({kind = 'dropped', policy = policy, id = id, reason = reason})
  call('XADD', run .. 'events', 'MAXLEN', '~', 10000, '*', 'kind', 'dropped', 'fields', fields)
end

local at_hand = false -- who asks for a drop has the group at hand: nothing has to be kept
-- Final: a dropped group never returns. It admits one more at once; its task may be first in the queue.
local function drop(id, reason, requeue)
  local task = call('HGET', group_key(id), 'task')
  if requeue and task then call('LPUSH', own .. 'requeued', task) end
  if not at_hand then keep_dropped(id, reason) end
  remove(id)
  settle(id, 'dropped:' .. reason)
  final(id)
  ring(bell('capacity'))
  ring(bell('ready')) -- the learner may have waited for this very group
end

local function make_ready(id)
  local version, seq = unpack(call('HMGET', group_key(id), 'version', 'seq'))
  call('HSET', group_key(id), 'state', 'ready')
  call('ZREM', own .. 'open', id)
  call('ZREM', own .. 'deadlines', id)
  call('ZADD', own .. 'ready', place(version, seq), id)
  -- The learner need not look before there is as much as it waits for, or nothing else can come.
  if call('ZCARD', own .. 'ready') >= state('wanted') or call('ZCARD', own .. 'open') == 0 then ring(bell('ready')) end
end

-- Suspects: groups that a reward worker had in hand when it died. `tried` are the rewards that are asked no more alone.
local function tried(id, name)
  call('HSET', group_key(id), 'tried', (call('HGET', group_key(id), 'tried') or '\n') .. name .. '\n')
end
-- The suspect to try next and the reward to ask; those whose rewards have all been tried, or that left, are none any more.
local function next_suspect()
  local found, reward, first
  for _, id in ipairs(call('SMEMBERS', run .. 'suspects')) do
    local due, untried = call('ZSCORE', run .. 'unscored', id), nil
    local so_far = call('HGET', group_key(id), 'tried') or '\n'
    for _, name in ipairs(due and rewards() or {}) do
      if not untried and not string.find(so_far, '\n' .. name .. '\n', 1, true) then untried = name end
    end
    if not untried then
      call('SREM', run .. 'suspects', id)
      call('HDEL', group_key(id), 'suspect', 'tried', 'trial')
      local deadlines = run .. 'policy:' .. string.match(id, '^(.*)/%d+/%d+$') .. ':deadlines'
      call('ZADD', deadlines, 'XX', now + limit('score_deadline_ms'), id)
    elseif tonumber(due) <= now and (not first or tonumber(due) < first) then
      found, reward, first = id, untried, tonumber(due)
    end
  end
  return found, reward
end

-- Passed leases and score deadlines are noticed by whoever comes next.
local function expire()
  local passed = call('ZRANGEBYSCORE', own .. 'leases', '-inf', now)
  for i = #passed, 1, -1 do drop(passed[i], 'lease_expired', true) end -- backwards: the oldest ends up first in the queue
  for _, id in ipairs(call('ZRANGEBYSCORE', own .. 'deadlines', '-inf', now)) do
    if call('HEXISTS', group_key(id), 'suspect') == 1 then -- a worker must come up first, and try others before it
      call('ZADD', own .. 'deadlines', now + limit('score_deadline_ms'), id)
    else
      call('HSET', group_key(id), 'overdue', 1)
      call('ZREM', run .. 'unscored', id)
      count('overdue')
      make_ready(id)
    end
  end
end

local function stale(epoch)
  if tonumber(epoch) == state('epoch') then return nil end
  count('refused_stale_epoch')
  return {'stale', state('epoch')}
end

local function lost(id)
  count('refused_lease_lost')
  return {'lost', outcome(id)}
end

local function answer_of(request) return call('GET', run .. 'answer:' .. request) end
local function remember(request, answer) call('SET', run .. 'answer:' .. request, answer, 'PX', ANSWER_MS) end

-- Everything trained before `step` leaves, or `most` groups of it; the ledger keeps its lines.
local function trim_before(step, trained, most)
  for _, id in ipairs(call('ZRANGEBYSCORE', own .. 'assembled', '-inf', '(' .. step, 'LIMIT', 0, most or -1)) do
    remove(id)
    final(id)
  end
  for _, id in ipairs(trained) do
    if call('EXISTS', group_key(id)) == 1 then remove(id) end
  end
  for _, recorded in ipairs(call('ZRANGEBYSCORE', own .. 'records', '-inf', '(' .. step)) do
    call('UNLINK', own .. 'record:' .. recorded)
    call('ZREM', own .. 'records', recorded)
  end
  if step > state('trimmed') then call('HSET', own .. 'state', 'trimmed', step) end
end
