"""The decision, as pure functions of measured differences: who passes, who does not, what cannot be told.

Every question has one form: is the true difference d at least -margin? Against a reference model d is the paired
difference on the same items; against a fixed bar d is the quality minus the bar and the margin is 0. With an interval
low..high of d

    low >= -margin              passes
    high < -margin              fails
    else                        the data cannot tell, and `rows_to_decide` says how many rows would

Several nominees get several chances to pass by luck, so that the error allowed to each is 5 % divided by their number
(Bonferroni). A candidate that is looked at again and again while it is measured gets its 5 % divided by the looks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sizewise.core.results import Bar, Decision, Difference, Interval
from sizewise.core.units import format_bytes

Verdict = Literal["pass", "fail", "undecided"]
CONFIDENCE = 0.95
ALIKE = 1.25  # times and costs within a quarter of one another are taken for equal: they change that much by chance
_MINUS = "\N{MINUS SIGN}"


@dataclass(frozen=True, slots=True)
class Scale:
    """How a metric's values are said aloud. Accuracy: 0.861 is "86.1 % right", and 0.02 are "2 points"."""

    metric: str
    best: float | None = 1.0  # the best value there is; None: no bound
    share: bool = True  # the share of items that are right
    higher_is_better: bool = True

    @property
    def factor(self) -> float:
        """What a value is multiplied by to be said in points of a hundred."""
        return 100.0 / self.best if self.best else 1.0

    def margin(self, bar: Bar) -> float:
        """The margin in the metric's unit; a bar holds it as a share of the scale."""
        return (bar.margin or 0.0) * (self.best or 1.0) if bar.at_least is None else 0.0

    def quality(self, value: float) -> str:
        """`86.1 %`, or `0.873` where the metric has no best value."""
        if self.share or self.best == 1.0:
            return f"{value * self.factor:.1f} %"
        return f"{value:.1f}" if self.best else f"{value:.3f}"

    def says(self, value: float) -> str:
        """`gets 86.1 % right`, or `has a macro-f1 of 95.7 %`."""
        text = self.quality(value)
        return f"gets {text} right" if self.share else f"has a {self.metric} of {text}"

    def points(self, value: float, *, signed: bool = False) -> str:
        """A difference in points: `1.9`, signed with a plus or a minus."""
        scaled = value * self.factor
        digits = 1 if self.best else 3
        text = f"{abs(scaled):.{digits}f}"
        if not signed or float(text) == 0:
            return text
        return ("+" if scaled > 0 else _MINUS) + text

    @property
    def unit(self) -> str:
        """What differences are counted in."""
        return "points" if self.best else self.metric


@dataclass(frozen=True, slots=True)
class Nominee:
    """A candidate that is judged on the test rows; `difference` is to the reference or to the fixed bar."""

    name: str  # for people: with the number of examples where there are some
    model: str
    bytes: int | None
    quality: Interval
    difference: Difference
    latency_s: float | None = None
    cpu_s: float | None = None


def judge(difference: Difference, margin: float) -> Verdict:
    """Whether the true difference is at least -margin, as far as the interval can tell."""
    if difference.low >= -margin:
        return "pass"
    return "fail" if difference.high < -margin else "undecided"


def to_bar(quality: Interval, at_least: float, *, confidence: float, higher_is_better: bool = True) -> Difference:
    """A quality's distance from a fixed bar, as a difference that is judged with margin 0."""
    if higher_is_better:
        value, low, high = (bound - at_least for bound in (quality.value, quality.low, quality.high))
    else:
        value, low, high = (at_least - bound for bound in (quality.value, quality.high, quality.low))
    return Difference(value, low, high, quality.n, confidence, 0, None, None)


def shared_confidence(tests: int) -> float:
    """The confidence that each of several tests needs so that all together keep 95 %."""
    return 1 - (1 - CONFIDENCE) / max(1, tests)


def smallest(items: Sequence[Nominee]) -> Nominee:
    """The one with the fewest bytes; an endpoint, whose bytes nobody knows, comes last."""
    return min(items, key=_bytes)


def fastest(items: Sequence[Nominee]) -> Nominee:
    """The one that answers soonest; of those about as fast, the smallest."""
    return _lowest(items, [item.latency_s for item in items])


def cheapest(items: Sequence[Nominee]) -> Nominee:
    """The one that needs least processor time; of those about as cheap, the smallest."""
    return _lowest(items, [item.cpu_s for item in items])


def decide(
    nominees: Sequence[Nominee],
    bar: Bar,
    scale: Scale,
    reference: Nominee | None = None,
    *,
    rows: dict[str, int | None] | None = None,
    eligible: bool = True,
) -> Decision:
    """The answer.

    Args:
        nominees: judged on the test rows; the reference itself is none of them.
        bar: what they must reach.
        scale: how to say it.
        reference: the model that they are compared with, where the bar is a margin.
        rows: by nominee's name, how many test rows would decide about it.
        eligible: the reference is itself a candidate (the best found), not a model from elsewhere.
    """
    margin = scale.margin(bar)
    verdicts = {item.name: judge(item.difference, margin) for item in nominees}
    passing = [item for item in nominees if verdicts[item.name] == "pass"]
    unclear = [item for item in nominees if verdicts[item.name] == "undecided"]
    own = [reference] if reference and eligible else []
    able = [*passing, *own]
    if passing:
        winner = smallest([*passing, *own])
        return _passed(winner, able, _passes(winner, nominees, bar, scale, reference))
    if unclear:
        needed = rows or {}
        nearest = min(unclear, key=_bytes)
        count = needed.get(nearest.name)
        sentence = _cannot_tell(nearest, count, bar, scale, reference if eligible else None, reference)
        return Decision("undecided", None, sentence, rows_needed=count)
    if own:
        return _passed(own[0], able, _only_the_best(own[0], nominees, bar, scale))
    if not nominees:
        return Decision("none_passes", None, "None passes: there was no candidate that could be judged.")
    closest = max(nominees, key=lambda item: item.difference.value)
    return Decision("none_passes", None, _none(closest, bar, scale, reference))


