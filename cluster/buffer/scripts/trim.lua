-- The manifest of a dead epoch trims nothing: resuming has done it already, or has rolled back past it.
-- ARGV: policy, manifest
local manifest = cmsgpack.unpack(ARGV[2])
if manifest.epoch ~= state('epoch') then
  count('refused_stale_epoch')
  return {'ok'}
end
trim_before(manifest.step, manifest.trained)
return {'ok'}
