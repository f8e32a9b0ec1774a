"""The report as Markdown: the same decision, numbers and answers, for a pull request or a terminal."""

import re
from collections.abc import Iterable, Sequence

from sizewise.core.results import Comparison, FitResult
from sizewise.pick.report.answers import plainly
from sizewise.pick.report.comparison_view import ComparisonView, comparison_view
from sizewise.pick.report.figures import Figure
from sizewise.pick.report.fit_view import KINDS, STATUS, FitView, fit_view

_LONGEST = 4000  # characters of an answer
_SPECIAL = re.compile(r"([\\`*_\[\]<>|#~])")


def render_markdown(results: Sequence[FitResult | Comparison]) -> str:
    """The results as one Markdown document, the decision of the first one on top."""
    parts = [
        _fit(fit_view(result)) if isinstance(result, FitResult) else _comparison(comparison_view(result, _LONGEST))
        for result in results
    ]
    return "\n\n".join(parts).encode("utf-8", "replace").decode() + "\n"


def _fit(view: FitView) -> str:
    standing, result = view.standing, view.result
    lines = [
        f"# {_plain(result.decision.sentence)}",
        "",
        f"Task {_plain(result.task)}: {STATUS[result.decision.status]}.",
    ]
    for picture in view.pictures[:1]:
        lines += ["", f"{_plain(picture.title)}."]
    if standing.bar is not None:
        lines += ["", f"The bar: {result.metric} {standing.scale.value(standing.bar, 1)}{standing.scale.suffix}."]
    header = [
        "Candidate",
        "Kind",
        *(", ".join(filter(None, (column.title, column.unit, column.source))) for column in view.columns),
        "Outcome",
    ]
    rows = [
        [
            f"**{_plain(row.name)}**" if row.state == "winner" else _plain(row.name),
            KINDS[row.candidate.kind],
            # The outcome says why a number is missing; the reason in each cell would drown the table.
            *(_cell(figure) if figure.value is not None else "-" for figure in _row(view, place)),
            _plain(row.note),
        ]
        for place, row in enumerate(standing.all)
    ]
    lines += ["", "## Candidates", "", *_table(header, rows, right=range(2, 2 + len(view.columns)))]
    ranges = [
        f"- {_plain(row.name)}: {standing.scale.text(row.quality)}, {standing.scale.range(row.quality)} "
        f"on {row.quality.n:,} {row.split} rows"
        for row in standing.all
        if row.quality
    ]
    lines += ["", "95 % intervals:", "", *ranges]
    lines += _classes(view)
    lines += _evidence(view, [("task", result.task_digest), *((r.name, r.candidate.digest) for r in standing.all)])
    return "\n".join(lines)


def _row(view: FitView, place: int) -> list[Figure]:
    return [column.figures[place] for column in view.columns]


def _classes(view: FitView) -> list[str]:
    if not view.classes:
        return []
    header = ["Class", "Rows", *(f"{_plain(each.name)}, F1" for each in view.compared)]
    rows = [
        [
            _plain(row["label"]),
            f"{row['n']:,.0f}" if row["n"] is not None else "-",
            *(f"{score['f1'] * 100:.0f} %" if "f1" in score else "-" for score in row["scores"]),
        ]
        for row in view.classes
    ]
    return ["", "## Class by class", "", *_table(header, rows, right=range(1, len(header)))]


def _comparison(view: ComparisonView) -> str:
    lines = [f"# {_plain(view.sentence)}", "", "## The models in numbers", ""]
    header = ["", *(_plain(model.model) for model in view.result.models)]
    rows = [[title, *(_cell(figure) for figure in figures)] for title, figures in view.table]
    lines += [*_table(header, rows, right=range(1, len(header))), "", "## The answers"]
    for instruction in view.instructions:
        lines += ["", f"### {_plain(instruction.title)}", "", *_quoted(instruction.prompt)]
        for answer in instruction.answers:
            took = ", ".join(f"{title.lower()} {_cell(figure)}" for title, figure in answer.figures if figure.text)
            lines += ["", f"**{_plain(answer.model)}** ({took})", "", *_fenced(answer.shown.text)]
    lines += _evidence(view, [(model.model, model.digest) for model in view.result.models])
    return "\n".join(lines)


def _evidence(view: FitView | ComparisonView, digests: Iterable[tuple[str, str]]) -> list[str]:
    result = view.result
    lines = ["", "## How every number was come by", ""]
    lines += [f"- {_plain(quantity)}: {source}; {_plain(how)}" for quantity, source, how in view.provenance]
    lines += [f"- {_plain(note)}" for note in result.notes]
    machine = ", ".join(" ".join(plainly(key, value)) for key, value in result.machine.items())
    lines += ["", f"Machine: {_plain(machine)}. Seed {result.seed}. It took {result.seconds:.0f} s.", ""]
    lines += ["To get it again:", "", *_fenced(view.command), ""]
    return lines + [f"- {_plain(name)}: `{digest}`" for name, digest in digests if digest]


def _cell(figure: Figure) -> str:
    if figure.value is None:
        return f"- ({_plain(figure.why)})"
    return figure.words + (f" ({figure.mark})" if figure.mark else "")


def _table(header: list[str], rows: list[list[str]], right: range) -> list[str]:
    rule = ["---:" if place in right else "---" for place in range(len(header))]
    return [f"| {' | '.join(cells)} |" for cells in (header, rule, *rows)]


def _plain(text: str) -> str:
    """Somebody's text as Markdown that shows it as it is, in one line."""
    return _SPECIAL.sub(r"\\\1", " ".join(text.split()))


def _quoted(text: str) -> list[str]:
    return [f"> {_plain(line)}" for line in text.splitlines() or [""]]


def _fenced(text: str) -> list[str]:
    """A code block with a fence longer than any inside it."""
    longest = max((len(found) for found in re.findall(r"`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence, *text.splitlines(), fence]
