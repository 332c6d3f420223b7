-- ARGV: policy, epoch, version
local refused = stale(ARGV[2])
if refused then return refused end
local version, before = tonumber(ARGV[3]), state('version')
if version <= before then return {'ok'} end
if version ~= before + 1 or version > state('next_cut') then
  return {'wrong', 'version ' .. version .. ' cannot follow ' .. before .. '; the next step to cut is ' .. state('next_cut')}
end
call('HSET', own .. 'state', 'version', version)
ring(bell('capacity'))
return {'ok'}
