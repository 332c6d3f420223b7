// Curves of everything in metrics.jsonl, over optimizer steps; drawn by uPlot.
import { address, empty, go, h, num, select } from "./page.js";
import { run, steps } from "./run.js";

/** [title, unit, metrics: [name, label] or a pattern whose group is the label, options]. */
const CHARTS = [
  ["Reward, by component", "", [["reward/mean", "mixed"], /^reward\/(.+)_mean$/]],
  ["Evaluation accuracy", "", [["eval/accuracy", "accuracy"]]],
  ["Rollout length", "tokens", [["rollout/length_tokens", "mean"]]],
  ["Rollouts cut short", "share", [["rollout/truncated_frac", "cut short"]]],
  ["Observations cut to the context", "observations", [["rollout/num_cut_observations", "cut"]]],
  ["Entropy of the policy", "nats a token", [["loss/entropy_nats", "entropy"]]],
  ["Log-prob difference: engine against learner", "nats", [/^policy\/logprob_diff_(.+)_nats$/], { log: true }],
  ["Staleness", "steps", [["policy/staleness_steps", "mean"], ["policy/staleness_max_steps", "max"]]],
  ["Known rewards, useless groups", "share", [["reward/known_frac", "known rewards"], ["reward/zero_variance_frac", "groups of equal rewards"]]],
  ["Sampling speed", "tokens/s", [["rollout/tokens_per_s", "sampled"]]],
  ["Learner's time", "s a step", [["learner/step_s", "whole step"], ["learner/wait_s", "waiting"], ["learner/optimize_s", "optimizing"], ["learner/publish_s", "publishing"]]],
  ["Reward models: shares", "share", [/^reward_model\/(.+_(?:agreement|coverage|known|good))_frac$/]],
  ["Reward models: labels and versions", "", [/^reward_model\/(.+_(?:num_labels|num_waiting|version))$/], { log: true }],
  ["Gradient norm", "", [["learner/grad_norm", "norm"]]],
  ["Groups dropped", "groups a step", [/^buffer\/num_dropped_(.+)$/]],
];
const COLOURS = 7;
let charts = [];
let drawn = "";
let root = null;

export function open(element) {
  root = element;
  drawn = "";
  root.append(h("form", { className: "filters", onsubmit: (e) => e.preventDefault() }), h("div", { className: "charts" }));
}

export function draw() {
  const names = [...new Set([...run.steps.values()].flatMap(Object.keys))].sort();
  const asked = address();
  const wanted = plan(names, asked.get("filter") ?? "", asked.has("all"));
  const smooth = Number(asked.get("smooth") ?? 1) || 1;
  const shape = JSON.stringify([wanted, smooth]);
  if (shape !== drawn) {
    drawn = shape;
    rebuild(wanted, smooth, names.length);
  } else {
    for (const { plot, series } of charts) plot.setData(data(series, smooth));
  }
}

/** What to draw: {title, unit, series: [{name, label}], options}. */
function plan(names, filter, all) {
  const main = CHARTS.map(([title, unit, patterns, options]) => ({
    title,
    unit,
    options: options ?? {},
    series: patterns.flatMap((p) => matching(names, p, patterns)),
  })).filter((c) => c.series.length);
  if (!all && !filter) return main;
  const single = names.map((name) => ({ title: name, unit: run.meanings[name]?.unit ?? "", options: {}, series: [{ name, label: name.split("/")[1] }] }));
  if (filter) return [...main, ...single].filter((c) => [c.title, ...c.series.map((s) => s.name)].join(" ").toLowerCase().includes(filter.toLowerCase()));
  const shown = new Set(main.flatMap((c) => c.series.map((s) => s.name)));
  return [...main, ...single.filter((c) => !shown.has(c.title))];
}

function matching(names, pattern, others) {
  if (Array.isArray(pattern)) return names.includes(pattern[0]) ? [{ name: pattern[0], label: pattern[1] }] : [];
  const named = others.map((o) => o[0]);
  return names.filter((n) => pattern.test(n) && !named.includes(n)).map((n) => ({ name: n, label: n.match(pattern)[1] }));
}

