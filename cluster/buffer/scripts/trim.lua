-- The manifest of a dead epoch trims nothing: resuming has done it already, or has rolled back past it. Says whether
-- there is more to trim. ARGV: policy, manifest, how many groups at most
local manifest = cmsgpack.unpack(ARGV[2])
if manifest.epoch ~= state('epoch') then
  count('refused_stale_epoch')
  return {'ok', 0}
end
trim_before(manifest.step, manifest.trained, ARGV[3])
return {'ok', math.min(1, call('ZCOUNT', own .. 'assembled', '-inf', '(' .. manifest.step))}
