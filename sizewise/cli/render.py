"""The only place that prints: tables for people, JSON for programs, progress on stderr when it is a terminal."""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Annotated, Any

import typer

from sizewise.core.events import Listener, Progress, silent
from sizewise.core.units import format_bytes

Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]
Column = tuple[str, str]  # heading, "left" or "right"


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    json.dump(value, sys.stdout, indent=2, ensure_ascii=False, allow_nan=False)
    sys.stdout.write("\n")


def print_table(columns: Sequence[Column], rows: Sequence[Sequence[str]], chosen: int | None = None) -> None:
    """A table of at most 100 columns; the row `chosen` is marked by a star as well as by colour."""
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading, side in columns:
        table.add_column(heading, justify="right" if side == "right" else "left", overflow="fold")
    for index, row in enumerate(rows):
        mark = index == chosen
        cells = [Text(cell) for cell in row]
        if mark and cells:
            cells[0] = Text(f"★ {row[0]}")
        table.add_row(*cells, style="bold green" if mark else None)
    console = Console()
    console.width = min(console.width, 100) if console.is_terminal else 100
    console.print(table)


def say(text: str) -> None:
    """A line for people, on stdout."""
    print(text)


def warn(text: str) -> None:
    """A warning, on stderr."""
    print(f"sizewise: warning: {' '.join(text.split())}", file=sys.stderr)


@contextmanager
def progress() -> Iterator[Listener]:
    """A listener that draws on stderr: what, how far, how fast, how long still. Silent when stderr is no terminal."""
    if not sys.stderr.isatty():
        yield silent
        return
    from rich.console import Console
    from rich.progress import BarColumn, TaskID, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[amount]}"),
        TextColumn("{task.fields[speed]}"),
        TimeRemainingColumn(),
    )
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        known: dict[str, tuple[TaskID, float]] = {}

        def draw(event: Progress) -> None:
            if event.what not in known:
                known[event.what] = (bars.add_task(event.what, amount="", speed=""), time.monotonic())
            task, start = known[event.what]
            amount, speed = _amounts(event, time.monotonic() - start)
            bars.update(task, completed=event.done, total=event.total, amount=amount, speed=speed)

        yield draw


def _amounts(event: Progress, seconds: float) -> tuple[str, str]:
    rate = event.done / seconds if seconds > 0.5 else 0.0
    if event.unit == "bytes":
        amount = format_bytes(event.done) + (f" of {format_bytes(event.total)}" if event.total else "")
        return amount, f"{format_bytes(rate)}/s" if rate else ""
    amount = f"{event.done:.0f}" + (f" of {event.total:.0f}" if event.total else "") + f" {event.unit}"
    return amount, f"{rate:.3g}/s" if rate else ""
