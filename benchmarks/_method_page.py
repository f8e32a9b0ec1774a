"""The page of the table of methods, from the rows that `method_table.py` measured."""

from collections.abc import Callable
from typing import Any

from _method_plot import Spot, plot

from sizewise.core.units import format_bytes, format_seconds
from sizewise.pick.report.numbers import NO_VALUE

Row = dict[str, Any]
_TEXTS = {"mixed": "the kind of text that methods calibrate on", "speeches": "political speeches, which none has seen"}
_PURPOSES = ("Convert", "Quantize", "Factorize", "Prune")
_GOOD = 0.9  # same top token: what the title asks for

INTRO = """# What each method costs and keeps

Made by {command} from what it measured; the numbers with all their digits are in [methods.json](methods.json).
Measured on {machine}.

Every method started from the same model in 16 bits ({base}) and was made with the settings in the first column;
nothing was trained afterwards. Where that model was to be had in 4 or 8 bits only, it was unpacked and dithered with
noise of half a step first, so that the grid it came from helps no method: its own quality is a little below the
original's. Two texts were read: *mixed*, {mixed}, and *speeches*, {speeches}.

- Perplexity is per token of the model.
- KL is the divergence of the model from the one that it was made from, in nats per token.
- Same top is the share of positions where both think one token the likeliest; flips the share where one of them has the
  text's own token in the first place and the other has not.
- Intervals hold 95 % and are bootstrapped over blocks of neighbouring tokens.
- Tokens/s and peak memory are those of the engine that serves the file (llama.cpp for GGUF, torch for the others), one
  request at a time. Rows were taken one after the other on a shared machine: differences of a third mean nothing.
- Time is that of the making alone; the first method that wants a statistic of the calibration text pays for it.

![Same top token against bytes](images/methods.svg)

"""


def page(rows: list[Row], command: str) -> tuple[str, str]:
    """The page in Markdown, and its picture ("" where nothing was measured).

    Args:
        rows: one for each setting, the model itself among them.
        command: what makes the page.
    """
    good = [row for row in rows if "account" in row]
    base = next(row for row in good if row["method"].startswith("("))
    text = INTRO.format(
        command=command, machine=base["machine"], base=format_bytes(_value(base, "bytes") or 0), **_TEXTS
    )
    order = sorted(good, key=lambda row: (row is not base, _PURPOSES.index(row["purpose"]), _value(row, "bytes") or 0))
    heads = [head for head, _ in _COLUMNS]
    lines = [_line(heads), _line(["---", *["--:"] * (len(heads) - 1)])]
    lines += [_line([cell(row) for _, cell in _COLUMNS]) for row in order]
    text += "\n".join(lines) + "\n"
    notes = [f"- {_name(row)}: {row['failed']}" for row in rows if "failed" in row]
    notes += [f"- {_name(row)}: no {what}: {why}" for row in order for what, why in _missing(row)]
    if notes:
        text += "\n## What has no number\n\n" + "\n".join(notes) + "\n"
    return text, _picture([row for row in good if row is not base], base)


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _name(row: Row) -> str:
    said = " ".join(str(value) for key, value in row["options"].items() if key != "tokens")
    return f"{row['method']} {said}".strip()


def _value(row: Row, name: str) -> float | None:
    value: float | None = row["account"].get(name, {}).get("value")
    return value


def _missing(row: Row) -> list[tuple[str, str]]:
    """One line for each reason, not for each number that it keeps away."""
    reasons: dict[str, str] = {}
    for name, one in row["account"].items():
        if one["value"] is None:
            reasons.setdefault(one["why"], name)
    return [(name, why) for why, name in reasons.items()]


def _number(name: str, form: Callable[[float], str], *, interval: bool = False) -> Callable[[Row], str]:
    def cell(row: Row) -> str:
        value, body = _value(row, name), row["account"].get(name, {})
        if value is None:
            return NO_VALUE
        low, high = body.get("low"), body.get("high")
        return form(value) + (f" ({form(low)} to {form(high)})" if interval and low is not None else "")

    return cell


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _three(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


_COLUMNS: list[tuple[str, Callable[[Row], str]]] = [
    ("method", _name),
    ("bytes", _number("bytes", format_bytes)),
    ("of the base", _number("compression_ratio", lambda value: f"{value:.3f}")),
    ("bits per weight", _number("bits_per_weight", lambda value: f"{value:.2f}")),
    ("perplexity, mixed", _number("perplexity_mixed", _three, interval=True)),
    ("perplexity, speeches", _number("perplexity_speeches", _three, interval=True)),
    ("KL, mixed", _number("kl_mixed", _three, interval=True)),
    ("KL, speeches", _number("kl_speeches", _three, interval=True)),
    ("same top, speeches", _number("same_top_speeches", _share, interval=True)),
    ("flips, speeches", _number("flips_speeches", _share)),
    ("tokens/s", _number("tokens_per_second", _three)),
    ("peak memory", _number("peak_memory_bytes", format_bytes)),
    ("time", lambda row: format_seconds(row["seconds"]) if row["seconds"] else NO_VALUE),
]


def _picture(rows: list[Row], base: Row) -> str:
    spots = [
        Spot(_name(row), row["purpose"], size, share, one.get("low", share), one.get("high", share))
        for row in rows
        if (one := row["account"]["same_top_speeches"])
        and (share := one["value"]) is not None
        and (size := _value(row, "bytes"))
    ]
    if not spots:
        return ""
    whole = _value(base, "bytes") or 0
    best = min((spot for spot in spots if spot.share >= _GOOD), key=lambda spot: spot.bytes, default=None)
    title = f"No setting agrees with the model at {_share(_GOOD)} of positions"
    if best:
        title = f"{best.name} agrees with the model at {_share(best.share)} of positions"
        title += f", in {100 * best.bytes / whole:.0f} % of its bytes"
    text = f"Positions of a text (political speeches) with the same likeliest token as the {format_bytes(whole)} model"
    return plot(spots, title, text)
