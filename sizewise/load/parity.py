"""The gate that every export and import passes: is the copy the same model?

Two files can hold the same weights and be different models: rows ordered for another rotation, a tokenizer that cuts
numbers elsewhere, a template that got lost, a BOS that is no longer put in front. Both are therefore run, each in the
engine that it is for, and compared on what users see: token ids of texts chosen to be awkward, the prompt that the
template makes of a conversation, log-probabilities of the likeliest tokens at every position, greedy answers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel
from sizewise.core.model import Model
from sizewise.core.requests import Message
from sizewise.load.child import Child
from sizewise.load.gguf.file import read_gguf
from sizewise.load.templates import render_chat

# What tokenizers disagree about. All of it is in Unicode's composed form, which both engines leave as it is.
PROBES = (
    "The quick brown fox jumps over the lazy dog.",
    " leading space, trailing space ",
    "two  spaces,   three, and\ttabs\n\nand empty lines\n",
    "12345 3.14159 1,000,000 2024-05-17 0x1F 1st 22nd",
    "def add(first, second):\n    return first + second  # sum\n",
    'for (int i = 0; i < n; ++i) { x[i] *= 2; }\nprintf("%d\\n", x);',
    "don't can't I'LL we've it's they'd",
    "Größe, naïve, œuvre, Łódź, 東京は日本の首都です。 Привет, мир! שלום عربي हिन्दी",
    "emoji: 🙂👩‍👩‍👧 ½ ² ™ … “quotes” «guillemets»",
    "MixedCaseWORDS snake_case kebab-case http://example.org/a?b=c&d=%20",
    "<s>not</s> <|im_start|>control<|im_end|> <|endoftext|> [INST] </s>",
    "",
    "a",
    "!!!???...---***",
    "\u00a0non-breaking\u2003wide\u200bnothing",
)
CONVERSATION = (
    Message("user", "What is 2 + 2?"),
    Message("assistant", "Four."),
    Message("user", "And in French?"),
)
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_QUIET |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
_TOP, _ANSWER, _ROW = 10, 8, 48  # likeliest tokens compared, tokens of an answer, tokens of a row
# Largest difference of a log-probability that is put down to rounding, by how the copy's weights are stored.
# Rare tokens differ most; another model differs everywhere, so that the mean has a bound of its own, a tenth of it.
# (SmolLM2 in F16, llama.cpp beside torch: 0.14 at most, 0.0033 on average.)
BOUNDS = {"F32": 0.01, "F16": 0.3, "BF16": 0.5}
_ROUNDED = 3.0  # llama.cpp multiplies quantized weights with activations rounded to 8 bits
_TABLED = frozenset(
    {"gpt2", "phi2", "falcon", "gemma2", "gemma3"}
)  # llama.cpp reads GELU from a table of 16-bit numbers
_GELU = 0.05
_TIES = {"phimoe": 0.5}  # share of positions that may differ by more, for the reason that `load.gguf.names` gives


@dataclass(frozen=True, slots=True)
class Parity:
    """What was compared and how far apart it was. `differences` is empty where the two are the same model."""

    texts: int
    positions: int
    worst: float  # largest difference of a log-probability among the likeliest tokens
    mean: float
    bound: float
    beyond: float = 0.0  # share of positions beyond the bound; 0 is asked for, except where `load.gguf.names` says why
    differences: tuple[str, ...] = field(default=())

    def as_json(self) -> dict[str, Any]:
        """For the lineage."""
        return {
            "texts": self.texts,
            "positions": self.positions,
            "largest_logprob_difference": round(self.worst, 6),
            "mean_logprob_difference": round(self.mean, 6),
            "bound": self.bound,
            "share_beyond_bound": round(self.beyond, 4),
        }


@dataclass(frozen=True, slots=True)
class Observed:
    """What a model says to the probes, to be compared with what its copies say."""

    model: Model
    ids: list[list[int]]
    prompt: str | None  # the conversation as the template writes it
    rows: list[list[int]]
    likeliest: NDArray[np.float64]  # (positions, _TOP, 2): token and log-probability
    answers: list[list[list[float]]]  # token and its lead, step by step


def require_parity(
    reference: Model | Observed, copy: Model, *, bound: float | None = None, threads: int | None = None
) -> Parity:
    """Compare, and refuse a copy that differs.

    Args:
        reference: the model that was copied, a checkpoint or a GGUF; or what was observed of it.
        copy: what was made of it.
        bound: largest difference of a log-probability; None: by the kind of the less exact of the two.
        threads: of each engine.

    Raises:
        BadModel: the two differ; the message says in what.
        EngineFailed: an engine died on one of them.
    """
    found = compare(reference, copy, bound=bound, threads=threads)
    if found.differences:
        name = reference.name if isinstance(reference, Model) else reference.model.name
        raise BadModel(f"{copy.name} is not the same model as {name}: {'; '.join(found.differences)}")
    return found


def require_same_text(reference: Observed, copy: Model) -> None:
    """Compare only what a change of the number of bits leaves alone: tokens and template.

    Raises:
        BadModel: the two differ; the message says in what.
    """
    with _Opened(copy, 1, vocab_only=copy.kind == "gguf") as other:
        differences = [*_compare_ids(reference.ids, other.ids()), *_compare_prompts(reference.prompt, other.prompt())]
    if differences:
        raise BadModel(f"{copy.name} is not the same model as {reference.model.name}: {'; '.join(differences)}")


def observe(model: Model, *, tokens: int = _ROW, threads: int | None = None) -> Observed:
    """Run a model on the probes; `tokens` is the most that a copy's context holds."""
    with _Opened(model, threads) as one:
        ids = one.ids()
        rows = _rows(ids, min(_context(model), tokens))
        return Observed(model, ids, one.prompt(), rows, one.top(rows), one.greedy(rows))


