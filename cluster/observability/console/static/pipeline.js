// The pipeline: how many groups are where, how fast they move, and what waits for what.
import { count, empty, h, link, num, seconds, show } from "./page.js";
import { headline } from "./headline.js";
import { rate, recent, run, series, stepsTaken } from "./run.js";

const SILENT_S = 12; // actors are asked every 5 s

export function open(root) {
  root.append(...["says", "tiles", "pipeline", "where", "time", "actors"].map((id) => h("section", { id, className: id })));
}

export function draw(root) {
  const part = (id) => root.querySelector(`#${id}`);
  show(part("says"), ...says());
  show(part("tiles"), ...tiles());
  show(part("pipeline"), h("h2", {}, "The pipeline"), h("ol", { className: "boxes" }, boxes().map(box)));
  show(part("where"), ...where());
  show(part("time"), ...time());
  show(part("actors"), ...actors());
}

/** Which side of the pipeline the other waits for; null before there are steps. */
function slowSide() {
  const [waited, whole] = [recent("learner/wait_s"), recent("learner/step_s")];
  return whole ? { frac: waited / whole, waited, whole } : null;
}

function says() {
  const { live, buffer, standing, summary } = run.status;
  const first = h("p", { className: "sentence" }, headline({
    live, ended: Boolean(summary), rewards: series("reward/mean"), warning: standing?.warning, failures: standing?.failures, waiting: standing?.waiting,
  }));
  if (!live) {
    const text = summary ? "This run has ended. What it left is shown." : "This run is not under way. What it left is shown.";
    return [first, h("p", {}, text), summary ? ending(summary) : null];
  }
  const lines = [first];
  const oldest = buffer.oldest;
  if (oldest) {
    const who = oldest.worker ? ` (${oldest.worker})` : "";
    const due = oldest.deadline_s > 0 ? `; its deadline is in ${seconds(oldest.deadline_s)}` : "";
    lines.push(h("p", {}, `The oldest unfinished group, ${oldest.id}, waits for ${oldest.waits_for}${who}${due}.`));
  }
  const slow = slowSide();
  if (slow) {
    const share = percent(slow.frac);
    const verdict =
      slow.frac > 0.5
        ? "sampling and scoring are the slow side: more rollout workers would help"
        : slow.frac > 0.1
          ? "the two sides are about even"
          : "the learner is the slow side: more rollout workers would not help";
    lines.push(h("p", { className: "muted" }, `Over the last 10 steps the learner waited ${share} of its time for groups; ${verdict}.`));
  }
  return lines;
}

function ending(summary) {
  const shown = Object.entries(summary).filter(([, v]) => v !== null && v !== "" && typeof v !== "object");
  return h("dl", { className: "facts" }, shown.map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, typeof v === "number" ? num(v) : String(v)))));
}

function tiles() {
  const bound = run.status.max_staleness;
  const logprob_diff = recent("policy/logprob_diff_mean_nats", 1);
  return [
    ["Reward", num(recent("reward/mean")), "mean of the last 10 steps"],
    ["Accuracy", num(recent("eval/accuracy", 1)), "evaluation tasks, last evaluation"],
    ["Sampling", num(recent("rollout/tokens_per_s"), "tokens/s"), "all rollout workers"],
    ["Training", num(ratio("learner/tokens", "learner/step_s"), "tokens/s"), "all learner ranks"],
    ["Staleness", count(recent("policy/staleness_steps"), "step"), `mean; never above ${bound}`],
    ["Log-prob difference", num(logprob_diff, "nats"), logprob_diff === null ? "engine against learner: not probed yet" : "engine against learner, last probe"],
  ].map(([title, value, note]) => h("div", { className: "tile" }, h("h3", {}, title), h("b", {}, value), h("small", {}, note)));
}

function ratio(above, below) {
  const [a, b] = [recent(above), recent(below)];
  return a !== null && b ? a / b : null;
}

/** [verb, big number, what it counts, further line, is the pipeline held up here]; no number for what only a running run knows. */
function boxes() {
  const { groups_per_step: wanted, steps, max_staleness, summary } = run.status;
  const { groups = {}, counters = {}, version } = run.status.buffer ?? {};
  const claimed = counters.claimed ?? summary?.groups_claimed;
  const slow = slowSide();
  const scoring = slow && slow.frac > 0.5 && (groups.pending ?? 0) > (groups.leased ?? 0);
  const sampling = slow && slow.frac > 0.5 && !scoring;
  return [
    ["claim", known(claimed), "groups claimed so far", run.status.live ? num(rate("claimed"), "groups/s") : ""],
    ["sample", known(groups.leased), "groups being sampled", num(recent("rollout/tokens_per_s"), "tokens/s"), sampling],
    ["put", known(sum(groups.pending, groups.ready, groups.assembled)), "groups stored, not yet trained", `${num(recent("rollout/length_tokens"))} tokens a rollout`],
    ["score", known(groups.pending), "groups wait for scores", `rewards known: ${percent(recent("reward/known_frac"))}`, scoring],
    ["assemble", known(groups.ready) && `${num(groups.ready)} of ${num(wanted)}`, "groups ready for the next step", `learner waited ${took("learner/wait_s")} a step`],
    ["step", `${num(stepsTaken())} of ${num(steps)}`, "optimizer steps", `${took("learner/optimize_s")} each`, slow && slow.frac <= 0.1],
    ["publish", took("learner/publish_s"), "to hand over the weights", `engines pause ${took("weights/pause_s")}`],
    ["release", known(version), "is the version that new groups start with", `staleness ≤ ${num(max_staleness)}`],
  ];
}

