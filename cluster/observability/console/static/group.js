// One group: its task, all rollouts side by side with their tokens, and every score with what stands behind it.
import { address, count, empty, get, go, h, link, num, seconds, select } from "./page.js";

const COLOURINGS = {
  advantage: "advantage",
  logprob: "log-prob when sampled",
  difference: "log-prob difference, learner − engine",
  version: "version of the weights",
  none: "nothing",
};
const SURPRISE_NATS = 4; // as dark as it gets
const LEAST_NATS = 0.01; // a difference below is the precision's: never drawn dark
const FIRST_TOKENS = 1500; // of a rollout; the others are shown on request
const VERSION_COLOURS = 7;
let shown = "";
let last = null;

export async function drawGroup(place, id) {
  if (last?.id !== id || last.state !== "trained") last = await get(`api/groups/${id.split("/").map(encodeURIComponent).join("/")}`);
  if (address().get("group") !== id) return;
  const asked = address();
  const text = JSON.stringify([last, location.search]);
  if (text === shown && place.querySelector(".group")) return;
  shown = text;
  const wanted = asked.get("colour") in COLOURINGS ? asked.get("colour") : "advantage";
  place.replaceChildren(
    h(
      "article",
      { className: "group" },
      h("p", {}, link({ group: "", colour: "", order: "", prompt: "" }, { className: "button" }, "← all groups")),
      facts(last),
      task(last.task),
      matrix(last),
      controls(last, wanted, asked),
      h("p", { className: "muted" }, "Point at a token for its log-prob, its advantage and the weights that sampled it."),
      rollouts(last, wanted, asked),
    ),
  );
}

function facts(g) {
  const lines = {
    group: g.id,
    state: g.state,
    "trained at step": num(g.step),
    "sampled from version": `${num(g.version)} (epoch ${num(g.epoch)})`,
    staleness: g.staleness === null ? "–" : count(g.staleness, "step"),
    source: g.task.source || "–",
  };
  return h("dl", { className: "facts" }, Object.entries(lines).map(([k, v]) => h("div", {}, h("dt", {}, k), h("dd", {}, v))));
}

function task(t) {
  const variants = Object.entries(t.variants);
  return h(
    "section",
    {},
    h("h2", {}, "Task ", h("small", {}, t.id)),
    variants.map(([name, messages]) => [
      variants.length > 1 ? h("h3", {}, name) : null,
      messages.map((m) => h("div", { className: "message" }, h("small", {}, m.role), h("pre", {}, m.content))),
    ]),
    h("p", {}, t.answer === null ? "This task has no reference answer." : ["Reference answer: ", h("code", {}, t.answer)]),
  );
}

/** Rewards × rollouts: where they differ, and what is unknown. */
function matrix(g) {
  const title = h("h2", {}, "Scores");
  if (!g.scores.length) return h("section", {}, title, empty("No score has arrived yet."));
  const head = h("tr", {}, h("th", {}, "Reward"), g.rollouts.map((_, i) => h("th", { className: "number" }, h("a", { href: `#rollout-${i + 1}` }, i + 1))));
  const line = (name, cells) => h("tr", {}, h("th", {}, name), cells);
  const scored = g.scores.map((s) => line(s.reward, s.rollouts.map((r) => h("td", { className: `number ${r.state}`, title: r.note ?? "" }, r.state === "scored" ? num(r.value) : r.state))));
  const mixed = g.step === null ? [] : [
    line("reward (mixed)", g.rollouts.map((r) => h("td", { className: "number" }, num(r.reward)))),
    line("advantage", g.rollouts.map((r) => h("td", { className: "number" }, num(r.advantage)))),
  ];
  return h("section", {}, title, h("div", { className: "scroll" }, h("table", { className: "matrix" }, h("thead", {}, head), h("tbody", {}, scored, mixed))));
}

