"""How items are put to a model: worked examples first, then the question, as plain text or as a conversation.

The worked examples are drawn once per task and are the same, in the same order, for every item, so that all prompts
begin alike and an engine computes that beginning once. They come from the train split alone. For classification they
are balanced over the labels: a model that sees six of one and two of another learns the proportion, not the job.
"""

import random
import string
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sizewise.core.errors import UsageError
from sizewise.core.requests import Message
from sizewise.core.task import Item, Task, fill_prompt

LETTERS = string.ascii_uppercase


@dataclass(frozen=True, slots=True)
class Rendered:
    """One item as the model gets it: a text to continue, or the turns of a conversation (then `prompt` is None)."""

    item: Item
    prompt: str | None
    messages: tuple[Message, ...] = ()

    @property
    def text(self) -> str:
        """All of it for people to read; also what the ledger keeps."""
        if self.prompt is not None:
            return self.prompt
        return "\n\n".join(f"{message.role}: {message.content}" for message in self.messages)


def worked_examples(task: Task, shots: int | None = None) -> tuple[Item, ...]:
    """The items of the train split that are shown, with their answers, before each question.

    Args:
        task: gives the train split, the seed and, for classify, the labels to balance over.
        shots: how many; None: as many as the task says.

    Raises:
        UsageError: the train split is missing or too small.
    """
    shots = task.shots if shots is None else shots
    if shots < 0:
        raise UsageError(f"{task.source}: shots must be at least 0, not {shots}")
    if shots == 0:
        return ()
    pool = [item for item in task.splits.get("train", ()) if example_answer(item)]
    if len(pool) < shots:
        raise UsageError(
            f"{task.source}: {shots} worked examples need as many train rows with an answer, there are {len(pool)}; "
            "add rows to train or lower shots"
        )
    generator = random.Random(task.seed)
    generator.shuffle(pool)
    drawn = _balanced(pool, shots) if task.kind == "classify" else pool[:shots]
    generator.shuffle(drawn)
    return tuple(drawn)


def example_answer(item: Item) -> str:
    """What a worked example shows as its answer; empty where it has none."""
    return item.worked or item.expected or ""


def render(
    task: Task, items: Sequence[Item], examples: Sequence[Item] = (), *, lettered: bool = False
) -> list[Rendered]:
    """Each item with the same worked examples before it.

    Args:
        task: gives prompt, format, system, separator and answer prefix.
        items: the questions.
        examples: worked examples, in the order in which they are shown.
        lettered: list the choices below the input as A., B., ...; answers are letters then.
    """
    questions = [fill_prompt(task.prompt, _lettered(item) if lettered else item) for item in items]
    if lettered:
        examples = [_lettered(item) for item in examples]
    if task.format == "chat":
        opening = _turns(task, examples)
        return [
            Rendered(item, None, (*opening, Message("user", question)))
            for item, question in zip(items, questions, strict=True)
        ]
    shown = [fill_prompt(task.prompt, item) + task.answer_prefix + example_answer(item) for item in examples]
    beginning = "".join(example + task.separator for example in shown)
    return [Rendered(item, beginning + question) for item, question in zip(items, questions, strict=True)]


def render_bare(items: Sequence[Item]) -> list[Rendered]:
    """The inputs and nothing else, for models that were fitted on them."""
    return [Rendered(item, item.input) for item in items]


def stops(task: Task, examples: Sequence[Item]) -> tuple[str, ...]:
    """Where an answer ends: what the task says, and the separator, after which a model would make up the next example.

    An example whose own answer holds the separator shows that answers may; then it is no end.
    """
    ends = task.format == "text" and examples and task.separator and task.separator not in task.stop
    if not ends or any(task.separator in example_answer(example) for example in examples):
        return task.stop
    return (*task.stop, task.separator)


def _balanced(pool: Sequence[Item], shots: int) -> list[Item]:
    """`shots` items, of each label as many as of any other or one fewer, while there are enough of it."""
    queues: dict[str | None, list[Item]] = {}
    for item in pool:
        queues.setdefault(item.expected, []).append(item)
    drawn: list[Item] = []
    while len(drawn) < shots:
        for queue in queues.values():
            if queue and len(drawn) < shots:
                drawn.append(queue.pop(0))
    return drawn


def _lettered(item: Item) -> Item:
    """The item with its choices listed, and the letter of the right one for an answer."""
    if len(item.choices) > len(LETTERS):
        raise UsageError(f"item {item.id} has {len(item.choices)} choices; letters go to {len(LETTERS)}")
    listed = "\n".join(f"{letter}. {choice}" for letter, choice in zip(LETTERS, item.choices, strict=False))
    expected = LETTERS[item.choices.index(item.expected)] if item.expected in item.choices else item.expected
    return replace(item, input=f"{item.input}\n{listed}", expected=expected, worked="")


def _turns(task: Task, examples: Sequence[Item]) -> tuple[Message, ...]:
    """What comes before the question in a conversation."""
    turns = [Message("system", task.system)] if task.system else []
    for example in examples:
        turns.append(Message("user", fill_prompt(task.prompt, example)))
        turns.append(Message("assistant", example_answer(example)))
    return tuple(turns)
