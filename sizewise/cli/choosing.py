"""Choose a model: compare, fit, report."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sizewise.cli.models import complete_name
from sizewise.cli.render import Json, print_json, print_table, progress, say, warn
from sizewise.core.errors import UsageError
from sizewise.core.units import format_bytes, format_seconds, parse_bytes, parse_seconds

if TYPE_CHECKING:
    from sizewise.core.results import Bar, Candidate, Comparison, FitResult

GROUP = "Choose"
Models = Annotated[list[str], typer.Argument(metavar="MODEL...", autocompletion=complete_name, help="Models.")]
Report = Annotated[Path | None, typer.Option("--report", help="Also write a page (.html, with .json and .md beside).")]
Hourly = Annotated[float | None, typer.Option(min=0, help="What this machine costs by the hour, in US dollars.")]
Save = Annotated[Path | None, typer.Option("--save", help="Also write the result as JSON, for `sizewise report`.")]


def register(app: typer.Typer) -> None:
    """Add the commands of this file."""
    app.command("compare", rich_help_panel=GROUP)(compare)
    app.command("fit", rich_help_panel=GROUP)(fit)
    app.command("report", rich_help_panel=GROUP)(report)


def compare(
    models: Models,
    prompt: Annotated[list[str] | None, typer.Option(help="Your own instruction instead of the five.")] = None,
    instructions: Annotated[Path | None, typer.Option(help="A TOML file of instructions.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="Longest answer, in tokens.")] = 160,
    usd_per_hour: Hourly = None,
    country: Annotated[str | None, typer.Option(help="Three letters, for the CO2 of its grid, such as FRA.")] = None,
    report: Report = None,
    save: Save = None,
    json: Json = False,
) -> None:
    """Give several models the same instructions and lay the answers side by side."""
    from sizewise.pick.compare import Prices, read_instructions
    from sizewise.pick.compare import compare as lay

    if prompt and instructions:
        raise UsageError("give either --prompt or --instructions")
    asked = read_instructions(instructions, prompt)
    with progress() as listen:
        prices = Prices(usd_per_hour, country)
        result = lay(models, instructions=asked, max_tokens=max_tokens, prices=prices, listen=listen)
    if json:
        print_json(result.as_json())
    else:
        _print_comparison(result)
    _write(result, report, save, quiet=json)


def _print_comparison(result: "Comparison") -> None:
    titles = [answer.instruction for answer in result.models[0].answers]
    for index, title in enumerate(titles):
        say(f"\n{title}")
        for model in result.models:
            text = " ".join(model.answers[index].answer.split())
            say(f"  {model.model}: {text[:160]}{'…' if len(text) > 160 else ''}")
    wanted = ("tokens_per_second", "first_token_s", "peak_memory_bytes", "energy_j", "cost_usd")
    rows = []
    for model in result.models:
        known = {m.name: m for m in model.measurements}
        cells = [known[name].value if name in known else None for name in wanted]
        rate, first, memory, energy, cost = cells
        rows.append(
            [
                model.model,
                format_bytes(model.bytes),
                f"{rate:.0f}" if rate is not None else "-",
                format_seconds(first),
                format_bytes(memory),
                f"{energy:.0f} J" if energy is not None else "-",
                f"${cost:.2g}" if cost is not None else "-",
            ]
        )
    columns = [("MODEL", "left"), ("SIZE", "right"), ("TOKENS/S", "right"), ("FIRST TOKEN", "right")]
    print_table([*columns, ("MEMORY", "right"), ("ENERGY", "right"), ("COST", "right")], rows)


def fit(
    task: Annotated[str, typer.Argument(metavar="TASK", help="Task file (.toml or .py).")],
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL...]", autocompletion=complete_name, help="Default: every model in the store."),
    ] = None,
    at_least: Annotated[float | None, typer.Option(help="The quality that is needed, on the metric's scale.")] = None,
    margin: Annotated[
        float | None, typer.Option(min=0, help="Points that may be lost to the reference. Default 2.")
    ] = None,
    reference: Annotated[str | None, typer.Option(help="Model to be compared with. Default: the best found.")] = None,
    max_latency: Annotated[str | None, typer.Option(help="Longest p50 answer time, such as 200ms.")] = None,
    max_memory: Annotated[str | None, typer.Option(help="Most memory, such as 500MB.")] = None,
    max_disk: Annotated[str | None, typer.Option(help="Largest model, such as 100MB.")] = None,
    budget: Annotated[str | None, typer.Option(help="Time for the search, such as 5m. Default: no limit.")] = None,
    usd_per_hour: Hourly = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the splits and intervals.")] = 0,
    report: Report = None,
    save: Save = None,
    json: Json = False,
) -> None:
    """Find the smallest model that does a task, and prove it on rows that no choice has seen."""
    from sizewise.load.tasks.file import load_task
    from sizewise.pick.fit import fit as search

    limits = {
        "latency_s": parse_seconds(max_latency) if max_latency else None,
        "memory_bytes": float(parse_bytes(max_memory)) if max_memory else None,
        "bytes": float(parse_bytes(max_disk)) if max_disk else None,
    }
    loaded = load_task(task)
    with progress() as listen:
        result = search(
            loaded,
            models=models or None,
            bar=_bar(at_least, margin, reference),
            limits=limits,
            budget_s=parse_seconds(budget) if budget else None,
            usd_per_hour=usd_per_hour,
            seed=seed,
            listen=listen,
        )
    if json:
        print_json(result.as_json())
    else:
        _print_fit(result)
    _write(result, report, save, quiet=json)


def _bar(at_least: float | None, margin: float | None, reference: str | None) -> "Bar":
    from sizewise.core.results import Bar

    if at_least is not None and (margin is not None or reference is not None):
        raise UsageError("the bar is either --at-least or --margin with --reference, not both")
    if at_least is not None:
        return Bar(at_least=at_least)
    return Bar(margin=(2.0 if margin is None else margin) / 100, reference=reference)


def _print_fit(result: "FitResult") -> None:
    names = [candidate.model for candidate in result.candidates]
    chosen = names.index(result.decision.model) if result.decision.model in names else None
    columns = [("MODEL", "left"), ("DEV", "right"), ("TEST", "right"), ("CPU/ROW", "right"), ("SIZE", "right")]
    rows = [_candidate_row(candidate) for candidate in result.candidates]
    print_table([*columns, ("LEFT BECAUSE", "left")], rows, chosen)
    say(result.decision.sentence)
    for note in result.notes:
        say(f"Note: {note}")


def _candidate_row(candidate: "Candidate") -> list[str]:
    def quality(value: Any) -> str:
        return f"{value.value:.3f} ±{(value.high - value.low) / 2:.3f}" if value else "-"

    return [
        candidate.model + (f" ({candidate.shots} shots)" if candidate.shots is not None else ""),
        quality(candidate.dev),
        quality(candidate.test),
        format_seconds(candidate.cpu_s_per_item),
        format_bytes(candidate.bytes),
        candidate.left_because,
    ]


def report(
    results: Annotated[list[Path], typer.Argument(metavar="JSON...", help="Saved results of fit and compare.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Make one page of saved results."""
    import json

    from sizewise.pick.report import write_report

    loaded = []
    for path in results:
        try:
            loaded.append(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError as error:
            raise UsageError(f"{path}: no such file; `sizewise fit TASK --save {path}` writes one") from error
        except ValueError as error:
            raise UsageError(f"{path}: not JSON ({error})") from error
    write_report(loaded, output)
    say(f"The report is in {output}")


def _write(result: Any, page: Path | None, save: Path | None, *, quiet: bool) -> None:
    from sizewise.core.errors import StorageError
    from sizewise.pick.kept import keep

    try:
        keep(result)  # for the web page's list of reports
    except StorageError as error:
        warn(f"the web page will not list this result: {error}")
    if save:
        import json

        from sizewise.load.store.atomic import write_atomic

        write_atomic(save, [(json.dumps(result.as_json(), indent=2, ensure_ascii=False) + "\n").encode()])
    if page:
        from sizewise.pick.report import write_report

        write_report([result], page)
        if not quiet:
            say(f"The report is in {page}")