def _passed(winner: Nominee, able: Sequence[Nominee], sentence: str) -> Decision:
    return Decision(
        "pass",
        winner.model,
        sentence,
        smallest=smallest(able).model,
        fastest=fastest(able).model,
        cheapest=cheapest(able).model,
    )


def _passes(winner: Nominee, nominees: Sequence[Nominee], bar: Bar, scale: Scale, reference: Nominee | None) -> str:
    n = f"{winner.quality.n:,}"
    if bar.at_least is not None:
        low, high = _bounds(winner, bar, scale)
        return (
            f"{_sized(winner)} {scale.says(winner.quality.value)}; with {n} rows that is between {low} and {high}, "
            f"{_beyond(scale)} the {scale.quality(bar.at_least)} that you asked for."
        )
    if reference is None or winner.name == reference.name:
        return _only_the_best(winner, nominees, bar, scale)
    return _compared(winner, scale, reference) + f", inside the {_allowed(bar, scale)} you allowed."


def _bounds(item: Nominee, bar: Bar, scale: Scale) -> tuple[str, str]:
    """The interval that the verdict rests on, as qualities, the lower first."""
    sign = 1 if scale.higher_is_better else -1
    ends = sorted((bar.at_least or 0.0) + sign * bound for bound in (item.difference.low, item.difference.high))
    return scale.quality(ends[0]), scale.quality(ends[1])


def _compared(item: Nominee, scale: Scale, reference: Nominee) -> str:
    ours, theirs = scale.says(item.quality.value), scale.quality(reference.quality.value)
    low, high = (scale.points(bound, signed=True) for bound in (item.difference.low, item.difference.high))
    return (
        f"{_sized(item)} {ours} and {_sized(reference)} {theirs}; with {item.difference.n:,} rows "
        f"the difference is between {low} and {high} {scale.unit}"
    )


def _only_the_best(best: Nominee, nominees: Sequence[Nominee], bar: Bar, scale: Scale) -> str:
    """The best candidate found passes against itself; what is said is that nothing smaller does."""
    low, high = scale.quality(best.quality.low), scale.quality(best.quality.high)
    start = f"{_sized(best)} {scale.says(best.quality.value)} ({low} to {high} with {best.quality.n:,} rows)"
    if not nominees:
        near = f"came within {_allowed(bar, scale)} of it on the development rows"
        return f"{start}: the best found; none that is smaller {near}."
    behind = max(nominees, key=lambda item: item.difference.value)
    worst, least = scale.points(-behind.difference.low), scale.points(-behind.difference.high)
    return (
        f"{start}: the best found, and the smallest that passes; {_sized(behind)} is between {least} and {worst} "
        f"{scale.unit} behind, more than the {_allowed(bar, scale)} you allowed."
    )


def _cannot_tell(
    item: Nominee, count: int | None, bar: Bar, scale: Scale, safe: Nominee | None, reference: Nominee | None
) -> str:
    if bar.at_least is not None or reference is None:
        low, high = _bounds(item, bar, scale)
        asked = scale.quality(bar.at_least or 0.0)
        text = (
            f"The data cannot tell: {_sized(item)} {scale.says(item.quality.value)}; with {item.quality.n:,} rows that "
            f"is between {low} and {high}, and you asked for {asked}"
        )
    else:
        text = (
            f"The data cannot tell: {_compared(item, scale, reference)}, and you allowed {_allowed(bar, scale)} behind"
        )
    text += f"; about {count:,} test rows would settle it." if count else "; it lies on the line."
    return text + (f" Until then {safe.name} is the safe choice." if safe else "")


def _none(item: Nominee, bar: Bar, scale: Scale, reference: Nominee | None) -> str:
    if bar.at_least is not None or reference is None:
        low, high = _bounds(item, bar, scale)
        missing = scale.points(-item.difference.value)
        return (
            f"None passes: the nearest, {_sized(item)}, {scale.says(item.quality.value)} ({low} to {high} with "
            f"{item.quality.n:,} rows), {missing} {scale.unit} short of the {scale.quality(bar.at_least or 0.0)} "
            "that you asked for."
        )
    return (
        f"None passes: the nearest is {_compared(item, scale, reference)}, "
        f"and you allowed {_allowed(bar, scale)} behind."
    )


def _allowed(bar: Bar, scale: Scale) -> str:
    points = scale.margin(bar) * scale.factor
    return f"{points:.3g} {scale.unit}" if points != 1 else f"1 {scale.unit.removesuffix('s')}"


def _beyond(scale: Scale) -> str:
    return "at or above" if scale.higher_is_better else "at or below"


def _sized(item: Nominee) -> str:
    return f"{item.name}, {format_bytes(item.bytes)}," if item.bytes is not None else item.name


def _bytes(item: Nominee) -> float:
    return float("inf") if item.bytes is None else item.bytes


def _lowest(items: Sequence[Nominee], costs: Sequence[float | None]) -> Nominee:
    known = [cost for cost in costs if cost is not None]
    if not known:
        return smallest(items)
    near = [item for item, cost in zip(items, costs, strict=True) if cost is not None and cost <= min(known) * ALIKE]
    return smallest(near)
