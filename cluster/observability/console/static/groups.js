// The list of groups: filters, one line a group; what is opened is drawn by group.js.
import { address, empty, get, go, h, link, num, select } from "./page.js";
import { run } from "./run.js";
import { drawGroup } from "./group.js";

export const STATES = {
  leased: "being sampled",
  pending: "waiting for scores",
  ready: "ready",
  assembled: "in a step",
  trained: "trained",
};
const SORTS = {
  newest: "newest first",
  reward: "by reward",
  spread: "by spread of rewards",
  length: "by length",
  unknown: "by unknown scores",
};
const FILTERS = ["state", "step", "text", "min_reward", "max_reward", "sort", "ascending", "page"];
let shown = "";
let asking = 0;

export function open(root) {
  shown = "";
  root.append(h("form", { className: "filters", onsubmit: (e) => e.preventDefault() }), h("div", { id: "found" }));
}

export async function draw(root) {
  const [form, place] = root.children;
  const asked = address();
  const id = asked.get("group");
  form.hidden = Boolean(id);
  if (id) return drawGroup(place, id);
  const query = new URLSearchParams(FILTERS.flatMap((f) => (asked.get(f) ? [[f, asked.get(f)]] : [])));
  const ticket = ++asking;
  const answer = await get(`api/groups?${query}`);
  if (ticket !== asking) return; // a later question is under way: this answer is old
  if (!form.children.length) form.append(...controls(asked));
  keep(form, asked);
  const text = JSON.stringify([answer, location.search]);
  if (text === shown && place.querySelector(".list")) return;
  shown = text;
  place.replaceChildren(...list(answer, asked));
}

const set = (changes, options) => go({ page: "", ...changes }, options);

function controls(asked) {
  const field = (name, label, properties) =>
    h("label", {}, `${label} `, h("input", { name, value: asked.get(name) ?? "", oninput: (e) => set({ [name]: e.target.value }, { replace: true }), ...properties }));
  return [
    field("text", "Task", { type: "search", placeholder: "text or id" }),
    field("step", "Step", { type: "number", min: 1, className: "short" }),
    field("min_reward", "Reward from", { type: "number", step: "any", className: "short" }),
    field("max_reward", "to", { type: "number", step: "any", className: "short" }),
    h("label", {}, "Order ", select("sort", asked.get("sort") ?? "newest", SORTS, (v) => set({ sort: v === "newest" ? "" : v }))),
    h("label", {}, h("input", { name: "ascending", type: "checkbox", checked: asked.has("ascending"), onchange: (e) => set({ ascending: e.target.checked }) }), " lowest first"),
    link({ view: "groups", ...Object.fromEntries(FILTERS.map((f) => [f, ""])) }, { className: "button" }, "Clear"),
  ];
}

/** The fields follow the address (back, forward, a link), but not while somebody types. */
function keep(form, asked) {
  for (const field of form.elements) {
    if (field === document.activeElement) continue;
    if (field.type === "checkbox") field.checked = asked.has(field.name);
    else field.value = asked.get(field.name) ?? (field.name === "sort" ? "newest" : "");
  }
}

function list(answer, asked) {
  const { groups, total, states, steps } = answer;
  const all = Object.values(states).reduce((a, b) => a + b, 0);
  const chip = (state, text, count) =>
    link({ state, page: "" }, { className: "chip", "aria-current": (asked.get("state") ?? "") === state ? "true" : null }, `${text} `, h("b", {}, num(count)));
  const chips = h("p", { className: "chips" }, chip("", "all", all), Object.entries(STATES).map(([s, text]) => (states[s] || asked.get("state") === s ? chip(s, text, states[s] ?? 0) : null)));
  const note = [
    steps ? `TrainedRollouts groups are kept from step ${num(steps[0])} to ${num(steps[1])} (at most ${num(run.status.archived_groups)}).` : "",
    answer.unread ? `${num(answer.unread)} are not read yet; filters do not see them.` : "",
  ].join(" ");
  if (!all) return [empty("No group has been sampled yet, or none is kept (tracking.archived_groups = 0).")];
  if (!total) return [chips, empty("No group matches these filters.")];
  const range = span(groups);
  return [chips, h("p", { className: "muted" }, note), table(groups, range), pager(answer)];
}

function table(groups, range) {
  const heads = ["Step", "State", "Task", "Rewards of its rollouts", "Mean", "Spread", "Length", "Unknown"];
  const titles = { Spread: "Standard deviation of the rewards; 0 teaches nothing", Length: "Tokens, mean over the rollouts", Unknown: "Scores that failed or abstained" };
  const head = h("tr", {}, heads.map((t) => h("th", { title: titles[t] ?? "", className: ["Task", "State", "Rewards of its rollouts"].includes(t) ? "" : "number" }, t)));
  return h("div", { className: "scroll" }, h("table", { className: "list" }, h("thead", {}, head), h("tbody", {}, groups.map((g) => row(g, range)))));
}

function row(g, range) {
  const what = g.prompt ?? (g.state === "leased" ? `being sampled by ${g.worker}` : "not read yet");
  const name = g.state === "leased" ? h("span", { className: "muted" }, what) : link({ group: g.id }, { title: `${g.task ?? ""} · ${g.id}` }, what || "(empty prompt)");
  const cell = (value, unit = "") => h("td", { className: "number" }, num(value, unit));
  return h(
    "tr",
    {},
    cell(g.step),
    h("td", {}, h("span", { className: `state ${g.state}`, title: STATES[g.state] }, STATES[g.state])),
    h("td", { className: "task" }, name),
    h("td", {}, marks(g.rewards ?? [], range, g.means)),
    cell(g.reward),
    cell(g.spread),
    cell(g.length_tokens),
    cell(g.unknown),
  );
}

/** Lowest and highest reward on the page: what the marks' colour is relative to. */
function span(groups) {
  const known = groups.flatMap((g) => g.rewards ?? []).filter((r) => r !== null);
  return [Math.min(0, ...known), Math.max(...known, 1e-9)];
}

function marks(rewards, [low, high], means) {
  if (!rewards.length) {
    const scores = Object.entries(means ?? {}).map(([name, mean]) => `${name} ${num(mean)}`);
    return h("span", { className: "muted" }, scores.length ? `mean scores: ${scores.join(", ")}` : "–");
  }
  const one = (r) =>
    r === null
      ? h("i", { className: "mark unknown", title: "left out: its reward is unknown" })
      : h("i", { className: "mark", style: `--fill:${Math.round((100 * (r - low)) / (high - low))}%`, title: `reward ${num(r)}` });
  return h("span", { className: "marks" }, rewards.map(one));
}

function pager({ total, page, per_page }) {
  const last = Math.ceil(total / per_page);
  const first = (page - 1) * per_page + 1;
  return h(
    "p",
    { className: "pager" },
    page > 1 ? link({ page: page - 1 }, { className: "button" }, "Previous") : null,
    ` ${num(first)} to ${num(Math.min(total, page * per_page))} of ${num(total)} groups `,
    page < last ? link({ page: page + 1 }, { className: "button" }, "Next") : null,
  );
}

