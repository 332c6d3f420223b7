// One line about a run: is it healthy, does it learn, what does it wait for.

const WINDOW = 10; // steps at either end that are compared

/** `rewards` are the means of all steps in order, `warning` the newest one that is not over. */
export function headline({ live, ended, rewards, warning, failures, waiting }) {
  const parts = live ? [health(warning, failures), learning(rewards), waiting] : [ended ? "Ended" : "Not under way", learning(rewards)];
  return `${parts.filter(Boolean).join(" · ")}.`;
}

function health(warning, failures) {
  if (warning) return `Not healthy: ${warning.replace(/\.$/, "")}`;
  return failures ? `Healthy, after ${failures} ${failures === 1 ? "restart" : "restarts"} of workers` : "Healthy";
}

/** The last steps' mean reward against the first's; a difference within two standard errors is none. */
export function learning(rewards) {
  if (rewards.length < 2 * WINDOW) return `too early to say whether it learns (${rewards.length} of ${2 * WINDOW} steps)`;
  const [early, late] = [statistics(rewards.slice(0, WINDOW)), statistics(rewards.slice(-WINDOW))];
  const difference = late.mean - early.mean;
  const noise = 2 * Math.hypot(early.error, late.error);
  const course = `reward ${early.mean.toPrecision(3)} → ${late.mean.toPrecision(3)}`;
  if (Math.abs(difference) <= noise) return `not learning: ${course}`;
  return difference > 0 ? `learning: ${course}` : `getting worse: ${course}`;
}

function statistics(values) {
  const mean = values.reduce((a, b) => a + b) / values.length;
  const variance = values.reduce((a, b) => a + (b - mean) ** 2, 0) / (values.length - 1);
  return { mean, error: Math.sqrt(variance / values.length) };
}
