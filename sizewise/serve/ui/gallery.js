// The models on this machine: how large, how good, what was made of what. One table; each name opens its model.

import { el, figure, picker, pills, svg } from "./dom.js";
import { modelDetails } from "./model.js";
import { bytes, clip, count } from "./numbers.js";
import { get } from "./server.js";

const KINDS = { gguf: "GGUF", checkpoint: "Checkpoint", encoder: "Encoder", linear: "Classifier", endpoint: "Endpoint" };
const SORTS = {
  size: ["Smallest first", (a, b) => a.bytes - b.bytes],
  large: ["Largest first", (a, b) => b.bytes - a.bytes],
  quality: ["Best first", (a, b) => rank(b) - rank(a)],
  votes: ["Most preferred first", (a, b) => (b.votes?.low ?? -1) - (a.votes?.low ?? -1)],
  newest: ["Newest first", (a, b) => (b.modified_at ?? 0) - (a.modified_at ?? 0)],
  name: ["By name", (a, b) => a.name.localeCompare(b.name)],
};
const kept = { kind: "all", sort: "size", task: "", words: "" }; // stays when another page was looked at

function rank(model) {
  const found = quality(model);
  if (!found) return -Infinity;
  return found.higher_is_better ? found.value : -found.value;
}

/** A model's evaluation on the task that is looked at; on test rows where there are any. */
function quality(model) {
  const found = model.evaluations.filter((each) => taskOf(each) === kept.task);
  return found.find((each) => each.split === "test") ?? found[0] ?? null;
}

export function taskOf(evaluation) {
  return `${evaluation.task} ${evaluation.task_digest} ${evaluation.metric}`;
}

/** What a metric is called, and which way it points where that is down. */
export function metricOf({ metric, higher_is_better: up }) {
  return metric.replaceAll(/[_-]/g, " ") + (up ? "" : ", less is better");
}

/** The page. `open` names a model to show at once. */
export async function gallery(open) {
  const { models } = await get("/ui/api/models");
  if (!models.length) return empty();
  const tasks = tasksOf(models);
  if (!tasks.some(([task]) => task === kept.task)) kept.task = tasks[0]?.[0] ?? "";
  if (open) Object.assign(kept, { kind: "all", words: "" });
  const headline = el("h1", { class: "decision" });
  const table = el("table", { class: "models" });
  const amount = el("p", { class: "amount", role: "status" });
  const draw = () => {
    headline.replaceChildren(...sentence(models));
    const shown = chosen(models);
    amount.textContent = shown.length === models.length ? "" : `${shown.length} of ${models.length} shown`;
    table.replaceChildren(...rows(shown, models, tasks));
  };
  draw();
  const page = el("section", { class: "answer" },
    el("p", { class: "kicker" }, "Models on this machine"), headline, controls(models, tasks, draw), table, amount);
  const wanted = [...table.querySelectorAll(".open")].find((each) => each.dataset.name === open);
  if (wanted) {
    wanted.click();
    requestAnimationFrame(() => { wanted.focus(); wanted.scrollIntoView({ block: "start" }); });
  }
  return page;
}

function empty() {
  return el("section", { class: "answer" },
    el("p", { class: "kicker" }, "Models on this machine"),
    el("h1", { class: "decision" }, "There is no model yet"),
    el("p", {}, "In a terminal, ", el("code", {}, "sizewise catalog"), " lists models to begin with and ",
      el("code", {}, "sizewise pull NAME"), " gets one. Then load this page again."));
}

/** How many there are, and the best on the task that is looked at, in a sentence. */
function sentence(models) {
  const sorted = [...models].sort(SORTS.size[1]);
  const [first, last] = [sorted[0], sorted.at(-1)];
  const range = models.length === 1 ? `, ${first.size}` : `, from ${first.size} to ${last.size}`;
  const best = models.filter(quality).sort(SORTS.quality[1])[0];
  if (!best) return [`${count(models.length, "model")}${range}.`];
  const found = quality(best);
  const score = found.metric === "accuracy" ? `gets ${found.text} right` : `reaches ${found.text} ${metricOf(found)}`;
  return [`${count(models.length, "model")}${range}. On ${found.task} `,
    el("span", { class: "chosen" }, best.name), ` ${score} at ${best.size}, the best measured here.`];
}

