-- ARGV: policy, epoch, step
local refused = stale(ARGV[2])
if refused then return refused end
local step = tonumber(ARGV[3])
if step ~= state('version') then return {'wrong', 'step ' .. step .. ' is not the released version, which is ' .. state('version')} end
local outstanding = {}
local function add(ids)
  for _, id in ipairs(ids) do outstanding[#outstanding + 1] = tonumber(call('HGET', group_key(id), 'task')) end
end
add(call('ZRANGE', own .. 'open', 0, -1))
add(call('ZRANGE', own .. 'ready', 0, -1))
add(call('ZRANGEBYSCORE', own .. 'assembled', step, '+inf'))
return {'ok', state('frontier'), call('LRANGE', own .. 'requeued', 0, -1), outstanding,
  call('ZRANGEBYSCORE', own .. 'assembled', '-inf', '(' .. step)}
