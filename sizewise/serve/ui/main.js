// Which page is shown: #models, #arena or #reports. The list of models is asked for each time, since it changes.

import { el } from "./dom.js";
import { arena } from "./arena.js";
import { gallery } from "./gallery.js";
import { reports } from "./reports.js";

const PAGES = { models: ["Models", gallery], arena: ["Arena", arena], reports: ["Reports", reports] };
const main = document.getElementById("content");
let turn = 0;

function asked() {
  const [name, ...rest] = decodeURI(location.hash.slice(1)).split("/");
  return Object.hasOwn(PAGES, name) ? [name, rest.join("/")] : ["models", ""];
}

async function show(focus) {
  const mine = ++turn;
  const [name, rest] = asked();
  const [title, build] = PAGES[name];
  document.title = `${title} · sizewise`;
  for (const link of document.querySelectorAll("nav a")) {
    const here = link.getAttribute("href") === `#${name}`;
    if (here) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  main.dispatchEvent(new Event("leave")); // before the next page is built: that one listens, too
  let content;
  try {
    content = await build(rest);
  } catch (error) {
    content = el("section", { class: "failed", role: "alert" },
      el("h1", { class: "decision" }, "This page cannot be shown"),
      el("p", {}, error.message),
      el("button", { type: "button", onclick: () => show(true) }, "Try again"));
  }
  if (mine !== turn) return; // another page was asked for meanwhile
  main.replaceChildren(content);
  main.dataset.page = name;
  scrollTo(0, 0);
  if (focus) main.focus({ preventScroll: true });
}

addEventListener("hashchange", () => show(true));
show(false);
