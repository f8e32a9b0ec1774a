// A blind vote: which answer is best, asked before the names are shown.

import { el, tell } from "./dom.js";
import { count } from "./numbers.js";
import { post } from "./server.js";

/** Buttons to vote with; afterwards the names, and how they stand in all votes. */
export function votePanel(answers, prompt, done) {
  const panel = el("section", { class: "vote", "aria-label": "Vote" });
  const problem = el("p", { class: "problem", role: "alert", hidden: true });
  const choose = async (verdict, winner) => {
    for (const button of panel.querySelectorAll("button")) button.disabled = true;
    const models = answers.map((answer) => answer.model.name);
    try {
      const { votes } = await post("/ui/api/votes", { models, verdict, winner: winner?.model.name ?? null, prompt });
      for (const answer of answers) {
        answer.reveal();
        answer.column.classList.toggle("winner", answer === winner);
      }
      panel.replaceChildren(...verdictTold(verdict, winner, votes, answers));
      tell(panel.textContent);
      done();
    } catch (error) {
      problem.textContent = `The vote was not kept: ${error.message}`;
      problem.hidden = false;
      for (const button of panel.querySelectorAll("button")) button.disabled = false;
    }
  };
  const button = (text, verdict, winner, key) =>
    el("button", { type: "button", class: "button", "data-key": key, onclick: () => choose(verdict, winner) }, text);
  panel.append(
    el("h2", {}, "Which answer is best?"),
    el("p", { class: "buttons" },
      answers.map((answer) => button(answer.letter, "best", answer, answer.letter.toLowerCase())),
      button("A tie", "tie", null, "t"), button("None is good", "none", null, "n")),
    el("small", {}, `Keys: ${answers.map((answer) => answer.letter).join(", ")}, T for a tie, N for none. Names and numbers are shown afterwards.`),
    problem);
  panel.tabIndex = -1;
  panel.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    panel.querySelector(`button[data-key="${CSS.escape(event.key.toLowerCase())}"]:not([disabled])`)?.click();
  });
  requestAnimationFrame(() => panel.focus());
  return panel;
}

function verdictTold(verdict, winner, votes, answers) {
  const said = {
    best: () => [`You preferred `, el("span", { class: "chosen" }, winner.model.name), `, answer ${winner.letter}`],
    tie: () => ["You saw no difference"],
    none: () => ["You found none of them good"],
  }[verdict]();
  return [
    el("h2", {}, said),
    el("dl", { class: "facts-list" }, answers.map(({ model }) => {
      const { decided, wins, text, range } = votes[model.name];
      const stands = decided ? `preferred in ${wins} of ${count(decided, "decided vote")}, ${text} (${range})` : "no vote decided yet";
      return el("div", {}, el("dt", {}, el("bdi", {}, model.name)), el("dd", {}, stands));
    })),
  ];
}
