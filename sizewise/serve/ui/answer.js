// One model's answer: loaded, asked, shown as it comes, and measured.

import { el, figure } from "./dom.js";
import { bytes, joules, rate, seconds } from "./numbers.js";
import { get, lines, post } from "./server.js";
import { rendered } from "./text.js";

const BETWEEN_MS = 60; // from one drawing of a growing answer to the next

export class Answer {
  /** `letter` stands for the model's name until it is revealed. */
  constructor(model, letter) {
    this.model = model;
    this.letter = letter;
    this.text = this.thinking = "";
    this.finished = false;
    this.rate = null;
    this.measured = {};
    this.title = el("h3", {}, letter ? `Answer ${letter}` : el("bdi", {}, model.name));
    this.side = el("span", {}, letter ? "" : model.size);
    this.state = el("p", { class: "state" }, "waiting");
    this.body = el("div", { class: "text model-text" });
    this.thought = el("details", { class: "thinking", hidden: true }, el("summary", {}, "Thinking"), el("p", { class: "prose" }));
    this.took = el("dl", { class: "took" });
    this.column = el("div", { class: "column", role: "group", "aria-busy": "true", "data-letter": letter },
      el("div", { class: "who" }, this.title, this.side), this.thought, this.body, this.state, this.took);
  }

  /** Ask and show. Never throws: what goes wrong stands in the column. */
  async run(asked, signal) {
    try {
      signal.throwIfAborted();
      this.say("loading");
      await post("/api/generate", { model: this.model.name, stream: false }, signal);
      const before = await this.meters();
      await this.stream(asked, signal);
      this.take(before, await this.meters());
      this.finished = true;
    } catch (error) {
      this.failed(error);
    }
    this.draw();
    this.column.setAttribute("aria-busy", "false");
    if (!this.letter) this.figures();
  }

  async meters() {
    try {
      return await get(`/ui/api/meters?model=${encodeURIComponent(this.model.name)}`);
    } catch (error) {
      return { why: error.message };
    }
  }

  async stream(asked, signal) {
    this.say("reading the prompt");
    const messages = [{ role: "user", content: asked.prompt }];
    if (asked.system.trim()) messages.unshift({ role: "system", content: asked.system });
    const options = { num_predict: Number(asked.tokens) };
    if (asked.temperature !== "") options.temperature = Number(asked.temperature);
    const began = performance.now();
    let first = null;
    for await (const item of lines("/api/chat", { model: this.model.name, messages, options }, signal)) {
      const { content = "", thinking = "" } = item.message ?? {};
      if (first === null && (content || thinking)) {
        first = (performance.now() - began) / 1000;
        this.say("writing");
      }
      this.grow(content, thinking);
      if (item.done) this.done(item, first, (performance.now() - began) / 1000);
    }
  }

  grow(content, thinking) {
    this.text += content;
    this.thinking += thinking;
    if (!this.waiting) {
      this.waiting = setTimeout(() => this.draw(), BETWEEN_MS);
    }
  }

  /** All of the text so far, from its start: see text.js. */
  draw() {
    clearTimeout(this.waiting);
    this.waiting = null;
    this.body.replaceChildren(rendered(this.text));
    this.thought.hidden = !this.thinking;
    this.thought.lastChild.textContent = this.thinking;
  }

  done(item, first, total) {
    const tokens = item.eval_count ?? null, decode = item.eval_duration ? item.eval_duration / 1e9 : null;
    // The first token comes out of reading the prompt: what decoding took is for the others.
    this.rate = tokens > 1 && decode ? tokens / decode : null;
    this.measured = { first, total, tokens, prompt: item.prompt_eval_count ?? null };
    if (!this.text && !this.thinking) this.say("an empty answer");
    else this.say(item.done_reason === "length" ? "cut at the longest answer allowed" : "");
  }

  take(before, after) {
    const spent = after.energy_j !== null && before.energy_j !== null ? after.energy_j - before.energy_j : null;
    Object.assign(this.measured, {
      energy: Number.isFinite(spent) ? spent : null,
      energyWhy: after.energy_why || before.why || after.why || "the counters cannot be read",
      energySource: after.energy_source, energyHow: after.energy_method,
      memory: after.memory_bytes ?? null, memoryWhy: after.memory_why || after.why, memoryHow: after.memory_method,
    });
  }

  failed(error) {
    if (error.name === "AbortError") {
      this.say("stopped");
      return;
    }
    this.state.setAttribute("role", "alert");
    this.state.classList.add("problem");
    this.say(error.message);
  }

  say(text) {
    this.state.textContent = text;
    this.state.hidden = !text;
  }

  /** The name and the numbers, where they were hidden. */
  reveal() {
    if (this.letter) {
      this.title.replaceChildren(el("bdi", {}, this.model.name));
      this.side.textContent = `${this.letter}, ${this.model.size}`;
    }
    this.figures();
  }

  figures() {
    const { first, total, tokens, energy, energyWhy, energySource, energyHow, memory, memoryWhy, memoryHow } = this.measured;
    const why = this.finished ? "the engine does not tell" : "no answer came to its end";
    const rows = [
      ["First token", figure(first ? seconds(first) : null, why, "measured", "from the question to the first piece, as this page saw it")],
      ["Speed", figure(this.rate ? rate(this.rate) : null, why, "measured", "tokens of the answer by the engine's time for them")],
      ["Whole answer", figure(total ? seconds(total) : null, why)],
      ["Tokens", figure(tokens === null || tokens === undefined ? null : tokens.toLocaleString("en-US"), why)],
      ["Peak memory", figure(memory ? bytes(memory) : null, memoryWhy || why, "measured", memoryHow)],
      ["Energy", figure(energy === null || energy === undefined ? null : joules(energy), energyWhy || why, energySource, energyHow)],
    ];
    this.took.replaceChildren(...rows.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
  }
}
