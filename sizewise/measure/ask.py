"""How a task is put to an engine, and what the engine's answer says.

A choice among known answers is scored where the engine can tell how likely each of them is as the continuation of the
prompt: one pass over the prompt, no text to interpret, and a small model cannot lose by chattering. Else it is asked to
write, and the answer is read from what it wrote.
"""

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from sizewise.core.errors import EngineFailed, Unsupported
from sizewise.core.events import Listener, silent
from sizewise.core.requests import GenerateRequest, Reply, Sampling, Score, ScoreRequest, TextScore
from sizewise.core.task import Item, Task
from sizewise.load.runner import Runner
from sizewise.measure.prompts import Rendered, render, render_bare, stops

Way = Literal["score labels", "score choices", "write", "write a letter", "score texts"]
_WINDOW = 512  # tokens in a window of a text whose perplexity is taken
_SCORED_CHUNK, _WRITTEN_CHUNK = 64, 16  # items committed together: written answers take longer, so fewer may be lost
_BARE_CHUNK = 256  # a linear model answers hundreds in the time of one commit


@dataclass(frozen=True, slots=True)
class Answered:
    """What a model made of an item: it picked an answer, wrote one that has to be read, or a text was scored."""

    output: str  # what it wrote; where it picked, the log-probabilities as JSON
    picked: str | None = None
    written: bool = False
    text_score: TextScore | None = None
    tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Asker:
    """One task, one engine, one way of asking. Everything that can change an answer is in `parameters()`."""

    runner: Runner
    task: Task
    examples: tuple[Item, ...]
    way: Way
    normalised: bool = False  # score choices per character, as lm-evaluation-harness's acc_norm does

    def parameters(self) -> dict[str, object]:
        """What an answer depends on apart from model, task, item and seed."""
        return {
            "engine": self.runner.engine,
            "way": self.way,
            "format": self.task.format,
            "shots": [example.id for example in self.examples],
            "stop": list(stops(self.task, self.examples)),
            "max_tokens": self.task.max_tokens,
            "system": self.task.system,
            "normalised": self.normalised,
            "window": self._window if self.way == "score texts" else None,
        }

    @property
    def context(self) -> int | None:
        """Tokens that fit: what the engine was opened with, else what the model has; None where neither says."""
        opened: int | None = getattr(self.runner, "context_length", None)
        return opened or self.runner.model.context_length

    @property
    def chunk(self) -> int:
        """How many items to ask, and to commit, together."""
        if self.runner.raw_input:
            return _BARE_CHUNK
        return _WRITTEN_CHUNK if self.way in ("write", "write a letter") else _SCORED_CHUNK

    def render(self, items: Sequence[Item]) -> list[Rendered]:
        """The items as the model gets them."""
        if self.runner.raw_input or self.way == "score texts":
            return render_bare(items)
        return render(self.task, items, self.examples, lettered=self.way == "write a letter")

    def ask(self, rendered: Sequence[Rendered], listen: Listener = silent) -> list[Answered]:
        """Put a batch to the engine.

        Raises:
            UsageError: a prompt is longer than the engine's context.
            EngineFailed: the engine died, or gave another number of answers than questions.
        """
        ways: dict[Way, Callable[[Sequence[Rendered], Listener], list[Answered]]] = {
            "score labels": self._score,
            "score choices": self._score,
            "write": self._write,
            "write a letter": self._write,
            "score texts": self._score_texts,
        }
        answers = ways[self.way](rendered, listen)
        if len(answers) != len(rendered):
            raise EngineFailed(f"{self.runner.engine} gave {len(answers)} answers to {len(rendered)} questions")
        return answers

    def longest(self, rendered: Rendered) -> list[str]:
        """The texts of which each must fit into the context: the prompt with every continuation that is scored."""
        if self.way in ("write", "write a letter"):
            return [rendered.text]
        return [rendered.text + continuation for continuation in self._continuations(rendered.item)]

    @property
    def _window(self) -> int:
        return min(_WINDOW, self.context) if self.context else _WINDOW

    def _candidates(self, item: Item) -> tuple[str, ...]:
        return self.task.labels if self.way == "score labels" else item.choices

    def _continuations(self, item: Item) -> tuple[str, ...]:
        # A fitted model knows the labels themselves; to a language model they are text that goes on from the prompt.
        start = "" if self.runner.raw_input else self.task.answer_prefix
        return tuple(start + candidate for candidate in self._candidates(item))

    def _score(self, rendered: Sequence[Rendered], listen: Listener) -> list[Answered]:
        requests = [ScoreRequest(each.prompt or "", self._continuations(each.item)) for each in rendered]
        scores = self.runner.score(requests, listen)
        return [
            pick_likeliest(self._candidates(each.item), row, normalised=self.normalised)
            for each, row in zip(rendered, scores, strict=True)
        ]

    def _write(self, rendered: Sequence[Rendered], listen: Listener) -> list[Answered]:
        ends = stops(self.task, self.examples)
        sampling = Sampling(max_tokens=self.task.max_tokens, seed=self.task.seed, stop=ends)
        requests = [GenerateRequest(each.prompt, each.messages, sampling) for each in rendered]
        return [_written(reply) for reply in self.runner.generate(requests, None, listen)]

    def _score_texts(self, rendered: Sequence[Rendered], listen: Listener) -> list[Answered]:
        texts = [each.prompt or "" for each in rendered]
        scores = self.runner.score_texts(texts, self._window, listen)
        return [Answered("", text_score=score, tokens=score.tokens) for score in scores]


