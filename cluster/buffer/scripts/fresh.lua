-- All deadlines get one fresh period: nobody could renew a lease or send a score while the server was down, or while it
-- refused to write. ARGV: '', 'restarted' or 'refused'
local share = 1
if ARGV[2] == 'restarted' then -- it does not know our scripts; once per start
  local known, info = pcall(call, 'INFO', 'server')
  local id = known and type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
  local before = call('GET', run .. 'server')
  if before == id and id ~= 'unknown' then return {'ok', 0} end
  call('SET', run .. 'server', id)
  if not before then return {'ok', 0} end
else
  -- Without memory Redis lets a script through whose first write can only free some, and the rest of it too: so
  -- deadlines move on while memory is short, whoever calls first when there is some again.
  call('DEL', run .. 'nothing')
  share = 0.5 -- everybody who is refused asks, and asks again: what has half a period left is left alone
end
for _, name in ipairs(call('SMEMBERS', run .. 'policies')) do
  for deadlines, period in pairs({leases = 'lease_ms', deadlines = 'score_deadline_ms'}) do
    local key = run .. 'policy:' .. name .. ':' .. deadlines
    local soon = string.format('%.0f', now + limit(period) * share)
    for _, member in ipairs(call('ZRANGEBYSCORE', key, '-inf', soon)) do
      call('ZADD', key, now + limit(period), member)
    end
  end
end
return {'ok', 1}
