// Who works: every actor, what it does, whether it answers.
import { empty, get, h, link, num, post, seconds, show } from "./page.js";
import { rate, recent, run } from "./run.js";

/** By kind of role, in this order; a role is a kind, or `kind:NAME`. */
const KINDS = {
  rollout: ["Rollout workers", "claim tasks and sample groups"],
  reward: ["Reward workers", "score stored groups"],
  learner: ["Learner ranks", "take the optimizer's steps"],
  judge: ["Judge", "answers what rewards ask"],
  scorer: ["Scorer", "reads rollouts back"],
  generator: ["Generator", "adds rollouts to every group"],
  reward_model: ["Reward models", "learns from a judge's labels"],
};
const SILENT_S = 12; // they are asked every 5 s

export function open(root) {
  root.append(h("div", { id: "workers" }));
}

export async function draw(root) {
  const place = root.querySelector("#workers");
  const { standing, live } = run.status;
  const trace = h("p", { className: "muted" }, h("a", { href: "api/trace", download: "trace.json" }, "What every worker did in the last ten minutes"), ", to open at ui.perfetto.dev");
  if (!live) return show(place, empty("Workers are there while a run is under way. This one is not."), trace);
  const { leased, staff } = await get("api/workers");
  const { actors } = standing;
  const roles = [...new Set(["rollout", "reward", "learner", ...Object.keys(staff), ...actors.map((a) => roleOf(a.name))])].sort(inOrder);
  const parts = roles.map((role) => section(role, actors, leased, staff[role]));
  const lost = `${num(standing.failures)} of ${num(standing.allowed_failures)} allowed failures of infrastructure have happened: a worker, an engine or Redis died and was replaced.`;
  show(place, parts, h("p", { className: "muted" }, lost), trace);
}

/** Names are `ROLE-number`. */
const roleOf = (name) => name.slice(0, name.lastIndexOf("-"));
const place = (role) => Object.keys(KINDS).indexOf(role.split(":")[0]);
const inOrder = (a, b) => place(a) - place(b) || a.localeCompare(b, "en");

function section(role, actors, leased, staffed) {
  const [kind, name] = role.split(":");
  const [title, what] = KINDS[kind] ?? [kind, ""];
  const mine = actors.filter((a) => roleOf(a.name) === role);
  const head = h("h2", {}, name ? `${title} · ${name} ` : `${title} `, h("small", {}, `${num(mine.length)}, ${what}`));
  if (!mine.length) return h("section", {}, head, empty(role === "learner" ? "The learner starts when all engines are up." : "None is up yet."));
  const columns = ["Name", "State", ...(role === "rollout" ? ["Groups in hand"] : []), "What it does", "Last answer"];
  const row = (a) =>
    h(
      "tr",
      {},
      h("th", {}, a.name),
      h("td", {}, health(a)),
      role === "rollout" ? h("td", { className: "number" }, num(leased[a.name] ?? 0)) : null,
      h("td", { className: "does" }, a.says),
      h("td", { className: "number" }, a.answered_s === null ? "–" : `${seconds(Math.round(a.answered_s))} ago`),
    );
  const table = h("table", {}, h("thead", {}, h("tr", {}, columns.map((c) => h("th", {}, c)))), h("tbody", {}, mine.map(row)));
  return h("section", {}, head, together(role), staffed ? scale(role, staffed) : null, h("div", { className: "scroll" }, table));
}

function health({ answered_s }) {
  if (answered_s === null) return h("span", { className: "state pending" }, "starting");
  return answered_s > SILENT_S ? h("span", { className: "state failed" }, "silent") : h("span", { className: "state ready" }, "answers");
}

/** Fewer or more of a role, from now on. The wish is kept with the run. */
function scale(role, { up, wished }) {
  const wish = async (count) => {
    await post("api/scale", { role, count });
    dispatchEvent(new Event("navigated"));
  };
  const button = (text, count, title) => h("button", { type: "button", title, disabled: count < 1, onclick: () => wish(count) }, text);
  const state = wished === up ? `${num(up)} up` : `${num(up)} up, ${num(wished)} wished for`;
  return h("p", { className: "scale" }, button("−", wished - 1, `let one of ${role} finish and leave`), ` ${state} `, button("+", wished + 1, `let one more of ${role} join`));
}

function together(role) {
  const lines = {
    rollout: [`Together ${num(recent("rollout/tokens_per_s"), "tokens/s")}, ${num(rate("claimed"), "groups/s")} claimed.`],
    reward: [`${num(run.status.buffer.groups.pending)} groups wait for scores.`],
    learner: [`${num(recent("learner/step_s"), "s")} a step, of which ${num(recent("learner/wait_s"), "s")} waiting for groups.`],
  };
  if (!lines[role]) return null;
  return h("p", { className: "muted" }, lines[role], role === "reward" ? [" ", link({ view: "groups", state: "pending" }, {}, "See them")] : null);
}
