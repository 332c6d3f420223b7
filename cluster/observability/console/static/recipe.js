// The resolved recipe: every key with its value, the chosen ones marked.
import { address, empty, get, go, h } from "./page.js";

let recipe = null;
let shown = null;

export function open(root) {
  shown = null;
  root.append(h("form", { className: "filters", onsubmit: (e) => e.preventDefault() }), h("div", { id: "keys" }));
}

export async function draw(root) {
  recipe ??= await get("api/recipe");
  if (shown === location.search) return;
  shown = location.search;
  const [form, place] = root.children;
  if (!form.children.length) form.append(...controls());
  const asked = address();
  place.replaceChildren(...(asked.has("toml") ? [h("pre", { className: "toml" }, recipe.text)] : sections(asked)));
}

function controls() {
  const asked = address();
  const box = (name, text) => h("label", {}, h("input", { type: "checkbox", checked: asked.has(name), onchange: (e) => go({ [name]: e.target.checked }) }), ` ${text}`);
  return [
    h("label", {}, "Find ", h("input", { type: "search", value: asked.get("filter") ?? "", placeholder: "part of a key", oninput: (e) => go({ filter: e.target.value }, { replace: true }) })),
    box("chosen", "only what is not the default"),
    box("toml", "as TOML, to copy"),
  ];
}

function sections(asked) {
  const filter = (asked.get("filter") ?? "").toLowerCase();
  const marked = (key) => recipe.changed.some((k) => key === k || key.startsWith(`${k}.`) || key.startsWith(`${k}[`));
  const all = flat(recipe.tree).filter(({ key }) => key.toLowerCase().includes(filter) && (!asked.has("chosen") || marked(key)));
  const lines = all.filter(({ area, key }) => area !== key);
  const unused = all.filter(({ area, key }) => area === key).map(({ key }) => key);
  if (!all.length) return [empty(filter ? "No key has such a name." : "Everything is the default.")];
  const areas = Map.groupBy(lines, (l) => l.area);
  const rows = (some) => some.map(({ area, key, value }) => h("tr", { className: marked(key) ? "chosen" : "" }, h("th", {}, key.slice(area === "general" ? 0 : area.length).replace(/^\./, "")), h("td", {}, h("code", {}, JSON.stringify(value)))));
  const note = h("p", { className: "muted" }, h("i", { className: "dot chosen" }), " marks what differs from the defaults.", unused.length ? ` Empty: ${unused.join(", ")}.` : "");
  return [note, h("div", { className: "sections" }, [...areas].map(([area, some]) => h("section", {}, h("h2", {}, area), h("table", {}, h("tbody", {}, rows(some))))))];
}

/** Keys with their values. */
function flat(tree, above = "", area = null) {
  return Object.entries(tree).flatMap(([name, value]) => {
    const key = above ? `${above}.${name}` : name;
    const within = area ?? (isTable(value) || isTables(value) ? key : "general");
    if (isTables(value)) return value.flatMap((v, i) => flat(v, `${key}[${i}]`, `${key}[${i}]`));
    if (isTable(value) && Object.keys(value).length) return flat(value, key, within);
    return [{ key, value, area: within }];
  });
}

const isTable = (value) => value !== null && typeof value === "object" && !Array.isArray(value);
const isTables = (value) => Array.isArray(value) && value.length > 0 && value.every(isTable);