function tasksOf(models) {
  const found = new Map();
  for (const each of models.flatMap((model) => model.evaluations)) {
    const entry = found.get(taskOf(each)) ?? { text: `${each.task}, ${metricOf(each)}`, models: new Set(), at: 0 };
    entry.models.add(each.model_digest);
    entry.at = Math.max(entry.at, each.at);
    found.set(taskOf(each), entry);
  }
  return [...found].sort(([, a], [, b]) => b.models.size - a.models.size || b.at - a.at)
    .map(([task, { text }]) => [task, text]);
}

function controls(models, tasks, draw) {
  const change = (key) => (value) => { kept[key] = value; draw(); };
  const kinds = Object.keys(KINDS).filter((kind) => models.some((model) => model.kind === kind));
  const words = el("input", { type: "search", value: kept.words, placeholder: "name, type, origin", autocomplete: "off",
    spellcheck: "false", oninput: (event) => change("words")(event.target.value.trim().toLowerCase()) });
  const sorts = Object.entries(SORTS).map(([key, [text]]) => [key, text]);
  return el("div", { class: "controls", role: "search" },
    kinds.length > 1 && pills("Kind", "kind", [["all", "All"], ...kinds.map((kind) => [kind, KINDS[kind]])],
      kept.kind, change("kind")),
    el("div", { class: "fields" },
      el("label", { class: "field grow" }, el("span", {}, "Filter"), words),
      tasks.length > 1 && picker("Quality on", tasks, kept.task, change("task")),
      picker("Order", sorts, kept.sort, change("sort"))));
}

function chosen(models) {
  return models
    .filter((model) => kept.kind === "all" || model.kind === kept.kind)
    .filter((model) => kept.words.split(/\s+/).every((word) => searched(model).includes(word)))
    .sort((a, b) => SORTS[kept.sort][1](a, b) || a.name.localeCompare(b.name));
}

function searched(model) {
  const { lineage } = model;
  return [model.name, KINDS[model.kind], model.kind, model.architecture, model.quantization, lineage.parent,
    lineage.source, lineage.data, ...lineage.steps.map((step) => step.method)].join(" ").toLowerCase();
}

/** Head and body of the table. The scales are those of all models, so that a filter moves nothing. */
function rows(shown, models, tasks) {
  const scale = sizes(models);
  const spread = span(models.map(quality).filter(Boolean));
  const voted = models.some((model) => model.votes);
  const task = tasks.find(([each]) => each === kept.task)?.[1];
  const columns = 3 + (task ? 1 : 0) + (voted ? 1 : 0);
  const head = el("thead", {}, el("tr", {},
    el("th", { scope: "col" }, "Model"),
    el("th", { scope: "col", class: "size" }, "Size, log scale", axis(scale)),
    el("th", { scope: "col", class: "num" }, "Weights"),
    task && el("th", { scope: "col", class: "num quality" }, task),
    voted && el("th", { scope: "col", class: "num" }, "Preferred")));
  const bests = models.filter(quality).sort(SORTS.quality[1]);
  const body = shown.map((model) => row(model, models, { scale, spread, voted, task, columns, best: bests[0] }));
  const none = el("tbody", {}, el("tr", {}, el("td", { colspan: columns }, "No model fits the filter.")));
  return [head, ...(body.length ? body : [none])];
}

