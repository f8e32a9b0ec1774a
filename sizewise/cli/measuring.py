"""Measure models: eval and bench."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from sizewise.cli.models import complete_name
from sizewise.cli.render import Json, print_json, print_table, progress, say, warn
from sizewise.core.units import format_bytes, format_seconds

if TYPE_CHECKING:
    from sizewise.core.measurement import Measurement
    from sizewise.core.results import Evaluation

GROUP = "Measure"
Models = Annotated[
    list[str], typer.Argument(metavar="MODEL...", autocompletion=complete_name, help="Models to measure.")
]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("eval", rich_help_panel=GROUP)(evaluate)
    app.command("bench", rich_help_panel=GROUP)(bench)


def evaluate(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task file (.toml or .py).")],
    models: Models,
    split: Annotated[str, typer.Option(help="Which rows: train, dev or test.")] = "test",
    limit: Annotated[int | None, typer.Option(min=1, help="Only so many rows, drawn with the task's seed.")] = None,
    shots: Annotated[int | None, typer.Option(min=0, max=64, help="Worked examples before each prompt.")] = None,
    no_ledger: Annotated[bool, typer.Option("--no-ledger", help="Measure everything anew, keep nothing.")] = False,
    json: Json = False,
) -> None:
    """Measure models on a task. Interrupted, the same command goes on where it stopped."""
    from typing import get_args

    from sizewise.core.errors import UnknownName
    from sizewise.core.task import Split
    from sizewise.load.home import ledger_file
    from sizewise.load.models import find_model
    from sizewise.load.open import open_runner
    from sizewise.load.tasks.file import load_task
    from sizewise.measure.evaluate import evaluate as measure
    from sizewise.measure.ledger import Ledger

    if split not in get_args(Split):
        raise UnknownName("split", split, get_args(Split))
    loaded = load_task(task)
    found = [find_model(model) for model in models]  # a typo is told before an hour of work
    ledger = None if no_ledger else Ledger(ledger_file())
    results = []
    for model in found:
        with open_runner(model) as runner, progress() as listen:
            results.append(
                measure(runner, loaded, split=split, limit=limit, shots=shots, ledger=ledger, listen=listen)  # type: ignore[arg-type]
            )
    for result in results:
        for text in result.warnings:
            warn(f"{result.model}: {text}")
    if json:
        print_json([result.as_json() for result in results])
    else:
        _print_evaluations(results)


def _print_evaluations(results: "Sequence[Evaluation]") -> None:
    from sizewise.measure.stats import paired_difference

    rows = [
        [
            result.model,
            f"{result.quality.value:.3f}",
            f"{result.quality.low:.3f} to {result.quality.high:.3f}",
            str(result.quality.n),
            str(result.unanswered),
            format_seconds(result.cpu_s_per_item),
            format_seconds(result.seconds),
        ]
        for result in results
    ]
    heading = results[0].metric.upper()
    columns = [("MODEL", "left"), (heading, "right"), ("95 % INTERVAL", "right"), ("ROWS", "right")]
    print_table([*columns, ("NO ANSWER", "right"), ("CPU/ROW", "right"), ("TIME", "right")], rows)
    first = results[0]
    for other in results[1:]:
        gap = paired_difference(other, first)
        sense = "" if first.higher_is_better else ", more is better"
        text = f"{other.model} against {first.model}: {gap.value:+.3f}{sense}"
        text += f" ({gap.low:+.3f} to {gap.high:+.3f} on the same rows)"
        if gap.mcnemar_p is not None:
            text += f", {gap.flips} of {gap.n} answers differ"
        if gap.low <= 0 <= gap.high and gap.rows_to_separate:
            text += f"; about {gap.rows_to_separate:,} rows would tell them apart"
        say(text)


def bench(
    models: Models,
    tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate in each run.")] = 64,
    repeats: Annotated[int, typer.Option(min=1, help="Runs after the warm-up.")] = 5,
    json: Json = False,
) -> None:
    """Measure a model's size, speed, memory and energy."""
    from sizewise.load.models import find_model
    from sizewise.load.open import open_runner
    from sizewise.measure.bench import bench as measure

    found = [find_model(model) for model in models]
    results: list[tuple[str, list[Measurement]]] = []
    for model in found:
        with open_runner(model) as runner, progress() as listen:
            results.append((model.name, measure(model, runner, tokens=tokens, repeats=repeats, listen=listen)))
    if json:
        print_json([{"model": name, "measurements": [m.as_json() for m in found]} for name, found in results])
        return
    for name, measurements in results:
        say(name)
        rows = [[m.name, _value(m), _spread(m), m.provenance if m.value is not None else m.why] for m in measurements]
        print_table([("WHAT", "left"), ("VALUE", "right"), ("SPREAD", "right"), ("HOW", "left")], rows)


def _value(measurement: "Measurement") -> str:
    if measurement.value is None:
        return "-"
    if measurement.unit == "bytes":
        return format_bytes(measurement.value)
    if measurement.unit == "s":
        return format_seconds(measurement.value)
    return f"{measurement.value:.4g} {measurement.unit}"


def _spread(measurement: "Measurement") -> str:
    if measurement.low is None or measurement.high is None:
        return "-"
    if measurement.unit == "s":
        return f"{format_seconds(measurement.low)} to {format_seconds(measurement.high)}"
    return f"{measurement.low:.4g} to {measurement.high:.4g}"
