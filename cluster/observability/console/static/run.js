// What the page knows of the run: polled while it is visible, by whichever view is open.
import { get } from "./page.js";

const WINDOW_S = 30; // rates are taken over so long

export const run = {
  status: null,
  /** step → everything that was recorded of it */
  steps: new Map(),
  /** metric → {unit, help}, as it is declared */
  meanings: {},
  seen: [],
};
let next = "";
let ordered = [];

export async function refresh() {
  run.status = await get("api/status");
  await readMetrics();
  const { buffer, time_s } = run.status;
  if (!buffer) return;
  const now = { time_s, claimed: buffer.counters.claimed ?? 0, version: buffer.version, epoch: buffer.epoch };
  run.seen = run.seen.filter((s) => time_s - s.time_s < WINDOW_S && s.epoch === now.epoch);
  run.seen.push(now);
}

async function readMetrics() {
  for (let more = true; more; ) {
    const answer = await get(`api/metrics?after=${next}`);
    if (answer.reset) run.steps.clear();
    Object.assign(run.meanings, answer.meanings);
    for (const { step, ...values } of answer.rows) run.steps.set(step, { ...run.steps.get(step), ...values });
    if (answer.rows.length || answer.reset) ordered = [...run.steps.keys()].sort((a, b) => a - b);
    next = answer.next;
    more = answer.more;
  }
}

/** Per second, of a counter of the buffer since this page looks; null before it has looked for a second. */
export function rate(counter) {
  const first = run.seen[0];
  const last = run.seen.at(-1);
  const spent = first ? last.time_s - first.time_s : 0;
  return spent > 1 ? (last[counter] - first[counter]) / spent : null;
}

/** Mean of a metric over the last `count` steps that have it; null if none has. */
export function recent(name, count = 10) {
  const found = [];
  for (let i = ordered.length - 1; i >= 0 && found.length < count; i--) {
    const value = run.steps.get(ordered[i])[name];
    if (value !== null && value !== undefined) found.push(value);
  }
  return found.length ? found.reduce((a, b) => a + b) / found.length : null;
}

const lastStep = () => ordered.at(-1) ?? 0;

/** Values of a metric over the steps that have it, in order. */
export const series = (name) => ordered.map((step) => run.steps.get(step)[name]).filter((value) => value !== null && value !== undefined);

/** Steps trained so far: of a live run, as the buffer has it, which every other sentence of the page is about too. */
export const stepsTaken = () => run.status.buffer?.version ?? lastStep();

/** Every step that anything was recorded of, in order. */
export const steps = () => ordered;