def compare(
    reference: Model | Observed, copy: Model, *, bound: float | None = None, threads: int | None = None
) -> Parity:
    """What `require_parity` looks at, without an opinion. Only one model is in memory at a time."""
    seen = observe(reference, tokens=_context(copy), threads=threads) if isinstance(reference, Model) else reference
    bound = bound if bound is not None else bound_of(seen.model, copy)
    count = len(seen.ids)
    with _Opened(copy, threads) as other:
        differences = [*_compare_ids(seen.ids, other.ids()), *_compare_prompts(seen.prompt, other.prompt())]
        if differences:  # what the engines compute from other tokens says nothing
            return Parity(count, 0, math.nan, math.nan, bound, differences=tuple(differences))
        gaps = np.abs(other.at(seen.rows, seen.likeliest[..., 0]) - seen.likeliest[..., 1])
        worst, mean, beyond = float(gaps.max()), float(gaps.mean()), float((~(gaps <= bound)).any(axis=1).mean())
        allowed = max(_TIES.get(model.architecture, 0.0) for model in (seen.model, copy))
        if beyond > allowed or not (allowed or mean <= bound / 10):
            differences.append(
                f"log-probabilities of the {_TOP} likeliest tokens differ by up to {worst:.4g} (mean {mean:.2g}), more "
                f"than rounding explains ({bound:g}, mean {bound / 10:g})"
            )
        if not allowed:
            differences += _compare_answers(seen.answers, other.greedy(seen.rows), bound)
    return Parity(count, len(gaps), worst, mean, bound, beyond, tuple(differences))


def bound_of(*models: Model) -> float:
    """The bound for the least exact of some models: how F32, F16 or BF16 weights of a GGUF are multiplied."""
    files = [model for model in models if model.kind == "gguf"]
    bounds = [BOUNDS.get(model.quantization, _ROUNDED) for model in files]
    bounds += [_GELU for model in files if model.architecture in _TABLED]
    return max(bounds, default=BOUNDS["F32"])


def _context(model: Model) -> int:
    return (model.context_length or _ROW + _ANSWER) - _ANSWER


