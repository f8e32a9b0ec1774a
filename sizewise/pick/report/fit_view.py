"""What the page and the Markdown say about a fit: figures, pictures, table, classes, examples, provenance."""

from dataclasses import dataclass, replace
from typing import Any

from sizewise.core.measurement import Measurement
from sizewise.core.results import Candidate, FitResult, Interval
from sizewise.pick.report.answers import clean
from sizewise.pick.report.chart import CANVASES, Chart, draw
from sizewise.pick.report.figures import Figure, cells
from sizewise.pick.report.numbers import NO_VALUE, Scale, align, decimals, ratio_text
from sizewise.pick.report.standing import COSTS, KINDS, Cost, Standing, Standings, headline, standings

STATUS = {
    "pass": "A candidate passes the bar",
    "none_passes": "No candidate passes the bar",
    "undecided": "The data cannot tell yet",
}


@dataclass(frozen=True, slots=True)
class Fact:
    """One of the numbers under the headline."""

    figure: Figure
    label: str
    note: str


@dataclass(frozen=True, slots=True)
class Picture:
    """The frontier on one axis, at each size, with what it leaves out."""

    cost: Cost
    title: str
    alt: str
    charts: tuple[Chart, ...]
    missing: tuple[tuple[str, str], ...]  # name, reason


@dataclass(frozen=True, slots=True)
class TableColumn:
    """One column of numbers in the candidates' table."""

    title: str
    unit: str
    figures: tuple[Figure, ...]
    source: str = ""  # "estimated" or "stated", where all of them are


@dataclass(frozen=True, slots=True)
class FitView:
    """A fit, ready to be laid out."""

    result: FitResult
    standing: Standings
    best_of: tuple[tuple[str, str], ...]  # name, "smallest and fastest"
    facts: tuple[Fact, ...]
    pictures: tuple[Picture, ...]
    columns: tuple[TableColumn, ...]
    spans: tuple[tuple[float, float, float] | None, ...]  # each candidate's low, value, high as shares of the width
    bar_span: float | None
    classes: tuple[dict[str, Any], ...]
    compared: tuple[Standing, ...]  # winner and best: whose classes and examples are shown
    examples: tuple[tuple[Standing, tuple[dict[str, Any], ...]], ...]
    confusion: dict[str, Any] | None
    provenance: tuple[tuple[str, str, str], ...]  # quantity, measured | estimated | stated, how
    command: str


def fit_view(result: FitResult, longest: int = 4000) -> FitView:
    """Everything that is shown of a fit; texts are cut at `longest` characters."""
    standing = standings(result)
    shown = standing.winner or standing.best
    best_too = standing.best is not standing.winner
    compared = tuple(each for each in (standing.winner, standing.best if best_too else None) if each)
    spans, bar_span = _spans(standing)
    return FitView(
        result,
        standing,
        _best_of(result),
        _facts(standing, shown),
        tuple(_picture(standing, cost) for cost in standing.costs()),
        _columns(standing),
        spans,
        bar_span,
        _classes(compared),
        compared,
        tuple((each, _examples(each.candidate, longest)) for each in compared if each.candidate.examples),
        _confusion(shown.candidate if shown else None),
        _provenance(standing),
        result.command or f"sizewise fit {result.task}.toml --seed {result.seed}",
    )


def _best_of(result: FitResult) -> tuple[tuple[str, str], ...]:
    """Who is smallest, fastest and cheapest of those that pass, each name once."""
    decision = result.decision
    words: dict[str, list[str]] = {}
    for word, name in (("smallest", decision.smallest), ("fastest", decision.fastest), ("cheapest", decision.cheapest)):
        if name:
            words.setdefault(name, []).append(f"the {word}")
    return tuple((name, " and ".join(", ".join(found).rsplit(", ", 1))) for name, found in words.items())


