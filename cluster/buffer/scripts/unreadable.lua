-- A reward worker cannot read a group. Of one that waits for scores its task is claimed again; a ready one is the
-- learner's, which may have chosen it already and drops it itself. ARGV: policy, id
if call('HGET', group_key(ARGV[2]), 'state') == 'pending' then
  drop(ARGV[2], 'unreadable', true)
else
  call('ZREM', run .. 'unscored', ARGV[2])
end
return {'ok'}
