"""What measuring and choosing produce. The terminal table, the JSON, the Markdown and the report all read these.

Every class has `as_json`; keys carry their units. A quality is on the metric's own scale (accuracy 0 to 1).
"""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from sizewise.core.measurement import Measurement
from sizewise.core.task import Split

Status = Literal["pass", "none_passes", "undecided"]


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95 % interval over `n` items."""

    value: float
    low: float
    high: float
    n: int

    def as_json(self) -> dict[str, Any]:
        """The interval as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a model did with one item. `score` is None where it gave no usable answer: unanswered is not wrong.

    `answer` is what was taken from the output (a label, a number, a text). `statistics` holds what a corpus metric
    needs of this item (BLEU's n-gram counts, log-probability and bytes for perplexity).
    """

    id: str
    expected: str | None
    answer: str | None
    output: str
    score: float | None
    seconds: float
    tokens: int | None = None
    prompt: str = ""
    statistics: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class Evaluation:
    """One model on one split of one task."""

    model: str
    model_digest: str
    task: str
    task_digest: str
    split: Split
    metric: str
    quality: Interval
    unanswered: int
    seconds: float
    cpu_s_per_item: float | None
    outcomes: tuple[Outcome, ...]
    engine: str = ""
    higher_is_better: bool = True
    measurements: tuple[Measurement, ...] = ()
    warnings: tuple[str, ...] = ()

    def as_json(self) -> dict[str, Any]:
        """The evaluation without its items (those stay in the ledger)."""
        return {
            "model": self.model,
            "task": self.task,
            "metric": self.metric,
            "value": self.quality.value,
            "low": self.quality.low,
            "high": self.quality.high,
            "n": self.quality.n,
            "unanswered": self.unanswered,
            "seconds": self.seconds,
            "cpu_s_per_item": self.cpu_s_per_item,
            "split": self.split,
            "engine": self.engine,
            "model_digest": self.model_digest,
            "task_digest": self.task_digest,
            "measurements": [measurement.as_json() for measurement in self.measurements],
            "warnings": list(self.warnings),
        }


@dataclass(frozen=True, slots=True)
class Difference:
    """Two models on the same items: first minus second, so that higher is better for the first."""

    value: float
    low: float
    high: float
    n: int
    confidence: float  # of low..high, e.g. 0.95
    flips: int  # items whose answer is different
    mcnemar_p: float | None  # None where items are not right or wrong
    rows_to_separate: int | None  # items needed to see a difference of this size; None where there is none to see

    def as_json(self) -> dict[str, Any]:
        """The difference as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Bar:
    """What a model must reach: `at_least` a quality, or within `margin` of a reference model (or of the best found)."""

    at_least: float | None = None
    margin: float | None = None
    reference: str | None = None  # None with a margin: the best candidate found

    def as_json(self) -> dict[str, Any]:
        """The bar as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class Candidate:
    """One way to do the task, how good and how costly it was, and why it left the race (empty: it did not)."""

    model: str
    kind: Literal["majority", "tfidf", "embedding", "prompted"]
    dev: Interval | None
    test: Interval | None
    cpu_s_per_item: float | None
    latency_p50_s: float | None
    bytes: int | None
    left_because: str = ""
    difference: Difference | None = None  # to the reference, on the test split
    shots: int | None = None
    latency_p95_s: float | None = None
    memory_bytes: int | None = None
    energy_j_per_item: Measurement | None = None
    usd_per_1000_items: Measurement | None = None
    per_class: dict[str, dict[str, float]] = field(default_factory=dict)  # label -> precision, recall, f1, n
    examples: tuple[dict[str, str], ...] = ()  # some items: input, expected, answer
    digest: str = ""
    confusion: dict[str, dict[str, int]] = field(default_factory=dict)  # expected label -> answered label -> items

    def as_json(self) -> dict[str, Any]:
        """The candidate as JSON."""
        body = {name: getattr(self, name) for name in self.__dataclass_fields__}
        for name, value in body.items():
            if hasattr(value, "as_json"):
                body[name] = value.as_json()
        body["examples"] = list(self.examples)
        return body


@dataclass(frozen=True, slots=True)
class Decision:
    """The answer, in a sentence with numbers that a person can say aloud."""

    status: Status
    model: str | None
    sentence: str
    rows_needed: int | None = None  # undecided: how many test rows would settle it
    smallest: str | None = None
    fastest: str | None = None
    cheapest: str | None = None

    def as_json(self) -> dict[str, Any]:
        """The decision as JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class FitResult:
    """A whole search for the smallest model that does a task."""

    task: str
    task_digest: str
    metric: str
    decision: Decision
    bar: Bar
    candidates: tuple[Candidate, ...]
    machine: dict[str, Any]
    seed: int
    seconds: float
    limits: dict[str, float | None] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    command: str = ""  # what to type to get it again

    def as_json(self) -> dict[str, Any]:
        """The result as JSON."""
        return {
            "kind": "fit",
            "task": self.task,
            "task_digest": self.task_digest,
            "metric": self.metric,
            "decision": self.decision.as_json(),
            "bar": self.bar.as_json(),
            "limits": self.limits,
            "candidates": [candidate.as_json() for candidate in self.candidates],
            "machine": self.machine,
            "seed": self.seed,
            "seconds": self.seconds,
            "notes": list(self.notes),
            "command": self.command,
        }


@dataclass(frozen=True, slots=True)
class ComparedAnswer:
    """One model's answer to one instruction, with what it took."""

    instruction: str  # its title
    prompt: str
    answer: str
    finish: str
    measurements: tuple[Measurement, ...]  # first_token, total, tokens_per_second, tokens, energy, co2, cost

    def as_json(self) -> dict[str, Any]:
        """The answer as JSON."""
        return asdict(self) | {"measurements": [measurement.as_json() for measurement in self.measurements]}


@dataclass(frozen=True, slots=True)
class ComparedModel:
    """One model's column in a comparison."""

    model: str
    digest: str
    bytes: int | None
    parameters: int | None
    quantization: str
    answers: tuple[ComparedAnswer, ...]
    measurements: tuple[Measurement, ...]  # of the whole: load time, peak memory, flops per token, bits per weight, ...

    def as_json(self) -> dict[str, Any]:
        """The column as JSON."""
        return asdict(self) | {
            "answers": [answer.as_json() for answer in self.answers],
            "measurements": [measurement.as_json() for measurement in self.measurements],
        }


@dataclass(frozen=True, slots=True)
class Comparison:
    """Several models, the same instructions."""

    models: tuple[ComparedModel, ...]
    machine: dict[str, Any]
    seconds: float
    seed: int = 0
    max_tokens: int | None = None
    notes: tuple[str, ...] = ()  # the order in which the models ran, what was left out and why
    command: str = ""  # what to type to get it again

    def as_json(self) -> dict[str, Any]:
        """The comparison as JSON."""
        return {
            "kind": "comparison",
            "models": [model.as_json() for model in self.models],
            "machine": self.machine,
            "seconds": self.seconds,
            "seed": self.seed,
            "max_tokens": self.max_tokens,
            "notes": list(self.notes),
            "command": self.command,
        }
