-- ARGV: policy, epoch, step, the member that has saved it ('' for whoever asks whether all have)
local refused = stale(ARGV[2])
if refused then return refused end
if ARGV[4] ~= '' then
  call('HSET', own .. 'saved', ARGV[4], ARGV[3])
  ring(bell('saved'))
  return {'ok'}
end
for _, name in ipairs(names_in('members')) do
  if tonumber(call('HGET', own .. 'saved', name) or -1) < tonumber(ARGV[3]) then return wait(bell('saved')) end
end
return {'ok'}