function controls(g, wanted, asked) {
  const option = (name, label) => h("label", {}, h("input", { type: "checkbox", checked: asked.has(name), onchange: (e) => go({ [name]: e.target.checked }) }), ` ${label}`);
  return h(
    "section",
    {},
    h("h2", {}, "Rollouts"),
    h(
      "div",
      { className: "filters" },
      h("label", {}, "Colour tokens by ", select("colour", wanted, COLOURINGS, (v) => go({ colour: v === "advantage" ? "" : v }))),
      h("label", {}, "Order ", select("order", asked.get("order") ?? "", { "": "as sampled", reward: "highest reward first" }, (v) => go({ order: v }))),
      option("prompt", "with the prompt's tokens"),
      legend(g, wanted),
    ),
  );
}

const key = (kind, text) => h("span", { className: "key" }, h("i", { className: `swatch ${kind}` }), ` ${text}`);

function legend(g, wanted) {
  if (wanted === "advantage") {
    if (g.step === null) return h("span", { className: "muted" }, "Advantages are known once the group is in a step.");
    const most = num(largest(g, "advantage") || 1);
    return h("span", { className: "scale" }, key("below", `−${most} less likely`), key("above", `+${most} more likely`));
  }
  if (wanted === "difference") {
    if (!g.rollouts.some((r) => r.tokens.difference)) return h("span", { className: "muted" }, "What the learner gives these tokens is known once they are trained on.");
    const most = num(Math.max(LEAST_NATS, largest(g, "difference")), "nats");
    return h("span", { className: "scale" }, key("below", `−${most} less likely to the learner`), key("above", `+${most} more likely`));
  }
  if (wanted === "logprob") return h("span", { className: "scale" }, "0 nats (certain) ", h("i", { className: "swatch surprise" }), ` −${SURPRISE_NATS} nats or less (surprising)`);
  if (wanted === "version") {
    return h("span", { className: "scale" }, versions(g).map((v, i) => [h("i", { className: "swatch", style: `background:var(--c${i % VERSION_COLOURS}-soft)` }), ` ${v} `]));
  }
  return h("span");
}

const versions = (g) => [...new Set(g.rollouts.flatMap((r) => r.versions))].sort((a, b) => a.localeCompare(b, "en", { numeric: true }));

function largest(g, quantity) {
  let most = 0;
  for (const r of g.rollouts) for (const a of r.tokens[quantity] ?? []) if (a !== null && Math.abs(a) > most) most = Math.abs(a);
  return most;
}

/** token index → its background, or null. */
function painter(g, rollout, wanted) {
  const { advantage, difference, logprob, version } = rollout.tokens;
  const mix = (name, share) => `color-mix(in srgb, var(${name}) ${Math.round(100 * share)}%, transparent)`;
  if (wanted === "advantage") {
    const most = largest(g, "advantage");
    return (i) => (advantage?.[i] ? mix(advantage[i] > 0 ? "--above" : "--below", 0.1 + (0.6 * Math.abs(advantage[i])) / most) : null);
  }
  if (wanted === "difference") {
    const most = Math.max(LEAST_NATS, largest(g, "difference"));
    return (i) => (difference?.[i] ? mix(difference[i] > 0 ? "--above" : "--below", (0.7 * Math.abs(difference[i])) / most) : null);
  }
  if (wanted === "logprob") return (i) => (logprob[i] === null ? null : mix("--surprise", Math.min(1, -logprob[i] / SURPRISE_NATS) * 0.75));
  if (wanted === "version") {
    const place = rollout.versions.map((v) => versions(g).indexOf(v));
    return (i) => (version[i] < 0 ? null : `var(--c${place[version[i]] % VERSION_COLOURS}-soft)`);
  }
  return () => null;
}

function rollouts(g, wanted, asked) {
  const order = g.rollouts.map((_, i) => i);
  if (asked.get("order") === "reward") order.sort((a, b) => (g.rollouts[b].reward ?? -Infinity) - (g.rollouts[a].reward ?? -Infinity));
  const cards = order.map((i) => card(g, i, wanted, asked.has("prompt")));
  return h("div", { className: "rollouts" }, cards);
}

