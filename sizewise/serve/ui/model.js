// One model: what it is, what was made of what, how it did on each task.

import { el, figure } from "./dom.js";
import { metricOf } from "./gallery.js";
import { family, lineagePicture } from "./lineage.js";
import { ratio, significant, when } from "./numbers.js";

/** What stands below a model's row when it is opened. */
export function modelDetails(model, models) {
  return el("div", { class: "about" },
    actions(model),
    pedigree(model, models),
    el("div", { class: "two" },
      el("div", {}, el("h2", {}, "Evaluations"), evaluations(model)),
      el("div", {}, el("h2", {}, "The model"), facts(model))));
}

function actions(model) {
  if (!model.chats) return null;
  return el("p", {}, el("a", { class: "button", href: `#arena/${encodeURI(model.name)}` }, "Ask it in the arena"));
}

function pedigree(model, models) {
  const tree = family(model, models);
  const title = pedigreeTitle(model, models, tree);
  return el("figure", { class: "lineage" },
    el("h2", {}, title),
    lineagePicture(tree, model, "wide", title),
    lineagePicture(tree, model, "narrow", title),
    tree.count > 1 && el("figcaption", {}, "Squares are as large as the models on disk."));
}

/** The picture's answer, in a line. */
function pedigreeTitle(model, models, tree) {
  const { lineage } = model;
  const parent = models.find((each) => each.name === lineage.parent);
  if (parent && model.kind !== "linear" && parent.bytes) {
    return `${model.name} takes ${ratio(model.bytes / parent.bytes)} of the room of ${parent.name}`;
  }
  if (lineage.parent) return `${model.name} was made from ${lineage.parent}`;
  if (lineage.data) return `${model.name} was trained on ${lineage.data}`;
  const made = tree.count - 1;
  if (made > 0) return `${made} made from ${model.name}`;
  return lineage.source ? `${model.name} is as it was pulled` : `Nothing was made from ${model.name} yet`;
}

function evaluations(model) {
  if (!model.evaluations.length) {
    return el("p", { class: "soft" }, "None yet. ", el("code", {}, `sizewise eval TASK ${model.name}`), " adds one.");
  }
  return el("table", { class: "plain" },
    el("thead", {}, el("tr", {}, el("th", { scope: "col" }, "Task"), el("th", { scope: "col", class: "num" }, "Quality, 95 % interval"))),
    el("tbody", {}, model.evaluations.map((each) => el("tr", {},
      el("th", { scope: "row" }, each.task, el("small", {}, `${metricOf(each)}, ${each.n.toLocaleString("en-US")} ${each.split} rows`)),
      el("td", { class: "num" }, each.text, el("small", {}, each.range))))));
}

function facts(model) {
  const { lineage } = model;
  const rows = [
    ["Bits per weight", figure(model.bits_per_weight && significant(model.bits_per_weight, 3), "weights are not counted")],
    ["Context", figure(model.context_length && `${model.context_length.toLocaleString("en-US")} tokens`, "no limit is stated")],
    ["Licence", figure(model.license || null, "the file does not say")],
    ["Came from", lineage.source && el("bdi", {}, lineage.source)],
    ["Trained on", lineage.data && el("bdi", {}, lineage.data)],
    ["Note", lineage.note],
    ["Written by", lineage.made_by],
    ["Changed", model.modified_at && when(model.modified_at)],
    ["Digest", el("code", {}, model.digest.replace("sha256:", "").slice(0, 16))],
  ];
  return el("dl", { class: "facts-list" },
    rows.filter(([, value]) => value).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}