function row(model, models, seen) {
  const about = [KINDS[model.kind] ?? model.kind, model.architecture, model.quantization].filter(Boolean).join(" · ");
  const details = el("tr", { class: "details", hidden: true, id: `about-${model.digest.slice(7, 23)}-${models.indexOf(model)}` });
  const open = el("button", {
    type: "button", class: "open", "aria-expanded": "false", "aria-controls": details.id, "data-name": model.name,
    onclick: () => {
      const opening = details.hidden;
      if (opening) details.replaceChildren(el("td", { colspan: seen.columns }, modelDetails(model, models)));
      details.hidden = !opening;
      open.setAttribute("aria-expanded", String(opening));
    },
  }, el("bdi", {}, model.name));
  const found = quality(model);
  const best = model === seen.best;
  return el("tbody", { class: best ? "winner" : null }, el("tr", {},
    el("th", { scope: "row" }, open, el("small", {}, about), from(model),
      model.loaded && el("small", { class: "loaded" }, `in memory, ${bytes(model.loaded.memory_bytes)}`)),
    el("td", { class: "size", "data-label": "Size" }, bar(model, seen.scale), el("span", { class: "amount" }, model.size)),
    el("td", { class: "num", "data-label": "Weights" }, figure(model.weights, "the file does not say")),
    seen.task && el("td", { class: "num quality", "data-label": seen.task },
      found && whisker(found, seen.spread),
      el("span", { class: "amount" }, figure(found?.text ?? null, "not evaluated on this task")),
      found && el("small", {}, `${found.range}, ${count(found.n, "row")}`)),
    seen.voted && el("td", { class: "num", "data-label": "Preferred" }, preference(model.votes))), details);
}

function from({ lineage }) {
  if (!lineage.parent) return null;
  const how = lineage.steps.map((step) => step.method.replaceAll("_", " ")).join(", then ") || "made";
  return el("small", {}, `${how} from `, el("bdi", {}, clip(lineage.parent, 40)));
}

export function preference(votes) {
  if (!votes) return figure(null, "no blind vote in the arena yet");
  if (!votes.decided) return figure(null, `${count(votes.undecided, "vote")}, none decided`);
  return el("span", {}, votes.text, el("small", {}, `${votes.range}, ${count(votes.decided, "vote")}`));
}

/** Powers of ten around all sizes. */
function sizes(models) {
  const known = models.map((model) => model.bytes).filter((size) => size > 0);
  const low = Math.floor(Math.log10(Math.min(...known, 1e6)));
  const high = Math.max(low + 1, Math.ceil(Math.log10(Math.max(...known, 1e7))));
  return { low, high, at: (size) => size > 0 ? Math.max(0.8, 100 * (Math.log10(size) - low) / (high - low)) : 0 };
}

function axis({ low, high, at }) {
  const step = Math.ceil((high - low) / 3);
  const ticks = [];
  for (let power = low; power <= high; power += step) {
    const x = `${at(10 ** power) < 1 ? 0 : at(10 ** power)}%`;
    const anchor = power === low ? "start" : at(10 ** power) > 92 ? "end" : "middle";
    ticks.push(svg("text", { x, y: 11, "text-anchor": anchor }, bytes(10 ** power, 1)));
  }
  return svg("svg", { class: "axis", width: "100%", height: 14, "aria-hidden": "true" }, ticks);
}

function bar(model, scale) {
  return svg("svg", { class: "bar", width: "100%", height: 10, "aria-hidden": "true" },
    svg("rect", { class: "track", y: 4, width: "100%", height: 2 }),
    svg("rect", { y: 0, width: `${scale.at(model.bytes)}%`, height: 10 }));
}

/** The range that all intervals lie in. */
export function span(found) {
  const low = Math.min(...found.map((each) => each.low)), high = Math.max(...found.map((each) => each.high));
  return (value) => 3 + 94 * (high > low ? (value - low) / (high - low) : 0.5);
}

/** A value with its interval, drawn. */
export function whisker(found, place) {
  return svg("svg", { class: "span", width: "100%", height: 16, "aria-hidden": "true" },
    svg("line", { class: "whisker", x1: `${place(found.low)}%`, x2: `${place(found.high)}%`, y1: 8, y2: 8 }),
    svg("circle", { cx: `${place(found.value)}%`, cy: 8, r: 4.5 }));
}

/** Arrow keys go from name to name, "/" to the filter. */
function walk(event) {
  if (!document.querySelector(".models")) return; // another page is shown
  const typing = event.target.matches("input, select, textarea");
  if (event.key === "/" && !typing) {
    event.preventDefault();
    document.querySelector("input[type=search]").focus();
  }
  const step = { ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!step || !event.target.matches(".open, input[type=search]")) return;
  const names = [...document.querySelectorAll(".models .open")];
  const next = names[names.indexOf(event.target) + step];
  if (next) {
    event.preventDefault();
    next.focus();
  }
}

document.addEventListener("keydown", walk);
