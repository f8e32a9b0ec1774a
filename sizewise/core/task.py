"""A task: the job a model is to do, as items with known answers. Nouns only; `load.tasks` reads them from files."""

import hashlib
import json
import re
from dataclasses import dataclass, field, replace
from decimal import Decimal, InvalidOperation
from typing import Any, Literal

Kind = Literal["classify", "choose", "generate", "number", "code", "perplexity"]
Format = Literal["text", "chat"]
Split = Literal["train", "dev", "test"]


@dataclass(frozen=True, slots=True)
class Item:
    """One question. `id` is its place in the file (1-based line); `expected` is a label, a text, a number or None."""

    id: str
    input: str
    expected: str | None
    choices: tuple[str, ...] = ()
    fields: dict[str, Any] = field(default_factory=dict)  # the whole row, for prompts that name other fields
    worked: str = ""  # what a worked example shows as its answer, where that is more than `expected` (the steps too)


@dataclass(frozen=True, slots=True)
class Task:
    """What to ask, what counts as right, and the items of each split.

    `digest` covers everything that can change a score: prompt, labels, shots, format, metric and the items of every
    split. Change a task through `changed`, which makes the new digest.
    """

    name: str
    kind: Kind
    metric: str
    prompt: str
    labels: tuple[str, ...]  # classify: all classes, sorted; else empty
    shots: int  # worked examples put before each prompt, drawn from train with `seed`
    format: Format
    max_tokens: int
    stop: tuple[str, ...]
    system: str
    separator: str  # between worked examples
    answer_prefix: str  # between prompt and answer, usually one space
    seed: int
    splits: dict[Split, tuple[Item, ...]]
    source: str  # the file that it was read from
    digest: str
    fields: dict[str, str] = field(default_factory=dict)  # role -> name of the rows' field ("tests" -> "test")


def changed(task: Task, **changes: Any) -> Task:
    """The task with some of its attributes replaced, and the digest that belongs to it."""
    draft = replace(task, **changes)
    return replace(draft, digest=task_digest(draft))


def task_digest(task: Task) -> str:
    """The content address of a task: two tasks that could score differently never share it. Names are left out."""
    settings = {
        name: getattr(task, name)
        for name in task.__dataclass_fields__
        if name not in ("name", "source", "digest", "splits")
    }
    sha = hashlib.sha256(_line(settings))
    for split in sorted(task.splits):
        for item in task.splits[split]:
            sha.update(_line([split, item.id, item.input, item.expected, item.choices, item.worked, item.fields]))
    return "sha256:" + sha.hexdigest()


def _line(value: Any) -> bytes:
    """A value as a line of bytes; dates and decimals, which Parquet rows may hold, as their text."""
    return json.dumps(value, sort_keys=True, default=str).encode() + b"\n"


_PLACEHOLDER = re.compile(r"\{\{(\w+)\}\}|\{([A-Za-z_]\w*)\}")


def placeholders(prompt: str) -> tuple[str, ...]:
    """The fields that a prompt names as `{field}`. `{{field}}` stands for the braces themselves."""
    return tuple(match[2] for match in _PLACEHOLDER.finditer(prompt) if match[2])


def fill_prompt(prompt: str, item: Item) -> str:
    """The prompt with each `{field}` replaced by the item's; `{input}` is always the item's input.

    What is put in is not looked at again, so braces in the data stay as they are.
    """

    def value(match: re.Match[str]) -> str:
        if match[1]:
            return "{" + match[1] + "}"
        return item.input if match[2] == "input" else str(item.fields[match[2]])

    return _PLACEHOLDER.sub(value, prompt)


def parse_number(text: str) -> Decimal | None:
    """A number as people write it: `1,234.50`, `$12`, `-3`, `25%`, `1e3`; None where the text is something else."""
    bare = text.strip().replace("\u2212", "-").rstrip(".").replace(",", "").replace("_", "")
    match = re.fullmatch(r"([+-]?)\s*[$€£]?\s*([+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d{1,3})?)\s*%?", bare)
    try:
        return Decimal(match[1] + match[2]) if match else None
    except InvalidOperation:  # two signs
        return None
