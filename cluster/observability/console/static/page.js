// What every view uses: elements, the address, numbers.

/** An element: h("a", {href}, "text", child, …); properties that begin "on" are listeners, null children are left out. */
export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && name !== "list" && name !== "style") element[name] = value;
    else if (value !== null && value !== undefined && value !== false) element.setAttribute(name, value);
  }
  element.append(...children.flat(Infinity).filter((c) => c !== null && c !== undefined));
  return element;
}

/** The view, its filters and what is open: all of it is in the address. */
export const address = () => new URLSearchParams(location.search);

/** The address with some parameters changed; null or "" removes one. */
export function changed(changes, from = address()) {
  const next = new URLSearchParams(from);
  for (const [name, value] of Object.entries(changes)) {
    if (value === null || value === undefined || value === "" || value === false) next.delete(name);
    else next.set(name, value === true ? "1" : value);
  }
  return `?${next}`;
}

export function go(changes, { replace = false } = {}) {
  history[replace ? "replaceState" : "pushState"](null, "", changed(changes));
  dispatchEvent(new Event("navigated"));
}

/** A link within the page. */
export function link(changes, properties, ...children) {
  return h("a", { href: changed(changes), "data-within": "1", ...properties }, ...children);
}

export const get = (path) => ask(path, { cache: "no-store" });

/** Change something. The header is what a foreign page cannot send. */
export const post = (path, body) =>
  ask(path, { method: "POST", headers: { "Content-Type": "application/json", "X-Kanabo": "console" }, body: JSON.stringify(body) });

async function ask(path, options) {
  const answer = await fetch(path, options);
  if (answer.ok) return answer.json();
  const text = await answer.text();
  let said = text;
  try {
    said = JSON.parse(text).error ?? text;
  } catch {
    // plain text, as it is
  }
  throw new Error(said || `${path} was answered with ${answer.status}`);
}

const whole = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });

/** A number for people; what is not known is a dash, never 0. */
export function num(value, unit = "") {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  let text;
  if (Number.isInteger(value) || size >= 1000) text = whole.format(value);
  else if (size !== 0 && size < 0.001) text = value.toExponential(1).replace(".0e", "e");
  else text = String(Number(value.toPrecision(3)));
  return unit ? `${text.replace("-", "−")} ${unit}` : text.replace("-", "−");
}

/** "1 step", "2 steps". */
export const count = (value, one) => num(value, value === 1 ? one : `${one}s`);

export function seconds(value) {
  if (value >= 120) return num(Math.round(value / 60), "min");
  return value > 0 && value < 0.1 ? num(value * 1000, "ms") : num(value, "s");
}

export const empty = (sentence) => h("p", { className: "empty" }, sentence);

/** Replace the children of `element` unless they would look the same: a selection or an open tooltip survives. */
export function show(element, ...children) {
  const next = h("div", {}, ...children);
  if (next.innerHTML !== element.innerHTML) element.replaceChildren(...next.childNodes);
}

export function select(name, value, options, onchange) {
  const choices = Object.entries(options).map(([key, text]) => h("option", { value: key, selected: key === value }, text));
  return h("select", { name, onchange: (event) => onchange(event.target.value) }, choices);
}