function card(g, i, wanted, withPrompt) {
  const r = g.rollouts[i];
  const ended = r.finish === "length" ? h("span", { className: "failed" }, "cut short") : null;
  const credit = g.step !== null && r.reward === null ? "left out of the step" : `advantage ${num(r.advantage)}`;
  const numbers = [`reward ${num(r.reward)}`, credit, count(r.num_tokens, "token")];
  return h(
    "section",
    { className: "rollout", id: `rollout-${i + 1}` },
    h("h3", {}, `Rollout ${i + 1} `, h("small", {}, numbers.join(" · "), " ", ended)),
    tokens(g, r, wanted, withPrompt),
    r.answer === null ? null : h("p", {}, "Answer found: ", h("code", {}, r.answer)),
    r.events.length ? h("details", {}, h("summary", {}, `${num(r.events.length)} events`), h("ul", {}, r.events.map((e) => h("li", {}, `turn ${e.turn}: ${e.text} (seen ${num(e.count)}×)`)))) : null,
    h("ul", { className: "scores" }, g.scores.map((s) => score(s, s.rollouts[i]))),
  );
}

function score(s, r) {
  const behind = [
    r.judge ? `by ${r.judge}${r.model ? ` (${r.model})` : ""}` : null,
    `version ${s.version}`,
    r.latency_s ? seconds(r.latency_s) : null,
    r.attempt > 1 ? `attempt ${r.attempt}` : null,
    r.cost_tokens ? num(r.cost_tokens, "tokens") : null,
    r.prompt_hash ? `prompt ${r.prompt_hash.slice(0, 8)}` : null,
  ].filter(Boolean);
  const verdict = !r.note ? null : r.note.length < 80 ? h("p", { className: "verdict" }, r.note) : h("details", {}, h("summary", {}, "raw verdict"), h("pre", {}, r.note));
  return h("li", {}, h("b", {}, s.reward), " ", h("span", { className: r.state }, r.state === "scored" ? num(r.value) : r.state), h("small", {}, ` ${behind.join(" · ")}`), verdict);
}

function tokens(g, r, wanted, withPrompt) {
  const { text, chosen, logprob, difference, advantage, version } = r.tokens;
  const paint = painter(g, r, wanted);
  const indices = text.map((_, i) => i).filter((i) => withPrompt || chosen[i]);
  const place = h("pre", { className: "tokens" });
  const add = (some) => place.append(...some.map((i) => {
    const colour = paint(i);
    return h("span", { className: chosen[i] ? "" : "given", "data-i": i, style: colour ? `background:${colour}` : null }, visible(text[i]));
  }));
  add(indices.slice(0, FIRST_TOKENS));
  const rest = indices.slice(FIRST_TOKENS);
  if (rest.length) {
    const more = h("button", { type: "button", onclick: () => { more.remove(); add(rest); } }, `show ${num(rest.length)} more tokens`);
    place.append(more);
  }
  if (!indices.length) place.append(h("span", { className: "muted" }, "no token was sampled"));
  place.addEventListener("mouseover", ({ target }) => {
    const i = target.dataset.i;
    if (i === undefined || target.title) return;
    const weights = version[i] < 0 ? "not sampled" : `weights ${r.versions[version[i]]}`;
    const apart = difference && difference[i] !== null ? ` (learner ${num(difference[i], "nats")} apart)` : "";
    target.title = chosen[i] ? `log-prob ${num(logprob[i], "nats")}${apart} · advantage ${num(advantage?.[i])} · ${weights}` : "given, not sampled";
  });
  return place;
}

/** White space that would hide a token's end is drawn as a sign. */
const visible = (text) => text.replaceAll("\n", "⏎\n").replaceAll("\t", "⇥\t");
