"""What the page and the Markdown say about a comparison: bars, answers side by side, provenance."""

from collections.abc import Callable
from dataclasses import dataclass

from sizewise.core.measurement import Measurement
from sizewise.core.results import ComparedAnswer, ComparedModel, Comparison
from sizewise.pick.report.answers import Shown, clean, show
from sizewise.pick.report.figures import Figure, figure, title_of
from sizewise.pick.report.numbers import ratio_text, significant

_BARS = (  # name, better
    ("bytes", "less"),
    ("peak_memory_bytes", "less"),
    ("load_s", "less"),
    ("first_token_s", "less"),
    ("tokens_per_second", "more"),
    ("energy_j", "less"),
    ("cost_usd", "less"),
)


@dataclass(frozen=True, slots=True)
class Bar:
    """One model's bar: its length as a share of the longest."""

    model: str
    figure: Figure
    share: float
    best: bool


@dataclass(frozen=True, slots=True)
class BarChart:
    """One quantity over all models."""

    title: str
    better: str
    bars: tuple[Bar, ...]


@dataclass(frozen=True, slots=True)
class AnswerView:
    """One model's answer, and what it took."""

    model: str
    shown: Shown
    cut: bool
    figures: tuple[tuple[str, Figure], ...]


@dataclass(frozen=True, slots=True)
class InstructionView:
    """One instruction with every model's answer."""

    title: str
    prompt: str
    answers: tuple[AnswerView, ...]


@dataclass(frozen=True, slots=True)
class ComparisonView:
    """A comparison, ready to be laid out."""

    result: Comparison
    sentence: str
    bars: tuple[BarChart, ...]
    instructions: tuple[InstructionView, ...]
    table: tuple[tuple[str, tuple[Figure, ...]], ...]
    provenance: tuple[tuple[str, str, str], ...]
    command: str


def comparison_view(result: Comparison, longest: int = 4000) -> ComparisonView:
    """Everything that is shown of a comparison; texts are cut at `longest` characters."""
    names = [model.model for model in result.models]
    return ComparisonView(
        result,
        comparison_sentence(result),
        _bars(result),
        _instructions(result, longest),
        _table(result),
        _provenance(result),
        result.command or f"sizewise compare {' '.join(names)}",
    )


def comparison_sentence(result: Comparison) -> str:
    """Who is the fastest and who the smallest, in a sentence with numbers that a person can say aloud."""
    count = len(result.models[0].answers) if result.models else 0
    asked = f"{count} instruction{'' if count == 1 else 's'} to {len(result.models)} model"
    asked += "" if len(result.models) == 1 else "s"
    speeds = [(speed, model) for model in result.models if (speed := _value(model, "tokens_per_second"))]
    if not speeds:
        return f"The same {asked}, side by side."
    rate, fastest = max(speeds, key=lambda pair: pair[0])
    sentence = f"The same {asked}: {fastest.model} writes fastest, {significant(rate, 2)} tokens a second"
    slowest_rate, slowest = min(speeds, key=lambda pair: pair[0])
    if slowest is not fastest:
        sentence += f" against {significant(slowest_rate, 2)} of {slowest.model}"
    sized = [model for model in result.models if model.bytes]
    if len(sized) > 1:
        smallest, largest = min(sized, key=_bytes), max(sized, key=_bytes)
        share = ratio_text(_bytes(smallest) / _bytes(largest))
        also = "it is also" if smallest is fastest else f"{smallest.model} is"
        sentence += f"; {also} the smallest, {figure(_measured(smallest, 'bytes')).text}"
        sentence += f" or {share} of {largest.model}" if _bytes(smallest) < _bytes(largest) else ""
    return sentence + "."


def _bytes(model: ComparedModel) -> float:
    return float(model.bytes or 0)


def _measured(model: ComparedModel, name: str) -> Measurement | None:
    """A measurement of the whole model; its size stands in a field of its own."""
    found = next((each for each in model.measurements if each.name == name), None)
    if found is None and name in ("bytes", "parameters"):
        value = getattr(model, name)
        if value is not None:
            return Measurement(name, "bytes" if name == "bytes" else "", float(value), method="read from the file")
    return found


def _value(model: ComparedModel, name: str) -> float | None:
    found = _measured(model, name)
    return found.value if found else None


def _bars(result: Comparison) -> tuple[BarChart, ...]:
    charts = []
    for name, better in _BARS:
        values = [_value(model, name) for model in result.models]
        known = [value for value in values if value is not None]
        if not known or max(known) <= 0:
            continue
        pick: Callable[[list[float]], float] = max if better == "more" else min
        bars = tuple(
            Bar(model.model, figure(_measured(model, name)), (value or 0) / max(known), value == pick(known))
            for model, value in zip(result.models, values, strict=True)
        )
        charts.append(BarChart(title_of(name), better, bars))
    return tuple(charts)


def _instructions(result: Comparison, longest: int) -> tuple[InstructionView, ...]:
    titles = dict.fromkeys((answer.instruction, answer.prompt) for model in result.models for answer in model.answers)
    views = []
    for title, prompt in titles:
        found = [(m, a) for m in result.models for a in m.answers if (a.instruction, a.prompt) == (title, prompt)]
        reference = found[0][1].answer
        answers = tuple(
            _answer(model, answer, reference if place else None, longest) for place, (model, answer) in enumerate(found)
        )
        views.append(InstructionView(clean(title, 200), clean(prompt, longest), answers))
    return tuple(views)


def _answer(model: ComparedModel, answer: ComparedAnswer, reference: str | None, longest: int) -> AnswerView:
    figures = tuple((title_of(each.name), figure(each)) for each in answer.measurements)
    return AnswerView(model.model, show(answer.answer, reference, longest), answer.finish == "length", figures)


def _table(result: Comparison) -> tuple[tuple[str, tuple[Figure, ...]], ...]:
    """Every measurement of the models as a whole: one row a quantity, one figure a model."""
    names = dict.fromkeys(["bytes", "parameters"])
    names.update(dict.fromkeys(each.name for model in result.models for each in model.measurements))
    rows = []
    for name in names:
        figures = tuple(figure(_measured(model, name)) for model in result.models)
        rows.append((title_of(name), figures))
    return tuple(rows)


def _provenance(result: Comparison) -> tuple[tuple[str, str, str], ...]:
    """How each quantity was come by, each way once; and why some were not measured."""
    lines: dict[tuple[str, str, str], None] = {}
    for model in result.models:
        for each in (*model.measurements, *(m for answer in model.answers for m in answer.measurements)):
            if each.value is None:
                lines[title_of(each.name), "not measured", each.why] = None
            else:
                lines[title_of(each.name), each.provenance, each.method or "no method given"] = None
    return tuple(lines)
