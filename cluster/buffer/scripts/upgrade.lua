-- A run that version 0.1 stored has other names: `cut` for what is assembled, `next_cut` for the next step. The field
-- `next_cut` is its mark; without it nothing is done. ARGV: ''
for _, name in ipairs(call('SMEMBERS', run .. 'policies')) do
  local theirs = run .. 'policy:' .. name .. ':'
  local step = call('HGET', theirs .. 'state', 'next_cut')
  if step then
    for _, id in ipairs(call('ZRANGE', theirs .. 'cut', 0, -1)) do call('HSET', group_key(id), 'state', 'assembled') end
    if call('EXISTS', theirs .. 'cut') == 1 then call('RENAME', theirs .. 'cut', theirs .. 'assembled') end
    local lines = call('HGETALL', theirs .. 'ledger')
    for i = 1, #lines, 2 do
      local line, renamed = string.gsub(lines[i + 1], '^(%S+ %S+ %S+ )cut:', '%1assembled:')
      if renamed == 1 then call('HSET', theirs .. 'ledger', lines[i], line) end
    end
    call('HSET', theirs .. 'state', 'next_step', step)
    call('HDEL', theirs .. 'state', 'next_cut')
    call('UNLINK', theirs .. 'bell:cut')
  end
end
return {'ok'}
