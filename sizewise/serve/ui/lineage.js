// What was made of what, as a picture: each model a square as large as it is on disk, each line a method.

import { svg } from "./dom.js";
import { bytes, clip } from "./numbers.js";

const LARGEST = 46; // px, the side of the largest square
const SHAPES = {
  // step: px from one generation to the next; row: px from one model to the next; name: characters of a name.
  wide: { width: 1016, step: 330, row: 74, name: 30 },
  narrow: { width: 320, step: 26, row: 84, name: 25 },
};

/** The tree that a model belongs to, from its first known ancestor down. */
export function family(model, models) {
  const byDigest = new Map(models.map((each) => [each.digest, each]));
  const byName = new Map(models.map((each) => [each.name, each]));
  const parentOf = (each) => byDigest.get(each.lineage.parent_digest) ?? byName.get(each.lineage.parent) ?? null;
  const seen = new Set([model]);
  let first = model;
  for (let up = parentOf(model); up && !seen.has(up); up = parentOf(up)) {
    seen.add(up);
    first = up;
  }
  const placed = new Set();
  const grow = (each) => {
    placed.add(each);
    const children = models.filter((other) => !placed.has(other) && parentOf(other) === each)
      .sort((a, b) => b.bytes - a.bytes);
    return { model: each, name: each.name, bytes: each.bytes, how: how(each), children: children.map(grow) };
  };
  const root = grow(first);
  const { parent, source, data } = first.lineage;
  const gone = parent ?? null; // made from a model that is no longer here
  const tree = gone ? { model: null, name: gone, bytes: 0, how: "", children: [root] } : root;
  tree.origin = gone ? "not here any more" : source ?? (data ? `trained on ${data}` : "");
  tree.count = placed.size + (gone ? 1 : 0);
  return tree;
}

function how(model) {
  const { steps, data } = model.lineage;
  const said = steps.map((step) => step.method.replaceAll("_", " ") + (step.options ? ` (${step.options})` : ""));
  return said.join(", then ") + (data && steps.length ? ` on ${data}` : "");
}

/** The picture in one of two shapes; the style sheet shows the one that has room. */
export function lineagePicture(tree, current, shape, title) {
  const form = { ...SHAPES[shape], shape };
  const largest = Math.max(...sizes(tree), 1);
  const drawn = [];
  let line = 0;
  const place = (node, depth) => {
    const at = { x: depth * form.step, y: 0 };
    if (shape === "narrow") at.y = line++ * form.row + 34;
    const ends = node.children.map((child) => place(child, depth + 1));
    if (shape === "wide") at.y = ends.length ? (ends[0].y + ends.at(-1).y) / 2 : line++ * form.row + 37;
    for (const index of node.children.keys()) drawn.unshift(link(at, ends[index], node, form));
    drawn.push(mark(node, at, current, largest, form));
    return at;
  };
  place(tree, 0);
  const width = Math.max(form.width, form.step * generations(tree));
  return svg("svg", { class: `tree ${shape}`, role: "img", "aria-label": `${title}. ${words(tree)}`,
    viewBox: `0 0 ${width} ${line * form.row + 4}`, width, height: line * form.row + 4 }, drawn);
}

function generations(node) {
  return 1 + Math.max(0, ...node.children.map(generations));
}

function sizes(node) {
  return [node.bytes, ...node.children.flatMap(sizes)];
}

/** The picture in words, for those who do not see it. */
function words(node) {
  const said = node.bytes ? `${node.name}, ${bytes(node.bytes)}` : node.name;
  return node.children.reduce((text, child) => `${text}; ${node.name} by ${child.how}: ${words(child)}`, said);
}

function mark(node, { x, y }, current, largest, form) {
  const side = node.bytes ? Math.max(5, LARGEST * Math.sqrt(node.bytes / largest)) : 14;
  const kind = node.model === current ? "node winner" : node.model ? "node" : "node gone";
  const left = x + 2 + (form.shape === "wide" ? (LARGEST - side) / 2 : 0);
  const text = textStart(x, side, form);
  const longest = Math.max(10, form.name - (form.shape === "narrow" ? Math.round((text - 58) / 8) : 0));
  const below = [node.bytes ? bytes(node.bytes) : "", node.origin ?? ""].filter(Boolean).join(" · ");
  return svg("g", { class: kind },
    svg("rect", { x: left, y: y - side / 2, width: side, height: side }),
    node.how && svg("text", { class: "how", x: text, y: y - 19 }, clip(node.how, longest + 6), svg("title", {}, node.how)),
    svg("text", { class: "name", x: text, y: y - 1 }, clip(node.name, longest), svg("title", {}, node.name)),
    svg("text", { x: text, y: y + 17 }, clip(below, longest + 4)));
}

function textStart(x, side, form) {
  return x + (form.shape === "wide" ? LARGEST : Math.max(side, 12)) + 12;
}

/** A line from parent to child. */
function link(from, to, parent, form) {
  if (form.shape === "narrow") return svg("path", { class: "link", d: `M${from.x + 8} ${from.y}V${to.y}H${to.x}` });
  const start = Math.min(textStart(from.x, LARGEST, form) + clip(parent.name, form.name).length * 8.2 + 8, to.x - 26);
  return svg("path", { class: "link", d: `M${start} ${from.y - 5}H${to.x - 20}V${to.y}H${to.x - 4}` });
}
