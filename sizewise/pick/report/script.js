// The page is whole without this: axes switch and answers unfold by themselves. It adds tips, motion and printing.
"use strict";

for (const plot of document.querySelectorAll(".plot")) {
  const tip = plot.querySelector(".tip");
  const show = (point) => {
    const [name, ...rest] = point.getAttribute("aria-label").split(": ");
    tip.replaceChildren();
    const strong = document.createElement("b");
    strong.textContent = name;
    tip.append(strong);
    for (const part of rest.join(": ").split("; ")) {
      const line = document.createElement("div");
      line.textContent = part;
      tip.append(line);
    }
    tip.hidden = false;
    const spot = point.querySelector(".target").getBoundingClientRect();
    const frame = plot.getBoundingClientRect();
    const middle = spot.left + spot.width / 2 - frame.left;
    const left = Math.min(Math.max(middle - tip.offsetWidth / 2, 0), frame.width - tip.offsetWidth);
    const above = spot.top - frame.top - tip.offsetHeight - 6;
    tip.style.left = left + "px";
    tip.style.top = (above >= 0 ? above : spot.bottom - frame.top + 6) + "px";
  };
  const hide = () => { tip.hidden = true; };
  for (const point of plot.querySelectorAll(".point")) {
    point.addEventListener("pointerenter", () => show(point));
    point.addEventListener("pointerleave", hide);
    point.addEventListener("focus", () => show(point));
    point.addEventListener("blur", hide);
  }
  plot.addEventListener("keydown", (event) => { if (event.key === "Escape") hide(); });
}

// On a switch of axis each candidate glides from where it stood, so that the eye can follow it.
const still = matchMedia("(prefers-reduced-motion: reduce)");
for (const frontier of document.querySelectorAll(".frontier")) {
  let before = frontier.querySelector(".switch input:checked")?.value;
  frontier.addEventListener("change", (event) => {
    const after = event.target.value;
    for (const size of ["wide", "narrow"]) {
      const find = (cost) => frontier.querySelector(`.panel[data-cost="${cost}"] .chart.${size}`);
      const old = new Map([...(find(before)?.querySelectorAll(".point") ?? [])].map((each) => [each.dataset.place, each]));
      for (const point of find(after).querySelectorAll(".point")) {
        const from = old.get(point.dataset.place);
        if (!from || still.matches) continue;
        const x = from.dataset.x - point.dataset.x, y = from.dataset.y - point.dataset.y;
        point.animate([{ transform: `translate(${x}px, ${y}px)` }, { transform: "none" }], { duration: 420, easing: "ease-in-out" });
      }
      if (!still.matches) find(after).querySelector(".labels").animate([{ opacity: 0 }, { opacity: 0, offset: 0.7 }, { opacity: 1 }], { duration: 560 });
    }
    before = after;
  });
}

let opened = [];
addEventListener("beforeprint", () => {
  opened = [...document.querySelectorAll("details:not([open])")];
  for (const each of opened) each.open = true;
});
addEventListener("afterprint", () => { for (const each of opened) each.open = false; });
