-- ARGV: '', request, kind, fields (MessagePack)
if answer_of(ARGV[2]) then return {'ok'} end
call('XADD', run .. 'events', 'MAXLEN', '~', 10000, '*', 'kind', ARGV[3], 'fields', ARGV[4])
remember(ARGV[2], 1)
return {'ok'}