class _Opened:
    """One model in a child process."""

    def __init__(self, model: Model, threads: int | None, *, vocab_only: bool = False) -> None:
        self.model = model
        self.child = Child("sizewise.load._parity_child", model.name, _QUIET)
        files = {title: str(path) for title, path in model.files.items()}
        try:
            self.facts: dict[str, Any] = self.child.call(
                "open", what=model.name, kind=model.kind, files=files, threads=threads, vocab_only=vocab_only
            )[0]
        except BaseException:
            self.child.close()
            raise
        template = self.facts.get("template")
        if model.kind == "gguf":
            template = read_gguf(next(iter(model.files.values()))).template
        self.template: str | None = model.template or template

    def __enter__(self) -> "_Opened":
        return self

    def __exit__(self, *_: object) -> None:
        self.child.close()

    def ids(self) -> list[list[int]]:
        """Token ids of the probes, and of the conversation's prompt."""
        prompt = self.prompt()
        texts = [*PROBES, *([prompt] if prompt else [])]
        found: list[list[int]] = self.child.call("encode", texts=texts)[0]
        return found

    def prompt(self) -> str | None:
        """The conversation as the template writes it; None without a template."""
        if not self.template:
            return None
        return render_chat(self.template, CONVERSATION, bos=self.facts["bos"], eos=self.facts["eos"])

    def top(self, rows: list[list[int]]) -> NDArray[np.float64]:
        """(positions, _TOP, 2): the likeliest tokens and their log-probabilities."""
        shape, data = self.child.call("top", rows=rows, count=_TOP)
        return np.frombuffer(data, np.float64).reshape(shape)

    def at(self, rows: list[list[int]], tokens: NDArray[np.float64]) -> NDArray[np.float64]:
        """(positions, _TOP): log-probabilities of given tokens."""
        ends = np.cumsum([len(row) for row in rows])[:-1]
        wanted = [piece.astype(int).tolist() for piece in np.split(tokens, ends)]
        shape, data = self.child.call("at", rows=rows, wanted=wanted)
        return np.frombuffer(data, np.float64).reshape(shape)

    def greedy(self, rows: list[list[int]]) -> list[list[list[float]]]:
        """Answers to the first rows: token and its lead, step by step."""
        found: list[list[list[float]]] = self.child.call("greedy", rows=[row[:16] for row in rows[:3]], count=_ANSWER)[
            0
        ]
        return found


def _rows(ids: Sequence[Sequence[int]], most: int) -> list[list[int]]:
    """What the models are run on: the longer probes, cut to a length that costs little and fits both contexts."""
    width = max(1, min(_ROW, most))
    chosen = sorted((list(row[:width]) for row in ids if len(row) > 4), key=len, reverse=True)
    return chosen[:8] or [list(row) for row in ids if row][:1]


def _compare_ids(one: Sequence[Sequence[int]], other: Sequence[Sequence[int]]) -> list[str]:
    if len(one) != len(other):
        return []  # one has a template and the other has not, which is said elsewhere
    wrong = [place for place, (left, right) in enumerate(zip(one, other, strict=True)) if list(left) != list(right)]
    if not wrong:
        return []
    place = wrong[0]
    what = repr(PROBES[place][:40]) if place < len(PROBES) else "the conversation's prompt"
    left, right = one[place], other[place]
    at = next((i for i, (a, b) in enumerate(zip(left, right, strict=False)) if a != b), min(len(left), len(right)))
    if len(left) > len(right) and list(left[1:]) == list(right):
        what += " (no BOS is put in front)"
    elif len(right) > len(left) and list(right[1:]) == list(left):
        what += " (a BOS is put in front)"
    return [
        f"{len(wrong)} of {len(one)} texts have other tokens, the first {what}: {list(left[at : at + 6])} "
        f"became {list(right[at : at + 6])}"
    ]


def _compare_prompts(one: str | None, other: str | None) -> list[str]:
    if one == other:
        return []
    if one is None or other is None:
        return [f"the chat template is {'missing' if other is None else 'new'}"]
    at = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return [f"the chat template writes {other[at : at + 30]!r} where it wrote {one[at : at + 30]!r}"]


def _compare_answers(
    one: Sequence[Sequence[Sequence[float]]], other: Sequence[Sequence[Sequence[float]]], bound: float
) -> list[str]:
    """Greedy answers must be the same up to the first step where two tokens were nearly as likely as each other."""
    for number, (left, right) in enumerate(zip(one, other, strict=True)):
        for step, (a, b) in enumerate(zip(left, right, strict=True)):
            if a[0] != b[0]:
                if a[1] > 2 * bound:
                    return [f"greedy answer {number + 1} differs at token {step + 1}: {int(a[0])} became {int(b[0])}"]
                break
    return []
