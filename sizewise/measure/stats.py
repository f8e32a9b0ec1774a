"""How sure a quality is, and whether two models differ: intervals, paired tests, and how many more rows would tell.

Two families of intervals, and the reason for two:

- A share of right answers (accuracy, exact match, pass@1) is a binomial proportion, whose score intervals are known:
  Wilson's for one model (1927), Tango's for the difference of two models on the same items (1998). They keep their
  coverage where a bootstrap has none: at 0 % and 100 %, and where two models answer all items alike, every resample is
  the same and a bootstrap interval has width zero, however few the items.
- Everything else (F1, BLEU, chrF, perplexity, ROUGE) has no closed form and is resampled: items are drawn with
  replacement, both models of a pair always on the same draw. Bias-corrected and accelerated (BCa) for one model
  (Efron 1987), percentile for a difference.

A metric takes part through two functions: `aggregate(outcomes)`, and `resample(outcomes, counts)` with `counts` (B, n):
how often item j is drawn in resample i. An unanswered item counts as not right in both.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import UsageError
from sizewise.core.results import Difference, Evaluation, Interval, Outcome

CONFIDENCE = 0.95
POWER = 0.8
RESAMPLES = 2000
_CELLS = 1 << 20  # counts held in memory at once
_JACKKNIFE_LIMIT = 4000  # items above which BCa's correction is too small to pay for n more aggregates

Floats = NDArray[np.float64]
Statistic = Callable[[NDArray[np.int64]], Floats]  # (B, n) counts -> (B,) values


class Aggregate(Protocol):
    """What statistics need of a metric."""

    def aggregate(self, outcomes: Sequence[Outcome]) -> float:
        """The value over all items."""
        ...

    def resample(self, outcomes: Sequence[Outcome], counts: NDArray[np.int64]) -> Floats:
        """(B,) values, one for each row of `counts` (B, n)."""
        ...


def interval(
    metric: Aggregate,
    outcomes: Sequence[Outcome],
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Interval:
    """A metric's value over `outcomes` with its interval: Wilson's for a share of right answers, else BCa.

    Raises:
        UsageError: there are no outcomes.
    """
    n = len(outcomes)
    if not n:
        raise UsageError("no items to take a score of; give the task at least one row")
    value = float(metric.aggregate(outcomes))
    right = _rightness(outcomes)
    if right is not None and math.isclose(value, float(right.mean()), abs_tol=1e-12):
        return Interval(value, *wilson(float(right.sum()), n, confidence), n)

    def statistic(counts: NDArray[np.int64]) -> Floats:
        return metric.resample(outcomes, counts)

    low, high = bootstrap(statistic, n, value, confidence=confidence, seed=seed, resamples=resamples)
    if low == high and 0 <= value <= 1 and _bounded(outcomes):
        # Every resample is the same. Of all variables in [0, 1] with one mean a coin has the largest variance, so
        # Wilson's interval is a safe bound.
        low, high = wilson(value * n, n, confidence)
    return Interval(value, min(low, value), max(high, value), n)


def wilson(right: float, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Wilson's score interval of a proportion: `right` of `n`. Never of width zero, never outside 0..1."""
    z = _z(confidence)
    share = right / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    # At 0 and at n the bound is exact; rounding would leave it a hair inside.
    return (0.0 if right <= 0 else max(0.0, centre - half)), (1.0 if right >= n else min(1.0, centre + half))


