// What the monitors have said, newest first.
import { empty, get, h, link, num, show } from "./page.js";

export function open(root) {
  root.append(h("div", { id: "alarms" }));
}

export async function draw(root) {
  const { alarms, monitors } = await get("api/alarms");
  const watched = monitors.map((m) => `${m.use} (${{ warn: "says so", stop: "ends the run", rollback: "ends the run and goes back" }[m.on_alarm] ?? m.on_alarm})`);
  const about = watched.length
    ? `Watching: ${watched.join(", ")}.`
    : "No monitor watches this run. Add [[monitors]] use = \"collapse\" to its recipe: with a reward that nobody checks, you want one.";
  show(root.querySelector("#alarms"), h("h2", {}, "Alarms"), h("p", { className: "muted" }, about), list(alarms, watched.length));
}

function list(alarms, some) {
  if (!alarms.length) return some ? empty("None so far.") : null;
  const one = (a) =>
    h("section", { className: "rollout" }, h("h3", { className: "failed" }, `${a.monitor} at step ${num(a.step)}`), h("p", {}, a.message), h("p", { className: "muted" }, "Given away by ", link({ view: "curves", filter: a.metric }, {}, a.metric), `. Nothing was amiss until step ${num(a.good)}.`));
  return h("div", { className: "rollouts" }, alarms.toReversed().map(one));
}
