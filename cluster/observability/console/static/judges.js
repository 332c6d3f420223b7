// The judges: how long they take, how often they are right, what they cost; alarms of the monitors beside them.
import { empty, h, link, num, seconds, show } from "./page.js";
import { recent, run } from "./run.js";

/** [heading, metric, how it is shown, what is amiss]. */
const COLUMNS = [
  ["Queue", "queue_depth", num],
  ["Longest wait", "queue_age_s", seconds],
  ["Half within", "latency_p50_s", seconds],
  ["95 % within", "latency_p95_s", seconds],
  ["Already known", "hit_frac", percent],
  ["Unreadable or failed", "invalid_frac", percent, (v) => v > 0.05],
  ["Known answers right", "canary_frac", percent, (v) => v < 0.7],
  ["Agreement", "agreement_frac", percent],
  ["Same in both orders", "consistency_frac", percent, (v) => v < 0.7],
  ["Prefers the first", "first_position_frac", percent, (v) => Math.abs(v - 0.5) > 0.15],
  ["Circuits open", "open_circuits", num, (v) => v > 0],
  ["Asked", "num_asked", num],
  ["Answered", "num_answered", num],
  ["Failed", "num_failed", num, (v) => v > 0],
  ["Given up", "num_cancelled", num],
  ["In flight", "num_in_flight", num],
  ["Calls", "num_calls", num],
  ["Cost", "cost_tokens", (v) => num(v, "tokens")],
];

export function open(root) {
  root.append(h("div", { id: "judges" }));
}

export function draw(root) {
  show(root.querySelector("#judges"), h("h2", {}, "Judges"), table(), h("h2", {}, "Rewards"), ...rewards());
}

function percent(value) {
  return value === null || value === undefined ? "–" : num(Math.round(100 * value), "%");
}

/** Judges that have reported, by name: the longest known ending is what the metric is called. */
function names() {
  const found = new Set();
  for (const values of run.steps.values())
    for (const name of Object.keys(values)) {
      const match = name.match(/^judge\/(.+)_queue_depth$/);
      if (match) found.add(match[1]);
    }
  return [...found].sort();
}

function table() {
  const judges = names();
  if (!judges.length) return empty("No judge has reported. A recipe names them in [judges.NAME]; a reward asks one by judge = \"NAME\".");
  const row = (judge) =>
    h("tr", {}, h("th", {}, link({ view: "curves", filter: `judge/${judge}_` }, {}, judge)), COLUMNS.map(([, metric, form, amiss]) => cell(recent(`judge/${judge}_${metric}`, 1), form, amiss)));
  return h(
    "div",
    {},
    h("div", { className: "scroll" }, h("table", { className: "many" }, h("thead", {}, h("tr", {}, h("th", {}, "Judge"), COLUMNS.map(([title]) => h("th", { className: "number" }, title)))), h("tbody", {}, judges.map(row)))),
    h("p", { className: "muted" }, "Of one reward worker each, every five seconds; a dash is what has not been measured yet. A name leads to its curves."),
  );
}

const cell = (value, form, amiss) => h("td", { className: value !== null && amiss?.(value) ? "number failed" : "number" }, form(value));

function rewards() {
  const rows = run.status.rewards.map(({ name, weight, blocking }) => [name, weight, blocking, recent(`reward/${name}_mean`), recent(`reward/${name}_known_frac`), recent(`reward/${name}_failed_frac`), recent(`reward/${name}_agreement`), recent(`reward/${name}_sign_flip_frac`)]);
  const heads = ["Reward", "Weight", "Asked", "Mean", "Known", "Failed", "Agrees with what is trained", "Would turn the advantage"];
  const line = ([name, weight, blocking, mean, known, failed, agreement, flips]) =>
    h("tr", {}, h("th", {}, name), h("td", { className: "number" }, num(weight)), h("td", {}, blocking ? "yes" : "no"), ...[num(mean), percent(known), percent(failed), num(agreement), percent(flips)].map((text) => h("td", { className: "number" }, text)));
  return [
    h("div", { className: "scroll" }, h("table", { className: "many" }, h("thead", {}, h("tr", {}, heads.map((t, i) => h("th", { className: i === 0 || i === 2 ? "" : "number" }, t)))), h("tbody", {}, rows.map(line)))),
    h("p", { className: "muted" }, "Means of the last 10 steps. A reward of weight 0 is recorded and compared only."),
  ];
}