def asker_for(runner: Runner, task: Task, examples: tuple[Item, ...] = (), *, normalised: bool = False) -> Asker:
    """The way in which this engine can do this task.

    Raises:
        Unsupported: there is none; the message says what is missing.
    """
    if runner.raw_input:
        examples = ()
    if task.format == "text" and _asks_in_chat(runner, task):
        task = replace(task, format="chat")
    way = _way(runner, task)
    if task.format == "chat":
        task = _with_form_told(task, way)
    return Asker(runner, task, examples, way, normalised and way == "score choices")


def pick_likeliest(candidates: Sequence[str], scores: Sequence[Score], *, normalised: bool = False) -> Answered:
    """The likeliest candidate; of equals the first. No answer where the engine gave no finite number.

    Args:
        candidates: the possible answers.
        scores: of each, in the same order.
        normalised: compare log-probability per character, so that long choices are not at a disadvantage.
    """
    logprobs = [score.logprob for score in scores]
    tokens = sum(score.tokens for score in scores)
    shown = json.dumps(
        {
            text: round(value, 4) if math.isfinite(value) else None
            for text, value in zip(candidates, logprobs, strict=True)
        },
        ensure_ascii=False,
    )
    # Minus infinity says "never"; not a number, or never for all of them, says nothing.
    if any(math.isnan(value) for value in logprobs) or max(logprobs) == -math.inf:
        return Answered(shown, tokens=tokens)
    lengths = [max(1, len(text)) if normalised else 1 for text in candidates]
    values = [value / length for value, length in zip(logprobs, lengths, strict=True)]
    best = max(range(len(values)), key=values.__getitem__)
    return Answered(shown, picked=candidates[best], tokens=tokens)


def _written(reply: Reply) -> Answered:
    return Answered(reply.text, written=True, tokens=reply.completion_tokens)


def _way(runner: Runner, task: Task) -> Way:
    if task.kind == "perplexity":
        return _need(runner, "text_score", "score texts", "tell how likely a text is")
    scores = "score" in runner.abilities and (task.format == "text" or runner.raw_input)
    if task.kind == "classify" and scores:
        return "score labels"
    if task.kind == "choose" and scores and not runner.raw_input:
        return "score choices"
    way: Way = "write a letter" if task.kind == "choose" else "write"
    if task.format == "chat":
        return _need(runner, "chat", way, "hold a conversation")
    return _need(runner, "generate", way, "write text")


def _need(runner: Runner, ability: str, way: Way, what: str) -> Way:
    if ability not in runner.abilities:
        raise Unsupported(f"{runner.model.name} ({runner.engine}) cannot {what}; choose another model for this task")
    return way


def _asks_in_chat(runner: Runner, task: Task) -> bool:
    """Whether a task of plain text is put as a conversation: the engine knows no other, or has to write a choice.

    An endpoint that tells no log-probabilities is mostly an instructed model; in a conversation it can be told the form
    of the answer, where plain text would leave it to guess.
    """
    if "chat" not in runner.abilities:
        return False
    return "generate" not in runner.abilities or (
        task.kind in ("classify", "choose") and "score" not in runner.abilities
    )


def _with_form_told(task: Task, way: Way) -> Task:
    """The task with the form of the answer told to the model, unless its prompt does so."""
    if way == "write a letter":
        line = "Answer with the letter of the right choice and nothing else."
    elif way == "write" and task.kind == "classify":
        told = (task.prompt + task.system).lower()
        if all(label.lower() in told for label in task.labels):
            return task
        line = "Answer with exactly one of these labels and nothing else: " + ", ".join(task.labels)
    else:
        return task
    return replace(task, system=f"{task.system}\n{line}".strip())
