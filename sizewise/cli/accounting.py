"""What a model that was made gained and lost: the command `account`, and the account that `make` adds to its work."""

from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sizewise.cli.models import ModelName, describe
from sizewise.cli.render import Json, print_json, print_table, progress, warn
from sizewise.core.model import Model
from sizewise.core.units import format_bytes, format_count

if TYPE_CHECKING:
    from sizewise.core.measurement import Measurement

GROUP = "Measure"
How = Literal["none", "quick", "full"]
Account = Annotated[
    How, typer.Option("--account", help="What to measure of the result: a minute's worth, ten times as much, nothing.")
]


def register(app: typer.Typer) -> None:
    """Add the command."""
    app.command("account", rich_help_panel=GROUP)(account)


def account(
    model: ModelName,
    amount: Annotated[
        Literal["quick", "full"], typer.Option("--amount", help="How much text is read; full takes ten times as long.")
    ] = "quick",
    parent: Annotated[str | None, typer.Option("--parent", help="Compare with this model, not with its maker.")] = None,
    json: Json = False,
) -> None:
    """Measure what a model that was made gained and lost, and keep it in its lineage.

    Size, speed, memory; perplexity, KL divergence, same-top-token rate and flips against the model that it was made
    from, on a text like the calibration text and on political speeches.
    """
    from sizewise.pick.account import account_of

    with progress() as listen:
        found, measured = account_of(model, amount=amount, parent=parent, listen=listen)
    if json:
        print_json(describe(found))
    else:
        print_account(found, measured)


def filled_in(model: Model, amount: How, *, json: bool) -> Model:
    """Measure a model that was just made and print the account; interrupted, say how to come by it later."""
    from sizewise.pick.account import account_of

    if amount == "none" or model.kind not in ("gguf", "checkpoint"):
        return model
    try:
        with progress() as listen:
            model, measured = account_of(model, amount=amount, listen=listen)
    except BaseException:
        warn(f"{model.name} is made and kept, but not measured: `sizewise account {model.name}` does that")
        raise
    if not json:
        print_account(model, measured)
    return model


def print_account(model: Model, measured: "list[Measurement]") -> None:
    """A table: what, value, interval, reason where there is no value; then a line if the model became no faster."""
    rows = [[one.name, *cells(one.as_json()), one.why or one.provenance] for one in measured]
    print_table([("WHAT", "left"), ("VALUE", "right"), ("INTERVAL", "right"), ("HOW", "left")], rows)
    values = {one.name: one.value for one in measured}
    speed, ratio = values.get("tokens_per_second"), values.get("speed_ratio")
    if speed and ratio and ratio < 1:
        before = f"{speed:.3g} tokens/s against {speed / ratio:.3g}, each in the engine that serves it"
        warn(f"{model.name} answers no faster than what it was made from: {before}")


def lines_of(figures: list[dict[str, Any]]) -> list[str]:
    """The account in a lineage, one line a figure."""
    lines = []
    for body in figures:
        value, spread = cells(body)
        rest = body.get("why", "") if body["value"] is None else "" if spread == "-" else spread
        lines.append(f"  {body['name']:<25} {value}  {rest}".rstrip())
    return lines


def cells(body: dict[str, Any]) -> tuple[str, str]:
    """Value and interval as people read them."""
    value, low, high = (body.get(key) for key in ("value", "low", "high"))
    if value is None:
        return "-", "-"
    form = _FORMS.get(body["name"].rpartition("_")[0]) or _FORMS.get(body["name"]) or (lambda number: f"{number:.4g}")
    unit = f" {body['unit']}" if body.get("unit") not in (None, "", "bytes") else ""
    return form(value) + unit, "-" if low is None or high is None else f"{form(low)} to {form(high)}"


_FORMS: dict[str, Any] = {
    "bytes": format_bytes,
    "peak_memory_bytes": format_bytes,
    "parameters": lambda number: format_count(int(number)),
    "same_top": lambda number: f"{100 * number:.1f} %",
    "flips": lambda number: f"{100 * number:.1f} %",
    "perplexity": lambda number: f"{number:.2f}",
    "perplexity_ratio": lambda number: f"{number:.4f}",
}
