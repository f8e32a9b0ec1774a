// The arena: one prompt, two to four models, their answers side by side with what each took; blind, if wanted.

import { Answer } from "./answer.js";
import { Chosen } from "./choose.js";
import { el, pills, tell } from "./dom.js";
import { significant } from "./numbers.js";
import { get } from "./server.js";
import { votePanel } from "./vote.js";

const kept = { models: [], prompt: "", system: "", tokens: 256, temperature: "0", blind: false, order: "together" };
const LETTERS = "ABCD";
const ALIKE = 1.1; // of one answer each, a smaller ratio of speeds says nothing

/** The page. `wanted` names a model to begin with. */
export async function arena(wanted) {
  const models = (await get("/ui/api/models")).models.filter((model) => model.chats);
  if (!models.length) return nobody();
  return new Arena(models, wanted).page;
}

function nobody() {
  return el("section", { class: "answer" },
    el("p", { class: "kicker" }, "Arena"),
    el("h1", { class: "decision" }, "No model here can answer a prompt"),
    el("p", {}, "In a terminal, ", el("code", {}, "sizewise pull NAME"), " gets one."));
}

class Arena {
  constructor(models, wanted) {
    this.models = new Map(models.map((model) => [model.name, model]));
    this.answers = [];
    this.stopping = null;
    this.chosen = new Chosen(models, kept, wanted, () => this.ready());
    this.headline = el("h1", { class: "decision" }, "Ask several models the same, and see what each takes");
    this.results = el("section", { class: "results", "aria-label": "Answers" });
    this.problem = el("p", { class: "problem", role: "alert", hidden: true });
    this.ask = el("button", { type: "submit", class: "button main" }, "Ask");
    this.stop = el("button", { type: "button", class: "button", hidden: true, onclick: () => this.halt() }, "Stop");
    this.page = el("section", { class: "answer" }, el("p", { class: "kicker" }, "Arena"), this.headline, this.form(),
      this.problem, this.results);
    const keys = (event) => { if (event.key === "Escape") this.halt(); };
    document.addEventListener("keydown", keys);
    document.getElementById("content").addEventListener("leave", () => {
      document.removeEventListener("keydown", keys);
      this.halt();
    }, { once: true });
    this.ready();
  }

  form() {
    const form = el("form", { class: "ask", novalidate: true, onsubmit: (event) => { event.preventDefault(); this.run(); } },
      this.chosen.fields,
      area("Prompt", "prompt", 4, "What should they all answer?"),
      el("details", { open: Boolean(kept.system) }, el("summary", {}, "System text"),
        area("System text", "system", 2, "Said to each before the prompt; empty: what the model was stored with")),
      el("div", { class: "settings" },
        number("Most tokens", "tokens", { min: 1, max: 100000, step: 1 }),
        number("Temperature", "temperature", { min: 0, max: 2, step: 0.1 }),
        pills("Asked", "order", [["together", "all at once"], ["turns", "one after another"]], kept.order,
          (value) => { kept.order = value; }),
        pills("Names", "blind", [["shown", "shown"], ["hidden", "hidden until I vote"]], kept.blind ? "hidden" : "shown",
          (value) => { kept.blind = value === "hidden"; })),
      el("p", { class: "buttons" }, this.ask, this.stop, el("small", {}, "or Ctrl+Enter; Esc stops")));
    form.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        this.run();
      }
    });
    form.addEventListener("input", () => this.ready());
    return form;
  }

  ready() {
    if (this.ask) this.ask.disabled = Boolean(this.stopping);
  }

  halt() {
    this.stopping?.abort();
  }

  /** What stands in the way of asking, or null. */
  missing() {
    if (!kept.prompt.trim()) return "Write a prompt first.";
    if (new Set(kept.models).size < kept.models.length) return "Choose each model once.";
    const tokens = Number(kept.tokens), temperature = Number(kept.temperature);
    if (!Number.isInteger(tokens) || tokens < 1) return "The most tokens of an answer is a whole number of tokens, at least 1.";
    if (kept.temperature !== "" && !(temperature >= 0 && temperature <= 2)) return "The temperature is 0 to 2.";
    return null;
  }

  async run() {
    if (this.stopping) return;
    const missing = this.missing();
    this.problem.hidden = !missing;
    this.problem.textContent = missing ?? "";
    if (missing) return;
    const asked = { ...kept, models: [...kept.models] };
    const stopping = this.begin(asked);
    const tasks = this.answers.map((answer) => () => answer.run(asked, stopping.signal));
    if (asked.order === "turns") for (const task of tasks) await task();
    else await Promise.all(tasks.map((task) => task()));
    this.end(asked);
  }

  begin(asked) {
    const names = asked.blind ? shuffled(asked.models) : asked.models;
    this.answers = names.map((name, place) => new Answer(this.models.get(name), asked.blind ? LETTERS[place] : null));
    this.stopping = new AbortController();
    this.results.replaceChildren(
      el("h2", {}, "The answers"),
      el("p", { class: "asked" }, asked.prompt),
      el("div", { class: "side", "data-count": names.length }, this.answers.map((answer) => answer.column)));
    this.stop.hidden = false;
    this.ready();
    tell(`Asking ${names.length} models`);
    this.results.scrollIntoView({ block: "start", behavior: "smooth" });
    return this.stopping;
  }

  end(asked) {
    this.stopping = null;
    this.stop.hidden = true;
    this.ready();
    if (!this.page.isConnected) return;
    const whole = this.answers.filter((answer) => answer.finished);
    if (asked.blind && whole.length === this.answers.length && whole.length > 1) {
      this.results.append(votePanel(this.answers, asked.prompt, () => this.conclude()));
      tell("All have answered. Which is best?");
      return;
    }
    for (const answer of this.answers) answer.reveal();
    this.conclude();
  }

  /** The headline becomes what came out. */
  conclude() {
    const timed = this.answers.filter((answer) => answer.rate).sort((a, b) => b.rate - a.rate);
    if (timed.length < 2) return;
    const [fastest, slowest] = [timed[0], timed.at(-1)];
    const [high, low] = [significant(fastest.rate), significant(slowest.rate)];
    const text = fastest.rate / slowest.rate < ALIKE
      ? `They write about equally fast, ${high === low ? high : `${low} to ${high}`} tokens a second.`
      : `${fastest.model.name} writes fastest, ${high} tokens a second against ${low} of ${slowest.model.name}.`;
    this.headline.textContent = text;
    tell(text);
  }
}

function shuffled(names) {
  const mixed = [...names];
  for (let last = mixed.length - 1; last > 0; last--) {
    const other = crypto.getRandomValues(new Uint32Array(1))[0] % (last + 1);
    [mixed[last], mixed[other]] = [mixed[other], mixed[last]];
  }
  return mixed;
}

function area(label, key, rows, placeholder) {
  const input = el("textarea", { rows, placeholder, oninput: (event) => { kept[key] = event.target.value; } });
  input.value = kept[key];
  return el("label", { class: "field" }, el("span", { class: key === "system" ? "unseen" : null }, label), input);
}

function number(label, key, limits) {
  const input = el("input", { type: "number", inputmode: "decimal", value: kept[key], ...limits,
    oninput: (event) => { kept[key] = event.target.value; } });
  return el("label", { class: "field short" }, el("span", {}, label), input);
}