def tango(gained: int, lost: int, n: int, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Tango's score interval of a paired difference of proportions, (gained - lost) / n.

    Args:
        gained: items that only the first model has right.
        lost: items that only the second model has right.
        n: all items.
        confidence: of the two-sided interval.
    """
    z = _z(confidence)

    def statistic(difference: float) -> float:
        """How many standard errors the data lie from `difference`, which it falls with."""
        # Most likely share of `lost` when the true difference is given: the larger root of a quadratic.
        b = (2 * n - gained + lost) * difference - gained - lost
        c = -lost * difference * (1 - difference)
        share = (math.sqrt(max(b * b - 8 * n * c, 0.0)) - b) / (4 * n)
        variance = n * (2 * share + difference * (1 - difference))
        distance = gained - lost - n * difference
        return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)

    value = (gained - lost) / n
    low = -1.0 if lost == n else _falls_to(statistic, z, -1.0, value)
    high = 1.0 if gained == n else _falls_to(statistic, -z, value, 1.0)
    return low, high


def bootstrap(
    statistic: Statistic,
    n: int,
    value: float,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
    corrected: bool = True,
) -> tuple[float, float]:
    """Interval of a statistic of n items that are drawn with replacement.

    Args:
        statistic: maps counts (B, n) to values (B,).
        n: number of items.
        value: the statistic of the items as they are.
        confidence: of the two-sided interval.
        seed: of the draws.
        resamples: number of draws.
        corrected: BCa (up to 4,000 items); else the plain percentile interval.
    """
    values = np.concatenate([statistic(counts) for counts in _draws(n, resamples, seed)])
    values = values[np.isfinite(values)]  # a resample may lack what the metric needs (no answered item at all)
    if not len(values):
        return value, value
    tail = (1 - confidence) / 2
    ends = np.array([tail, 1 - tail])
    if corrected and 1 < n <= _JACKKNIFE_LIMIT:
        ends = _bca_ends(values, value, _jackknife(statistic, n), ends)
    low, high = np.quantile(values, ends)
    return float(low), float(high)


def mcnemar(first: Sequence[bool], second: Sequence[bool]) -> float:
    """Exact two-sided p-value that two models on the same items are equally often right."""
    gained = sum(a and not b for a, b in zip(first, second, strict=True))
    lost = sum(b and not a for a, b in zip(first, second, strict=True))
    discordant, fewer = gained + lost, min(gained, lost)
    # P(at most `fewer` heads in `discordant` fair tosses), in integers until the last division.
    tail = sum(math.comb(discordant, k) for k in range(fewer + 1))
    return min(1.0, 2 * tail / (1 << discordant))


def flips(first: Evaluation, second: Evaluation) -> int:
    """Items, of those that both models saw, whose answer differs."""
    return sum(a.answer != b.answer for a, b in _pairs(first, second))


def paired_difference(
    first: Evaluation,
    second: Evaluation,
    *,
    confidence: float = CONFIDENCE,
    seed: int = 0,
    resamples: int = RESAMPLES,
    metric: Aggregate | None = None,
) -> Difference:
    """First minus second on the items that both saw, turned so that higher is better for the first.

    Args:
        first: one model's evaluation.
        second: another's, on the same split of the same task.
        confidence: of the two-sided interval low..high. `low > -margin` at 0.95 is non-inferiority at 97.5 %.
        seed: of the resampling.
        resamples: number of draws.
        metric: the metric that both were scored with; found by its name where not given.

    Raises:
        UsageError: the two were not measured on the same task, split and metric, or share no item.
    """
    pairs = _pairs(first, second)
    ours, theirs = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    metric = metric or _metric_named(first.metric)
    sign = 1.0 if first.higher_is_better else -1.0
    n = len(pairs)
    value = sign * (float(metric.aggregate(ours)) - float(metric.aggregate(theirs)))
    right, other = _rightness(ours), _rightness(theirs)
    p_value = None
    if right is not None and other is not None:
        p_value = mcnemar([bool(x) for x in right], [bool(x) for x in other])
        exact = tango(int(((right == 1) & (other == 0)).sum()), int(((right == 0) & (other == 1)).sum()), n, confidence)
        if math.isclose(value, float((right - other).mean()), abs_tol=1e-12):
            return _difference(value, *exact, n, confidence, pairs, p_value)

    def statistic(counts: NDArray[np.int64]) -> Floats:
        return sign * (metric.resample(ours, counts) - metric.resample(theirs, counts))

    low, high = bootstrap(statistic, n, value, confidence=confidence, seed=seed, resamples=resamples, corrected=False)
    if low == high and _bounded(ours) and _bounded(theirs):
        low, high = tango(*_pseudo_counts(value, n), n, confidence)
    return _difference(value, min(low, value), max(high, value), n, confidence, pairs, p_value)


def rows_to_decide(difference: Difference, margin: float = 0.0, *, power: float = POWER) -> int | None:
    """Items needed so that the interval of a difference like this one lies wholly on one side of -margin.

    If the true difference is the one seen and items vary as they do here, that many items settle the question with
    probability `power`. None where the difference sits on the line: no number of items would.
    """
    distance = abs(difference.value + margin)
    if distance < 1e-12:
        return None
    z = _z(difference.confidence)
    spread = (difference.high - difference.low) / (2 * z)  # standard error at n items, falls with sqrt(n)
    needed = ((z + NormalDist().inv_cdf(power)) * spread / distance) ** 2 * difference.n
    return max(2, math.ceil(needed))


def rows_to_separate(difference: Difference, *, power: float = POWER) -> int | None:
    """Items needed so that the interval of a difference of the size seen leaves out zero; None where there is none."""
    return rows_to_decide(difference, 0.0, power=power)


def bonferroni(p_values: Sequence[float]) -> list[float]:
    """p-values of a family of tests, each times their number: the chance of any false alarm stays below each."""
    return [min(1.0, p * len(p_values)) for p in p_values]


def holm(p_values: Sequence[float]) -> list[float]:
    """Bonferroni's promise at a smaller price: the smallest p is multiplied by m, the next by m - 1, and so on."""
    adjusted = [0.0] * len(p_values)
    worst = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        worst = max(worst, min(1.0, p_values[index] * (len(p_values) - rank)))
        adjusted[index] = worst
    return adjusted


@dataclass(frozen=True, slots=True)
class Share:
    """The mean score, unanswered as 0: what accuracy, exact match and pass@1 are. Works for any score in [0, 1]."""

    def aggregate(self, outcomes: Sequence[Outcome]) -> float:
        """Mean score."""
        return float(_scores(outcomes).mean())

    def resample(self, outcomes: Sequence[Outcome], counts: NDArray[np.int64]) -> Floats:
        """(B,) mean scores of the draws."""
        values: Floats = counts @ _scores(outcomes) / counts.sum(axis=1)
        return values


def _metric_named(name: str) -> Aggregate:
    from sizewise.measure.metric import metrics  # metrics reach for scikit-learn and sacrebleu

    metric: Aggregate = metrics().get(name)
    return metric


def _difference(
    value: float,
    low: float,
    high: float,
    n: int,
    confidence: float,
    pairs: Sequence[tuple[Outcome, Outcome]],
    p_value: float | None,
) -> Difference:
    changed = sum(a.answer != b.answer for a, b in pairs)
    bare = Difference(value, low, high, n, confidence, changed, p_value, None)
    return Difference(value, low, high, n, confidence, changed, p_value, rows_to_separate(bare))


def _pairs(first: Evaluation, second: Evaluation) -> list[tuple[Outcome, Outcome]]:
    for what, one, other in (
        ("task", first.task_digest, second.task_digest),
        ("split", first.split, second.split),
        ("metric", first.metric, second.metric),
    ):
        if one != other:
            raise UsageError(
                f"{first.model} and {second.model} were measured on a different {what}; evaluate both alike to compare"
            )
    others = {outcome.id: outcome for outcome in second.outcomes}
    pairs = [(outcome, others[outcome.id]) for outcome in first.outcomes if outcome.id in others]
    if not pairs:
        raise UsageError(f"{first.model} and {second.model} share no item; evaluate both on the same rows")
    return pairs


def _scores(outcomes: Sequence[Outcome]) -> Floats:
    return np.array([outcome.score or 0.0 for outcome in outcomes], np.float64)


def _rightness(outcomes: Sequence[Outcome]) -> Floats | None:
    """(n,) of 0 and 1, unanswered as 0; None where a score lies between or items have none (perplexity)."""
    scores = _scores(outcomes)
    if all(outcome.score is None for outcome in outcomes) or not np.isin(scores, (0.0, 1.0)).all():
        return None
    return scores


def _bounded(outcomes: Sequence[Outcome]) -> bool:
    scores = _scores(outcomes)
    return bool(((scores >= 0) & (scores <= 1)).all())


def _pseudo_counts(value: float, n: int) -> tuple[int, int]:
    """Gained and lost items that give about this difference, for a difference that no resample changes."""
    items = min(n, math.ceil(abs(value) * n))
    return (items, 0) if value >= 0 else (0, items)


def _z(confidence: float) -> float:
    return float(NormalDist().inv_cdf(0.5 + confidence / 2))


def _falls_to(function: Callable[[float], float], target: float, low: float, high: float) -> float:
    """Where a falling function reaches `target` between low and high, by halving (to 1e-12)."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if function(middle) > target else (low, middle)
    return (low + high) / 2


def _draws(n: int, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Blocks of counts (b, n), in all `resamples` rows; the same seed gives the same rows however they are cut."""
    generator = np.random.default_rng(seed)
    block = max(1, _CELLS // n)
    for start in range(0, resamples, block):
        rows = min(block, resamples - start)
        drawn = generator.integers(n, size=(rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n)


def _jackknife(statistic: Statistic, n: int) -> Floats:
    """(n,) values of the statistic, each without one item."""
    block = max(1, _CELLS // n)
    parts = []
    for start in range(0, n, block):
        rows = min(block, n - start)
        counts = np.ones((rows, n), np.int64)
        counts[np.arange(rows), start + np.arange(rows)] = 0
        parts.append(statistic(counts))
    return np.concatenate(parts)


def _bca_ends(values: Floats, value: float, left_out: Floats, ends: Floats) -> Floats:
    """Quantiles to read instead of `ends`, moved for bias and for a spread that changes with the value."""
    normal = NormalDist()
    # Half of the ties count as below, so that a statistic with few distinct values is not called biased.
    below = float(((values < value).mean() + (values <= value).mean()) / 2)
    deviation = left_out.mean() - left_out
    scale = float((deviation**2).sum()) ** 1.5
    if not 0 < below < 1 or not math.isfinite(scale) or scale == 0:
        return ends
    bias = normal.inv_cdf(below)
    acceleration = float((deviation**3).sum()) / (6 * scale)
    moved = []
    for end in ends:
        z = bias + normal.inv_cdf(float(end))
        moved.append(normal.cdf(bias + z / (1 - acceleration * z)))
    return np.array(moved)
