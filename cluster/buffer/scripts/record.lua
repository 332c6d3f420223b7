-- Filtered groups leave with the batch, in one move: dropped before it, each would admit a replacement that this step no
-- longer takes and a later one has no place for. ARGV: policy, epoch, step, record, how many filtered, (id, reason) …, ids …
local refused = stale(ARGV[2])
if refused then return refused end
local step = tonumber(ARGV[3])
local before = call('GET', own .. 'record:' .. step)
if before then return {'ok', before} end
if step ~= state('next_step') then return {'wrong', 'step ' .. step .. ' is not the next to assemble, which is ' .. state('next_step')} end
local first = 6 + 2 * tonumber(ARGV[5])
local seen = {}
for i = first, #ARGV do
  local id = ARGV[i]
  if seen[id] then return {'wrong', 'group ' .. id .. ' is named twice'} end
  if not call('ZSCORE', own .. 'ready', id) then return {'wrong', 'group ' .. id .. ' is not ready'} end
  if tonumber(call('HGET', group_key(id), 'version')) < step - limit('max_staleness') then
    return {'wrong', 'group ' .. id .. ' is staler than max_staleness'}
  end
  seen[id] = true
end

for i = first, #ARGV do
  local id = ARGV[i]
  call('ZREM', own .. 'ready', id)
  call('ZREM', run .. 'unscored', id)
  call('ZADD', own .. 'assembled', step, id)
  call('HSET', group_key(id), 'state', 'assembled')
  local so_far = outcome(id)
  settle(id, (string.match(so_far, '^assembled:') and so_far .. ',' or 'assembled:') .. step) -- two steps here would be a bug, and seen
end
call('SET', own .. 'record:' .. step, ARGV[4])
call('ZADD', own .. 'records', step, step)
call('HSET', own .. 'state', 'next_step', step + 1)
at_hand = true
for i = 6, first - 1, 2 do
  if call('ZSCORE', own .. 'ready', ARGV[i]) then drop(ARGV[i], ARGV[i + 1], false) end
end
ring(bell('assembled'))
return {'ok', ARGV[4]}
