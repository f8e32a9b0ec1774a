// Elements from plain values. Text goes in as text; nothing here reads HTML.

const SVG = "http://www.w3.org/2000/svg";

/** An element. Attributes that are null or false are left out, `on...` ones are listeners. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same, of SVG. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.flat(3).filter((child) => child !== null && child !== undefined && child !== false));
  return element;
}

/** Say something to those who do not see the page. */
export function tell(text) {
  document.getElementById("told").textContent = text;
}

/** A number with its unit, or a dash that says why there is none. `source` other than measured stands behind it. */
export function figure(text, why = "not measured", source = "measured", how = "") {
  if (text === null || text === undefined) {
    return el("span", { class: "none", title: why }, "\u2013", el("span", { class: "unseen" }, ` ${why}`));
  }
  if (source === "measured") return el("span", { title: how || null }, text);
  return el("span", {}, text, " ", el("span", { class: "mark", title: how || null }, source));
}

/** One choice of several, as the report's switch of axes. */
export function pills(legend, name, options, chosen, change) {
  const labels = options.map(([value, text]) =>
    el("label", {},
      el("input", { type: "radio", name, value, checked: value === chosen, onchange: () => change(value) }),
      el("span", {}, text)));
  return el("fieldset", { class: "switch" }, el("legend", {}, legend), labels);
}

/** A choice from a list. */
export function picker(label, options, chosen, change, extra = {}) {
  const list = el("select", { onchange: (event) => change(event.target.value), ...extra },
    options.map(([value, text]) => el("option", { value, selected: value === chosen }, text)));
  return el("label", { class: "field" }, el("span", {}, label), list);
}
