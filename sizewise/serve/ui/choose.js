// Which models are asked: two to four lists to choose from.

import { el } from "./dom.js";

const FEWEST = 2, MOST = 4;

export class Chosen {
  constructor(models, kept, wanted, change) {
    this.models = models;
    this.kept = kept;
    this.change = change;
    const known = (name) => models.some((model) => model.name === name);
    kept.models = kept.models.filter(known);
    if (known(wanted) && !kept.models.includes(wanted)) kept.models = [wanted, ...kept.models].slice(0, MOST);
    while (kept.models.length < Math.min(FEWEST, models.length)) kept.models.push(this.unused());
    this.fields = el("fieldset", { class: "chosen-models" });
    this.draw();
  }

  unused() {
    const { models, kept } = this;
    // Those that write rather than classify, the ones in memory first, then the smallest.
    const later = (model) => [model.kind === "linear", !model.loaded].map(Number);
    const order = (a, b) => later(a)[0] - later(b)[0] || later(a)[1] - later(b)[1] || a.bytes - b.bytes;
    return [...models].sort(order).find((model) => !kept.models.includes(model.name)).name;
  }

  draw(focus) {
    const { kept } = this;
    const slots = kept.models.map((name, place) => this.slot(name, place));
    const room = kept.models.length < Math.min(MOST, this.models.length);
    const add = room && el("button", { type: "button", class: "button add", onclick: () => {
      kept.models.push(this.unused());
      this.draw(kept.models.length - 1);
    } }, "Add a model");
    const alone = this.models.length < FEWEST && el("small", {}, "Only one model here can answer; pull another to compare.");
    this.fields.replaceChildren(el("legend", {}, "Models"), ...slots, ...[add, alone].filter(Boolean));
    if (focus !== undefined) this.fields.querySelectorAll("select")[focus]?.focus();
    this.change();
  }

  slot(name, place) {
    const { kept, models } = this;
    const options = models.map((model) =>
      el("option", { value: model.name, selected: model.name === name }, `${model.name}, ${model.size}`));
    const list = el("select", { "aria-label": `Model ${place + 1}`, onchange: (event) => {
      kept.models[place] = event.target.value;
      this.change();
    } }, options);
    const remove = kept.models.length > FEWEST && el("button", { type: "button", class: "remove",
      "aria-label": `Leave out ${name}`, title: "Leave out", onclick: () => {
        kept.models.splice(place, 1);
        this.draw(Math.max(0, place - 1));
      } }, "×");
    return el("span", { class: "slot" }, list, remove);
  }
}