def _facts(standing: Standings, shown: Standing | None) -> tuple[Fact, ...]:
    if shown is None or shown.quality is None:
        return ()
    scale, best = standing.scale, standing.best
    quality = Figure(shown.quality.value, scale.text(shown.quality))
    rows = f"{shown.quality.n:,} {shown.split} rows"
    facts = [Fact(quality, scale.metric, f"95 % interval {scale.range(shown.quality)}, {rows}")]
    difference = shown.candidate.difference
    if difference is not None:
        reference = standing.reference.name if standing.reference else "the reference"
        digits = decimals((difference.high - difference.low) / 2 * scale.factor)
        value, low, high = (
            _signed(scale, number, digits) for number in (difference.value, difference.low, difference.high)
        )
        note = f"between {low} and {high} at {difference.confidence * 100:g} % confidence"
        facts.append(Fact(Figure(difference.value, f"{value} {scale.points}"), f"against {reference}", note))
    for cost in COSTS[:3]:
        own = cost.value(shown.candidate)
        other = cost.value(best.candidate) if best and best is not shown else None
        if own is None:
            continue
        note = f"{ratio_text(own / other)} of {best.name}" if best and own and other else ""
        facts.append(Fact(Figure(own, cost.text(own)), cost.axis, note))
    return tuple(facts)


def _signed(scale: Scale, number: float, digits: int) -> str:
    text = scale.value(number, digits)
    return f"+{text}" if number > 0 and text.strip("0.") else text


def _picture(standing: Standings, cost: Cost) -> Picture:
    missing = tuple(
        (each.name, cost.absent if each.quality else each.candidate.left_because or "its quality was not measured")
        for each in standing.all
        if each.quality is None or cost.value(each.candidate) is None
    )
    title = headline(standing, cost)
    charts = tuple(draw(standing, cost, canvas) for canvas in CANVASES)
    points = "; ".join(describe(mark.standing, standing.scale, mark.cost) for mark in charts[0].marks)
    return Picture(cost, title, f"{standing.scale.metric} against {cost.axis}. {points}.", charts, missing)


def describe(each: Standing, scale: Scale, cost: str) -> str:
    """One candidate in words, for those who do not see the picture."""
    if each.quality is None:
        return f"{each.name}: {each.note}"
    where = f"{scale.text(each.quality)} ({scale.range(each.quality)}, {each.quality.n:,} {each.split} rows)"
    return f"{each.name}: {where} at {cost}, {each.note}"


def _columns(standing: Standings) -> tuple[TableColumn, ...]:
    rows = standing.all
    columns = [_quality_column(standing, "test"), _quality_column(standing, "dev")]
    for cost in COSTS:
        values = [cost.value(row.candidate) for row in rows]
        money = [row.candidate.usd_per_1000_items for row in rows]
        reasons = [_why(each) or cost.absent if cost.key == "money" else cost.absent for each in money]
        sources = [each.provenance if cost.key == "money" and each else "measured" for each in money]
        unit, figures = cells(values, cost.quantity, reasons, sources, 3 if cost.key == "bytes" else 2)
        columns.append(_one_source(TableColumn(cost.title, unit + cost.tail, tuple(figures))))
    energy = [row.candidate.energy_j_per_item for row in rows]
    sources = [each.provenance if each else "measured" for each in energy]
    reasons = [_why(each) or "energy was not measured" for each in energy]
    unit, figures = cells([each.value if each else None for each in energy], "J", reasons, sources)
    columns.append(_one_source(TableColumn("Energy", unit + " per item", tuple(figures))))
    return tuple(each for each in columns if any(figure.value is not None for figure in each.figures))


def _one_source(column: TableColumn) -> TableColumn:
    """Where all numbers of a column are estimated (or stated), its head says so once."""
    sources = {figure.provenance for figure in column.figures if figure.value is not None}
    if len(sources) != 1 or sources == {"measured"}:
        return column
    figures = tuple(replace(figure, provenance="measured") for figure in column.figures)
    return TableColumn(column.title, column.unit, figures, sources.pop())


def _why(measurement: Measurement | None) -> str:
    return measurement.why if measurement else ""


def _quality_column(standing: Standings, split: str) -> TableColumn:
    scale = standing.scale
    intervals: list[Interval | None] = [getattr(row.candidate, split) for row in standing.all]
    texts = align([scale.value(each.value, scale.digits(each)) if each else None for each in intervals])
    figures = tuple(
        Figure(
            each.value if each else None,
            text or NO_VALUE,
            row.candidate.left_because or f"not run on the {split} split",
        )
        for each, text, row in zip(intervals, texts, standing.all, strict=True)
    )
    name = scale.metric[:1].upper() + scale.metric[1:]
    return TableColumn(name, f"{scale.unit}, {split}".removeprefix(", "), figures)