function rebuild(wanted, smooth, count) {
  const [form, place] = root.children;
  if (!form.contains(document.activeElement) || !form.children.length) form.replaceChildren(...controls(smooth, count));
  for (const { plot } of charts) plot.destroy();
  const sentence = count
    ? "No metric has such a name. Names are area/quantity_unit, such as learner/grad_norm."
    : "Nothing has been recorded yet. The first curve begins when the first step is done.";
  place.replaceChildren(...(wanted.length ? [] : [empty(sentence)]));
  charts = wanted.map((chart) => one(chart, smooth, place));
}

function controls(smooth, count) {
  const asked = address();
  return [
    h("label", {}, "Find ", h("input", { type: "search", value: asked.get("filter") ?? "", placeholder: "part of a metric's name", oninput: (e) => go({ filter: e.target.value }, { replace: true }) })),
    h("label", {}, "Average over ", select("smooth", String(smooth), { 1: "1 step", 5: "5 steps", 20: "20 steps", 100: "100 steps" }, (v) => go({ smooth: v === "1" ? "" : v }))),
    h("label", {}, h("input", { type: "checkbox", checked: asked.has("all"), onchange: (e) => go({ all: e.target.checked }) }), ` all ${count} metrics`),
  ];
}

function data(series, smooth) {
  const at = steps();
  return [at, ...series.map(({ name }) => average(at, at.map((step) => run.steps.get(step)[name] ?? null), smooth))];
}

/** Mean of what is known of the last `count` steps; unknown values stay unknown. */
function average(at, values, count) {
  if (count === 1) return values;
  const window = [];
  let total = 0;
  return values.map((value, i) => {
    if (value === null) return null;
    window.push([at[i], value]);
    total += value;
    while (at[i] - window[0][0] >= count) total -= window.shift()[1];
    return total / window.length;
  });
}

const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function one({ title, unit, series, options }, smooth, place) {
  const help = series.map(({ name }) => `${name}: ${run.meanings[name]?.help || "a metric that is not declared"}`).join("\n");
  const holder = h("figure", { className: "chart" }, h("figcaption", { title: help }, title, unit ? h("small", {}, ` ${unit}`) : null));
  place.append(holder);
  const values = data(series, smooth);
  // A logarithm of 0 has no place; an exact engine may well be at 0.
  const log = options.log && values.slice(1).every((v) => v.every((x) => x === null || x > 0));
  const axis = { stroke: colour("--muted"), grid: { stroke: colour("--line"), width: 1 }, ticks: { stroke: colour("--line"), width: 1 } };
  const plot = new uPlot(
    {
      width: holder.clientWidth,
      height: 190,
      cursor: { sync: { key: "steps" }, points: { size: 6 } },
      scales: { x: { time: false }, y: log ? { distr: 3 } : { range } },
      axes: [
        { ...axis, size: 30, values: (_, at) => at.map((v) => (Number.isInteger(v) ? num(v) : "")) },
        { ...axis, size: 56, values: (_, at) => at.map((v) => (v === null ? "" : num(v))) },
      ],
      series: [
        { label: "step", value: (u, v) => num(v ?? u.data[0].at(-1)) },
        ...series.map(({ label }, i) => line(label, colour(`--c${i % COLOURS}`), values[i + 1])),
      ],
    },
    values,
    holder,
  );
  return { plot, series, holder };
}

/** What never changed is in the middle, not at the foot of 0 … 100. */
function range(_, low, high) {
  if (low === null) return [null, null];
  if (low !== high) return uPlot.rangeNum(low, high, 0.1, true);
  return low === 0 ? [0, 1] : [low - Math.abs(low) / 2, low + Math.abs(low) / 2];
}

function line(label, stroke, values) {
  const known = values.filter((v) => v !== null).length;
  return {
    label,
    stroke,
    width: 1.5,
    spanGaps: true,
    points: { show: known < 40, size: 4 },
    // Without a cursor the legend shows the latest value.
    value: (u, v, i) => num(v ?? (u.cursor.idx === null || u.cursor.idx === undefined ? u.data[i].findLast((x) => x !== null) : null)),
  };
}

new ResizeObserver(() => {
  for (const { plot, holder } of charts) {
    const width = holder.clientWidth;
    if (width && width !== plot.width) plot.setSize({ width, height: 190 });
  }
}).observe(document.getElementById("view"));
// A canvas does not follow the style sheet.
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  drawn = "";
});
