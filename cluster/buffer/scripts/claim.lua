-- ARGV: policy, request (the lease's token to be), worker, the engine's epoch, its step
local before = answer_of(ARGV[2])
if before then return {'ok', before} end
if state('epoch') == 0 or call('EXISTS', run .. 'limits') == 0 then return wait(bell('capacity')) end
expire()

local epoch, version = state('epoch'), state('version')
if tonumber(ARGV[4]) ~= epoch or tonumber(ARGV[5]) < math.max(version, state('published_step')) then return {'behind'} end
local live = call('ZCARD', own .. 'open') + call('ZCARD', own .. 'ready')
local room = (version + limit('max_staleness') + 1 - state('next_step')) * limit('groups_per_step')
if live >= room then return wait(bell('capacity'), '', first_due()) end

local task = call('LPOP', own .. 'requeued')
if not task then
  local last = call('HGET', run .. 'limits', 'num_tasks')
  if last and state('frontier') >= tonumber(last) then return wait(bell('capacity'), '', first_due()) end
  task = call('HINCRBY', own .. 'state', 'frontier', 1) - 1
end
local seq = call('HINCRBY', own .. 'state', 'seq', 1) - 1
local id = policy .. '/' .. epoch .. '/' .. seq
call('HSET', group_key(id), 'state', 'leased', 'task', task, 'version', version, 'seq', seq, 'token', ARGV[2],
  'worker', ARGV[3])
call('ZADD', own .. 'open', place(version, seq), id)
call('ZADD', own .. 'leases', now + limit('lease_ms'), id)
call('HSET', own .. 'ledger', id, table.concat({task, epoch, version, 'live'}, ' '))
count('claimed')
local answer = table.concat({id, epoch, seq, task, version}, ' ')
remember(ARGV[2], answer)
return {'ok', answer}
