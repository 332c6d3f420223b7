-- ARGV: policy
local leased = call('ZCARD', own .. 'leases') -- what is open and has no lease waits for scores
local oldest = call('ZRANGE', own .. 'open', 0, 0)[1] or ''
local worker, scorer, missing = '', '', {}
if oldest ~= '' then
  worker = call('HGET', group_key(oldest), 'worker') or ''
  scorer = call('HGET', group_key(oldest), 'scorer') or ''
  for _, name in ipairs(blocking()) do
    if call('HEXISTS', group_key(oldest), 's:' .. name) == 0 then missing[#missing + 1] = name end
  end
end
local due = oldest ~= '' and (call('ZSCORE', own .. 'leases', oldest) or call('ZSCORE', own .. 'deadlines', oldest))
return {'ok',
  call('HGETALL', own .. 'state'), call('HGETALL', own .. 'counters'),
  {'leased', leased, 'pending', call('ZCARD', own .. 'open') - leased, 'ready', call('ZCARD', own .. 'ready'),
    'assembled', call('ZCOUNT', own .. 'assembled', state('version'), '+inf'),
    'trained_untrimmed', call('ZCOUNT', own .. 'assembled', '-inf', '(' .. state('version')),
    'requeued', call('LLEN', own .. 'requeued'), 'unscored', call('ZCARD', run .. 'unscored')},
  oldest, oldest ~= '' and call('HGET', group_key(oldest), 'state') or '', worker, scorer, missing,
  due and math.floor(due - now) or -1,
}
