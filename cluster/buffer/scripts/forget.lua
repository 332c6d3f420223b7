-- What every learner has trained leaves although no checkpoint has it: a resume from before is a roll-back.
-- ARGV: policy, epoch, step
local refused = stale(ARGV[2])
if refused then return refused end
trim_before(math.min(tonumber(ARGV[3]), state('version')), {})
return {'ok'}
