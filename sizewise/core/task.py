"""A task: the job a model is to do, as items with known answers. Nouns only; `load.tasks` reads them from files."""

from dataclasses import dataclass, field
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


@dataclass(frozen=True, slots=True)
class Task:
    """What to ask, what counts as right, and the items of each split.

    `digest` covers everything that can change a score: prompt, labels, shots, format, metric and the test items.
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
