"""How each candidate of a fit stands: its name for people, its best-known quality, what it costs, in or out."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from sizewise.core.results import Candidate, FitResult, Interval
from sizewise.pick.report.numbers import Scale, quantity_text, ratio_text, scale_of

State = Literal["winner", "passing", "failed"]


@dataclass(frozen=True, slots=True)
class Cost:
    """One thing that a candidate costs: an axis of the frontier and a column of the table."""

    key: str
    title: str  # on the switch
    axis: str  # along the axis and over the column
    of: str  # "at 1/14 of the ..."
    quantity: str  # see numbers.column
    value: Callable[[Candidate], float | None]
    absent: str  # why there may be no number
    tail: str = ""  # after the unit, over the column

    def text(self, value: float) -> str:
        """The cost with the unit that suits it; sizes are exact, times are not."""
        return quantity_text(value, self.quantity, 3 if self.key == "bytes" else 2)


COSTS = (
    Cost(
        "cpu", "CPU time", "CPU time per item", "CPU time", "seconds", lambda each: each.cpu_s_per_item,
        "the model does not run on this machine, or was not run", " per item",
    ),
    Cost(
        "latency", "Latency", "latency, median", "waiting time", "seconds",
        lambda each: each.latency_p50_s, "it left before latency was measured", ", median",
    ),
    Cost(
        "bytes", "Size", "size on disk", "size", "bytes", lambda each: each.bytes,
        "the model is not on this machine",
    ),
    Cost(
        "memory", "Memory", "peak memory", "memory", "bytes", lambda each: each.memory_bytes,
        "it left before memory was measured", ", peak",
    ),
    Cost(
        "money", "Money", "money per million items", "money", "usd", lambda each: _usd_per_million(each),
        "no price was stated", " per million",
    ),
)  # fmt: skip


def _usd_per_million(candidate: Candidate) -> float | None:
    """A thousand items cost so little on small models that the number would be all zeros."""
    money = candidate.usd_per_1000_items
    return None if money is None or money.value is None else money.value * 1000


KINDS = {"majority": "majority class", "tfidf": "TF-IDF head", "embedding": "embedding head", "prompted": "prompted"}


@dataclass(frozen=True, slots=True)
class Standing:
    """One candidate as the report shows it. `quality` is on the test split where that was looked at."""

    candidate: Candidate
    name: str
    state: State
    quality: Interval | None
    split: Literal["test", "development"]

    @property
    def note(self) -> str:
        """Why it is out, or what it was chosen for."""
        if self.state == "winner":
            return "chosen"
        return self.candidate.left_because or "passes the bar"


@dataclass(frozen=True, slots=True)
class Standings:
    """All candidates of a fit, the ones that matter first, with the bar that they had to reach."""

    result: FitResult
    scale: Scale
    all: tuple[Standing, ...]
    winner: Standing | None
    best: Standing | None  # the best quality found
    reference: Standing | None  # what the bar's margin is counted from
    bar: float | None  # on the metric's own scale

    def costs(self) -> list[Cost]:
        """The costs that are known of at least one candidate whose quality is known."""
        plotted = [each.candidate for each in self.all if each.quality]
        return [cost for cost in COSTS if any(cost.value(each) is not None for each in plotted)]


def standings(result: FitResult) -> Standings:
    """Who is who in a fit."""
    names = _names(result.candidates)
    chosen = _chosen(result)
    rows = []
    for candidate, name in zip(result.candidates, names, strict=True):
        state: State = "winner" if candidate is chosen else "failed" if candidate.left_because else "passing"
        quality, split = (candidate.test, "test") if candidate.test else (candidate.dev, "development")
        rows.append(Standing(candidate, name, state, quality, "test" if split == "test" else "development"))
    scale = scale_of(result.metric)
    sign = 1 if scale.higher_is_better else -1
    known = [row for row in rows if row.quality]
    best = max(known, key=lambda row: (row.split == "test", sign * _value(row)), default=None)
    reference = next((row for row in known if result.bar.reference in (row.candidate.model, row.name)), best)
    bar = result.bar.at_least
    if bar is None and result.bar.margin is not None and reference:
        bar = _value(reference) - sign * result.bar.margin * scale.best
    winner = next((row for row in rows if row.state == "winner"), None)
    ordered = sorted(rows, key=lambda row: (row.state != "winner", row.quality is None, -sign * _value(row)))
    return Standings(result, scale, tuple(ordered), winner, best, reference, bar)


def headline(standing: Standings, cost: Cost) -> str:
    """The answer that the frontier gives on this axis, as the picture's title."""
    winner, best = standing.winner, standing.best
    if standing.result.decision.status == "none_passes":
        return _nearest_miss(standing)
    if not winner or not best:
        return "The rows at hand cannot separate the candidates"
    own, other = cost.value(winner.candidate), cost.value(best.candidate)
    if winner is best or not own or not other:
        return _best_of_all(standing, winner, cost)
    if own <= other:
        return f"{winner.name} passes at {ratio_text(own / other)} of the {cost.of} of {best.name}"
    return f"{winner.name} passes, but takes {ratio_text(own / other)} the {cost.of} of {best.name}"


def _nearest_miss(standing: Standings) -> str:
    best, bar = standing.best, standing.bar
    if not best or not best.quality or bar is None:
        return "Nothing reaches the bar"
    gap = abs(bar - best.quality.value)
    digits = standing.scale.digits(best.quality)
    short = f"{standing.scale.value(gap, digits)} {standing.scale.points}"
    return f"Nothing passes: {best.name} comes nearest, {short} from the bar"


def _best_of_all(standing: Standings, winner: Standing, cost: Cost) -> str:
    """Where nothing better is at hand, the question is whether anything cheaper would do."""
    own = cost.value(winner.candidate)
    costs = [(each, cost.value(each.candidate)) for each in standing.all if each is not winner and each.quality]
    cheaper = [each for each, value in costs if own is not None and value is not None and value < own]
    if cheaper and all(each.state == "failed" for each in cheaper):
        return f"Nothing tried with less {cost.of} than {winner.name} passes"
    if own is not None and not cheaper:
        return f"{winner.name} is the best found, and none takes less {cost.of}"
    return f"{winner.name} is the best found"


def _value(row: Standing) -> float:
    return row.quality.value if row.quality else 0.0


def _names(candidates: tuple[Candidate, ...]) -> list[str]:
    """Names that tell the candidates apart: the model's, with the number of worked examples where there are some."""
    return [each.model + (f" with {each.shots} examples" if each.shots else "") for each in candidates]


def _chosen(result: FitResult) -> Candidate | None:
    """The candidate that the decision names; of several with that name the one that passed on the test rows."""
    named = [each for each in result.candidates if each.model == result.decision.model]
    return min(named, key=lambda each: (bool(each.left_because), each.test is None), default=None)
