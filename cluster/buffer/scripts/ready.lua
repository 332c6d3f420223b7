-- ARGV: policy, epoch, step, how many, 1 to name what is ready while there are fewer
local refused = stale(ARGV[2])
if refused then return refused end
expire()
local step, wanted = tonumber(ARGV[3]), tonumber(ARGV[4])
local bound = '(' .. string.format('%.0f', place(step - limit('max_staleness'), 0))
for _, name in ipairs({'ready', 'open'}) do
  local late = call('ZRANGEBYSCORE', own .. name, '-inf', bound)
  for i = #late, 1, -1 do drop(late[i], 'late', true) end
end

local last = '+inf'
local oldest = call('ZRANGE', own .. 'open', 0, 0, 'WITHSCORES')
if oldest[2] and waits_for_late() then
  -- Any order within a version, but never past a live group of an older one.
  last = '(' .. string.format('%.0f', place(math.floor(oldest[2] / 4294967296) + 1, 0))
end
local function first() return call('ZRANGEBYSCORE', own .. 'ready', '-inf', last, 'LIMIT', 0, wanted) end
local num_tasks = tonumber(call('HGET', run .. 'limits', 'num_tasks') or 'inf') or math.huge
local over = not oldest[1] and state('frontier') >= num_tasks and call('LLEN', own .. 'requeued') == 0
if over or call('ZCOUNT', own .. 'ready', '-inf', last) >= wanted then return {'ok', first()} end
if state('wanted') ~= wanted then call('HSET', own .. 'state', 'wanted', wanted) end
return wait(bell('ready'), ARGV[5] == '1' and first(), first_due())