def _spans(standing: Standings) -> tuple[tuple[tuple[float, float, float] | None, ...], float | None]:
    """Every candidate's interval, and the bar, as shares of one common range."""
    known = [row.quality for row in standing.all if row.quality]
    ends = [end for each in known for end in (each.low, each.high)] + ([] if standing.bar is None else [standing.bar])
    low, high = (min(ends), max(ends)) if ends else (0.0, 1.0)
    width = (high - low) or 1.0

    def share(value: float) -> float:
        return round((value - low) / width, 4)

    spans = tuple(
        (share(row.quality.low), share(row.quality.value), share(row.quality.high)) if row.quality else None
        for row in standing.all
    )
    return spans, None if standing.bar is None else share(standing.bar)


def _classes(compared: tuple[Standing, ...]) -> tuple[dict[str, Any], ...]:
    """For each class: how many items, and precision, recall and F1 of the winner and the best."""
    labels = dict.fromkeys(label for each in compared for label in each.candidate.per_class)
    rows = []
    for label in labels:
        scores = [each.candidate.per_class.get(label, {}) for each in compared]
        count = next((score["n"] for score in scores if "n" in score), None)
        rows.append({"label": clean(label, 80), "n": count, "scores": scores})
    return tuple(sorted(rows, key=lambda row: -(row["n"] or 0)))


def _examples(candidate: Candidate, longest: int) -> tuple[dict[str, Any], ...]:
    return tuple(
        {
            "input": clean(example.get("input", ""), min(longest, 600)),
            "expected": clean(example.get("expected", ""), 200),
            "answer": clean(example.get("answer", ""), 200),
            "right": example.get("expected", "").strip() == example.get("answer", "").strip(),
        }
        for example in candidate.examples
    )


def _confusion(candidate: Candidate | None) -> dict[str, Any] | None:
    """Rows: expected; columns: answered. Shade 0 to 5 by the share of the row."""
    if candidate is None or not candidate.confusion or len(candidate.confusion) > 12:
        return None
    answered = {
        label: sum(row.get(label, 0) for row in candidate.confusion.values())
        for row in candidate.confusion.values()
        for label in row
    }
    columns = [*candidate.confusion, *(label for label in answered if label not in candidate.confusion)]
    rows = []
    for label, row in candidate.confusion.items():
        total = sum(row.values()) or 1
        items = [(row.get(other, 0), round(5 * row.get(other, 0) / total), other == label) for other in columns]
        rows.append((clean(label, 40), items))
    return {"columns": [clean(label, 40) or "no answer" for label in columns], "rows": rows}


def _provenance(standing: Standings) -> tuple[tuple[str, str, str], ...]:
    result, shown = standing.result, standing.all
    tested = next((row.candidate.test for row in shown if row.candidate.test), None)
    lines = [("Choice", "measured", "on the development split only; the test split was looked at once, at the end")]
    if tested:
        lines.append((result.metric, "measured", f"on {tested.n:,} test rows; 95 % interval over the rows"))
    methods = {
        "cpu": "processor seconds of the model's own processes, divided by the items",
        "latency": "one item at a time after a warm-up, the middle of the times",
        "bytes": "bytes of all files that the model needs to run",
        "memory": "the most that the model's processes held at once",
    }
    for cost in standing.costs():
        if cost.key in methods:
            lines.append((cost.axis, "measured", methods[cost.key]))
    for name, measurements in (
        ("money per million items", [row.candidate.usd_per_1000_items for row in shown]),
        ("energy per item", [row.candidate.energy_j_per_item for row in shown]),
    ):
        known = dict.fromkeys(
            (each.provenance, each.method) for each in measurements if each and each.value is not None
        )
        lines += [(name, provenance, method or "no method given") for provenance, method in known]
        unknown = dict.fromkeys(each.why for each in measurements if each and each.value is None)
        lines += [(name, "not measured", why) for why in unknown]
    return tuple(lines)


__all__ = ["KINDS", "STATUS", "FitView", "describe", "fit_view"]
