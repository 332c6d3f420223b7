-- A worker's process ended inside the environment's step. ARGV: policy, request, task
if answer_of(ARGV[2]) then return {'ok'} end
remember(ARGV[2], 1)
call('HINCRBY', own .. 'deaths', ARGV[3], 1)
return {'ok'}
