// The frame: which view is open, and when it looks again.
import { address, changed, h, num } from "./page.js";
import { refresh, run, stepsTaken } from "./run.js";
import * as alarms from "./alarms.js";
import * as curves from "./curves.js";
import * as groups from "./groups.js";
import * as judges from "./judges.js";
import * as pipeline from "./pipeline.js";
import * as recipe from "./recipe.js";
import * as workers from "./workers.js";

const EVERY_MS = 2000;
const VIEWS = {
  pipeline: ["Pipeline", pipeline],
  curves: ["Curves", curves],
  groups: ["Groups", groups],
  judges: ["Judges", judges],
  alarms: ["Alarms", alarms],
  workers: ["Workers", workers],
  recipe: ["Recipe", recipe],
};
const root = document.getElementById("view");
let open = null;

function chosen() {
  const name = address().get("view");
  return name in VIEWS ? name : "pipeline";
}

/** Draw the open view, a new one if the address names another. */
async function draw() {
  const name = chosen();
  if (name !== open) {
    open = name;
    root.replaceChildren();
    root.className = name;
    const links = Object.entries(VIEWS).map(([key, [title]]) =>
      // Filters belong to their view, so a change of view leaves them behind.
      h("a", { href: changed({ view: key }, ""), "data-within": "1", "aria-current": key === name ? "page" : null }, title),
    );
    document.getElementById("nav").replaceChildren(...links);
    VIEWS[name][1].open(root);
  }
  await VIEWS[name][1].draw(root);
}

function head() {
  const { name, live, steps, summary } = run.status;
  const pill = document.getElementById("pill");
  document.title = `${name} · Kanabo`;
  document.getElementById("name").textContent = name;
  pill.textContent = live ? "running" : summary ? "ended" : "not running";
  pill.className = live ? "pill on" : "pill";
  document.getElementById("progress").textContent = `step ${num(stepsTaken())} of ${num(steps)}`;
}

function problem(error) {
  const place = document.getElementById("problem");
  place.hidden = !error;
  place.textContent = !error
    ? ""
    : error instanceof TypeError && /fetch|network/i.test(error.message)
      ? "The run does not answer: it has ended, or the connection is gone. What you see is the last that was known."
      : error.message;
}

async function look() {
  try {
    await refresh();
    head();
    await draw();
    problem(null);
  } catch (error) {
    problem(error);
  }
}

async function poll() {
  if (!document.hidden) await look();
  setTimeout(poll, EVERY_MS);
}

const redraw = () => draw().then(() => problem(null), problem);
addEventListener("popstate", redraw);
addEventListener("navigated", redraw);
document.addEventListener("click", (event) => {
  const within = event.target.closest("a[data-within]");
  if (!within || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  history.pushState(null, "", within.getAttribute("href"));
  redraw();
});
poll();
