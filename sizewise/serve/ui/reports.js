// What was found out before: fits, comparisons and evaluations.

import { el } from "./dom.js";
import { metricOf, span, taskOf, whisker } from "./gallery.js";
import { count, when } from "./numbers.js";
import { get } from "./server.js";

const KINDS = { fit: "Fit", comparison: "Comparison" };
const STATUS = { pass: "A candidate passes the bar", none_passes: "No candidate passes the bar",
  undecided: "The data cannot tell yet" };

/** The page. */
export async function reports() {
  const [{ reports: kept }, { evaluations }] = await Promise.all([get("/ui/api/reports"), get("/ui/api/models")]);
  const tasks = byTask(evaluations);
  return el("section", { class: "answer" },
    el("p", { class: "kicker" }, "Reports"),
    el("h1", { class: "decision" }, headline(kept, tasks)),
    el("section", {}, el("h2", {}, "Fits and comparisons"), kept.length ? list(kept) : none()),
    el("section", {}, el("h2", {}, "Evaluations"), tasks.length ? tasks.map(chart) : noneEvaluated()));
}

function headline(kept, tasks) {
  if (!kept.length && !tasks.length) return "Nothing was measured yet";
  const parts = [
    [kept.filter((each) => each.kind === "fit").length, "fit"],
    [kept.filter((each) => each.kind === "comparison").length, "comparison"],
    [tasks.reduce((sum, task) => sum + task.length, 0), "evaluation"],
  ].filter(([number]) => number).map(([number, word]) => count(number, word));
  return `${parts.join(", ").replace(/, ([^,]*)$/, " and $1")}, kept on this machine`;
}

function list(kept) {
  return el("ol", { class: "shelf" }, kept.map((each) => el("li", {},
    el("p", { class: "kicker" }, el("span", {}, KINDS[each.kind] ?? each.kind), el("time", {}, when(each.at)),
      each.status && el("span", { class: `status status-${each.status}` }, STATUS[each.status])),
    el("h3", {}, each.error ? "This file cannot be read" : el("a", { href: `/ui/reports/${encodeURIComponent(each.id)}` }, each.title)),
    el("p", {}, each.error ?? each.sentence),
    each.models && el("p", { class: "soft names" }, el("small", {}, each.models.filter((name, place, all) => all.indexOf(name) === place).join(", "))))));
}

function none() {
  return el("p", { class: "soft" }, "None yet. ", el("code", {}, "sizewise fit TASK"), " and ",
    el("code", {}, "sizewise compare MODEL..."), " add one each time they run.");
}

function noneEvaluated() {
  return el("p", { class: "soft" }, "None yet. ", el("code", {}, "sizewise eval TASK MODEL"), " adds one.");
}

/** Evaluations by task; of each model that on test rows where there is one, else that on the most. */
function byTask(evaluations) {
  const tasks = new Map();
  for (const each of evaluations) {
    const found = tasks.get(taskOf(each)) ?? new Map();
    const other = found.get(each.model_digest);
    const better = !other || (each.split === "test") > (other.split === "test");
    if (better) found.set(each.model_digest, each);
    tasks.set(taskOf(each), found);
  }
  const sign = (each) => (each.higher_is_better ? -1 : 1);
  return [...tasks.values()].map((found) => [...found.values()].sort((a, b) => sign(a) * (a.value - b.value)));
}

function chart(task) {
  const [best] = task;
  const place = span(task);
  const title = task.length > 1 ? `On ${best.task} ${best.model} is best with ${best.text}`
    : `On ${best.task} ${best.model} reaches ${best.text}`;
  return el("figure", { class: "evaluated" },
    el("h3", {}, title),
    el("table", { class: "plain" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Model"), el("th", { scope: "col", class: "drawn" }, "95 % interval"),
        el("th", { scope: "col", class: "num" }, metricOf(best)), el("th", { scope: "col", class: "num rows" }, "Rows"))),
      el("tbody", {}, task.map((each) => el("tr", {},
        el("th", { scope: "row" }, el("bdi", {}, each.model)),
        el("td", { class: "drawn" }, whisker(each, place), el("span", { class: "unseen" }, each.range)),
        el("td", { class: "num" }, each.text, el("small", {}, each.range)),
        el("td", { class: "num rows" }, `${each.n.toLocaleString("en-US")} ${each.split}`))))));
}
