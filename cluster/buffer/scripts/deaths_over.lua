-- ARGV: policy, task
return {'ok', tonumber(call('HGET', own .. 'deaths', ARGV[2]) or 0)}
