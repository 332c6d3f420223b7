-- A group that cannot be read is kept for inspection, once. ARGV: policy, id, row (MessagePack), how many rows stay
if call('SADD', run .. 'unreadable', ARGV[2]) == 1 then
  count('unreadable')
  call('LPUSH', run .. 'quarantine', ARGV[3])
  call('LTRIM', run .. 'quarantine', 0, ARGV[4] - 1)
end
return {'ok'}
