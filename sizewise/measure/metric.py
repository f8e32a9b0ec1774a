"""A metric: what one answer scores, and what the scores of many items come to.

Every metric is a function of sums over items: right answers, n-gram matches, log-probability. An item's share of those
sums is its `statistics`. Drawing items with replacement then only multiplies each item's statistics by how often it was
drawn, so a thousand resamples are one matrix product, and no text is looked at twice.

An item without a usable answer has no score. In the value over all items it counts as a failure, because a model that
passes over the hard questions must not win by it. `answered` leaves such items out; their number is always reported.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import Unsupported, UsageError
from sizewise.core.registry import Registry
from sizewise.core.requests import TextScore
from sizewise.core.results import Outcome
from sizewise.core.task import Item, Kind, Task

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


class Scored(NamedTuple):
    """One item's result. `score` is None where the output holds no usable answer."""

    answer: str | None  # what was taken from the output
    score: float | None
    statistics: tuple[float, ...] = ()  # the item's share of the sums that the value is made of


Resample = Callable[[Sequence[Outcome], Floats], Floats]  # outcomes (n), times drawn (B, n) -> values (B,)


@dataclass(frozen=True, slots=True)
class Metric:
    """One way to say how good answers are. `scale` is the best value, or None where there is no bound."""

    name: str
    unit: str
    kinds: frozenset[Kind]  # of tasks that it can score
    values: Resample
    of_answer: Callable[[Item, str, Task], Scored] | None = None
    of_text: Callable[[TextScore], Scored] | None = None  # perplexity: nothing is answered, a text is scored
    higher_is_better: bool = True
    scale: float | None = 1.0

    def score(self, item: Item, output: str, task: Task) -> Scored:
        """What an output is worth, as an answer to `item`.

        Raises:
            Unsupported: the metric scores texts, not answers; or this system cannot judge safely (see `sandbox`).
        """
        if self.of_answer is None:
            raise Unsupported(f"{self.name} scores the text itself; it has no use for an answer")
        return self.of_answer(item, output, task)

    def score_text(self, text: TextScore) -> Scored:
        """What the log-probability of an item's text is worth.

        Raises:
            Unsupported: the metric scores answers.
        """
        if self.of_text is None:
            raise Unsupported(f"{self.name} scores answers; it has no use for log-probabilities")
        return self.of_text(text)

    def aggregate(self, outcomes: Sequence[Outcome]) -> float:
        """The value over all items, those without an answer counted as failures; NaN where there are no items."""
        return float(self.resample(outcomes, np.ones((1, len(outcomes)), np.int64))[0])

    def resample(self, outcomes: Sequence[Outcome], counts: Counts) -> Floats:
        """Values of many draws of the items.

        Args:
            outcomes: n of them.
            counts: (B, n), how often each item was drawn; all ones gives `aggregate`.

        Returns:
            (B,) values; NaN where a draw holds nothing that the value could be made of.
        """
        with np.errstate(divide="ignore", invalid="ignore"):
            # as floats: whole-number matrix products are many times slower
            return self.values(outcomes, counts.astype(np.float64))

    @classmethod
    def of_mean(
        cls, name: str, unit: str, kinds: frozenset[Kind], of_answer: Callable[[Item, str, Task], Scored]
    ) -> Self:
        """A metric that is the mean of the items' scores, each between 0 and 1."""
        return cls(name, unit, kinds, _mean, of_answer)


def _mean(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    """Mean score of each draw."""
    scores = np.array([outcome.score or 0.0 for outcome in outcomes], np.float64)
    values: Floats = counts @ scores / counts.sum(axis=1)
    return values


def sums(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    """(B, k) sums of the items' k statistics in each draw."""
    totals: Floats = counts @ np.array([outcome.statistics for outcome in outcomes], np.float64).reshape(
        len(outcomes), -1
    )
    return totals


def answered(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The items that got a usable answer: `metric.aggregate(answered(outcomes))` is the value over those alone."""
    return [outcome for outcome in outcomes if outcome.score is not None]


def unanswered(outcomes: Sequence[Outcome]) -> int:
    """How many items got no usable answer. Report it beside every value."""
    return sum(outcome.score is None for outcome in outcomes)


def metrics() -> Registry:
    """All metrics, by the names of their files."""
    return Registry("metric", "sizewise.measure.metrics", Path(__file__).parent / "metrics")


def metric_for(task: Task) -> Metric:
    """The metric that a task names.

    Raises:
        UnknownName: there is none of that name.
        UsageError: it cannot score tasks of this kind.
    """
    registry = metrics()
    metric: Metric = registry.get(task.metric)
    if task.kind not in metric.kinds:
        fitting = [name for name in registry.names() if task.kind in registry.get(name).kinds]
        raise UsageError(
            f"{task.source}: the metric {task.metric} cannot score kind {task.kind!r}; choose one of "
            + ", ".join(fitting)
        )
    return metric