const known = (value) => (value === null || value === undefined ? null : num(value));
const took = (name) => (recent(name) === null ? "–" : seconds(recent(name)));
const sum = (...values) => (values.some((v) => v === undefined) ? null : values.reduce((a, b) => a + b));
const percent = (value) => (value === null ? "–" : num(Math.round(100 * value), "%"));

function box([verb, amount, what, more, slow]) {
  const label = slow ? h("span", { className: "slow" }, "slowest") : null;
  return h("li", { className: slow ? "box held" : "box" }, h("h3", {}, verb, label), amount && [h("b", {}, amount), h("span", {}, what)], h("small", {}, more));
}

const STATES = [
  ["leased", "being sampled"],
  ["pending", "waiting for scores"],
  ["ready", "ready to train"],
  ["assembled", "in the step under way"],
];

function where() {
  const { groups, counters = {} } = run.status.buffer ?? {};
  const title = h("h2", {}, "Where the groups are");
  if (!groups) return [title, empty("Only a running run has groups under way. Trained ones are under Groups.")];
  const shown = STATES.map(([state, text]) => ({ state, text, count: groups[state] }));
  const extra = [
    groups.requeued ? `${num(groups.requeued)} tasks are first in the queue again, after a worker or a lease was lost.` : "",
    counters.unreadable ? `${num(counters.unreadable)} groups could not be read and were left out; their tasks are sampled again.` : "",
    counters.condemned ? `${num(counters.condemned)} times a reward ended two workers over the same group, and was failed for that group.` : "",
    groups.trained_untrimmed ? `${num(groups.trained_untrimmed)} trained groups stay in Redis until the next checkpoint.` : "",
  ].filter(Boolean);
  return [title, bar(shown.map((s) => ({ ...s, href: s.state })), "groups"), ...extra.map((t) => h("p", { className: "muted" }, t))];
}

/** A stacked bar with its legend; zero parts stay in the legend. */
function bar(parts, unit) {
  const whole = parts.reduce((a, p) => a + p.count, 0); // shares: a sum of flex-grow below 1 would not fill the bar
  const piece = (p, i) => h("span", { className: `part s${i}`, style: `flex-grow:${(100 * p.count) / whole}`, title: `${p.text}: ${num(p.count, unit)}` });
  const entry = (p, i) => {
    const inside = [h("i", { className: `dot s${i}` }), `${p.text} `, h("b", {}, num(p.count, unit))];
    return h("li", {}, p.href ? link({ view: "groups", state: p.href }, {}, ...inside) : h("span", {}, ...inside));
  };
  return h("div", {}, h("div", { className: "bar" }, whole ? parts.map((p, i) => (p.count > 0 ? piece(p, i) : null)) : null), h("ul", { className: "legend" }, parts.map(entry)));
}

function time() {
  const title = h("h2", {}, "Where the learner's time goes");
  const names = { wait: "learner/wait_s", assemble: "learner/assemble_s", pack: "learner/pack_s", optimize: "learner/optimize_s", publish: "learner/publish_s" };
  const of = Object.fromEntries(Object.entries(names).map(([key, name]) => [key, recent(name) ?? 0]));
  if (recent("learner/step_s") === null) return [title, empty("No step has been taken yet.")];
  const parts = [
    ["waiting for groups", of.wait],
    ["deciding the batch", Math.max(0, of.assemble - of.wait)], // the time to assemble includes the wait
    ["packing", of.pack],
    ["gradients and optimizer", of.optimize],
    ["publishing weights", of.publish],
  ].map(([text, spent]) => ({ text, count: Number(spent.toPrecision(2)) }));
  return [title, bar(parts, "s"), h("p", { className: "muted" }, `${num(recent("learner/step_s"), "s")} a step, mean of the last 10.`)];
}

function actors() {
  const list = run.status.standing?.actors;
  const title = h("h2", {}, "What every worker does");
  if (!list) return [];
  if (!list.length) return [title, empty("No actor is up yet.")];
  return [title, h("dl", { className: "says-list" }, list.map((a) => h("div", {}, h("dt", {}, a.name), h("dd", {}, a.says, a.answered_s > SILENT_S ? ` (${seconds(Math.round(a.answered_s))} ago)` : null))))];
}
