-- A server that does not know our scripts has just started. All deadlines get one fresh period, once per start:
-- nobody could renew a lease or send a score while it was down. ARGV: ''
local known, info = pcall(call, 'INFO', 'server')
local id = known and type(info) == 'string' and string.match(info, 'run_id:(%w+)') or 'unknown'
local before = call('GET', run .. 'server')
if before == id and id ~= 'unknown' then return {'ok', 0} end
call('SET', run .. 'server', id)
if not before then return {'ok', 0} end
for _, name in ipairs(call('SMEMBERS', run .. 'policies')) do
  for deadlines, period in pairs({leases = 'lease_ms', deadlines = 'score_deadline_ms'}) do
    local key = run .. 'policy:' .. name .. ':' .. deadlines
    for _, member in ipairs(call('ZRANGE', key, 0, -1)) do call('ZADD', key, now + limit(period), member) end
  end
end
return {'ok', 1}
