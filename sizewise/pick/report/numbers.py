"""Numbers for people: only the digits that their interval supports, one unit a column, aligned on the decimal point."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.core.results import Interval

FIGURE_SPACE, POINT_SPACE, NARROW_SPACE = "\u2007", "\u2008", "\u202f"
NO_VALUE = "\u2013"  # a dash; the reason stands with it


@dataclass(frozen=True, slots=True)
class Scale:
    """How a metric is written: `factor` turns its own scale into that of `unit`."""

    metric: str
    factor: float
    unit: str
    higher_is_better: bool = True
    best: float = 1.0  # of its own scale; a bar's margin is a share of it

    @property
    def points(self) -> str:
        """What a difference on this scale is called."""
        return "points" if self.factor * self.best == 100 else self.metric

    def digits(self, interval: Interval | None) -> int:
        """Decimals that the interval supports; one where there is no interval."""
        return decimals((interval.high - interval.low) / 2 * self.factor) if interval else 1

    def value(self, number: float, digits: int) -> str:
        """`86.1`, without its unit."""
        return fixed(number * self.factor, digits)

    def text(self, interval: Interval) -> str:
        """`86.1 %`."""
        return self.value(interval.value, self.digits(interval)) + self.suffix

    def range(self, interval: Interval) -> str:
        """`84.7 to 87.4`."""
        digits = self.digits(interval)
        return f"{self.value(interval.low, digits)} to {self.value(interval.high, digits)}"

    @property
    def suffix(self) -> str:
        """The unit with the space before it."""
        return NARROW_SPACE + self.unit if self.unit else ""


def scale_of(metric: str) -> Scale:
    """The scale of a metric, known from its name: corpus scores run from 0 to 100, the others are shares."""
    name = metric.replace("_", "-").lower()
    if name in ("perplexity", "bits-per-byte"):
        return Scale(metric, 1, "", higher_is_better=False)
    if name.startswith(("bleu", "chrf")):
        return Scale(metric, 1, "", best=100)
    return Scale(metric, 100, "%")


def decimals(half_width: float) -> int:
    """Decimals worth writing for a value known to +- `half_width`.

    The rule of the Particle Data Group: two digits of the uncertainty where they read 10 to 35, else one.
    """
    if half_width <= 0 or not math.isfinite(half_width):
        return 1
    magnitude = math.floor(math.log10(half_width))
    leading = half_width / 10.0**magnitude
    return min(6, max(0, -magnitude + (1 if leading < 3.55 else 0)))


def fixed(value: float, digits: int) -> str:
    """Fixed decimals, thousands grouped, a true minus sign, never `-0`."""
    text = f"{value:,.{digits}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return text.replace("-", "\u2212")


def significant(value: float, digits: int) -> str:
    """`value` to so many significant digits, in plain decimal notation: 213 to two digits is 210."""
    if value == 0:
        return "0"
    places = digits - 1 - math.floor(math.log10(abs(value)))
    return fixed(round(value, places), max(0, places))


@dataclass(frozen=True, slots=True)
class Column:
    """A column of numbers in one unit. A cell is None where there is no number."""

    unit: str
    cells: tuple[str | None, ...]


def column(values: Sequence[float | None], quantity: str, digits: int = 2) -> Column:
    """Numbers of one `quantity` ("seconds", "bytes", "usd" or a plain unit) in the unit that suits them all."""
    known = [value for value in values if value is not None]
    unit, factor = _unit(known, quantity)
    return Column(unit, align([None if value is None else significant(value * factor, digits) for value in values]))


def _unit(known: Sequence[float], quantity: str) -> tuple[str, float]:
    smallest = min((value for value in known if value > 0), default=1.0)
    if quantity == "seconds":
        return ("ms", 1e3) if smallest < 1 else ("s", 1.0)
    if quantity == "bytes":
        return ("GB", 1e-9) if smallest >= 1e9 else ("MB", 1e-6)
    return ("$", 1.0) if quantity == "usd" else (quantity, 1.0)


def align(texts: Sequence[str | None]) -> tuple[str | None, ...]:
    """Numbers padded on the right, so that right-aligned they stand with their decimal points in one line."""
    longest = max((len(text.partition(".")[2]) for text in texts if text), default=0)
    return tuple(None if text is None else text + _padding(text, longest) for text in texts)


def _padding(text: str, longest: int) -> str:
    fraction = text.partition(".")[2]
    point = POINT_SPACE if longest and not fraction else ""
    return point + FIGURE_SPACE * (longest - len(fraction))


def quantity_text(value: float, quantity: str, digits: int = 2) -> str:
    """One number with the unit that suits it: `4.3 ms`, `98 MB`, `$0.012`."""
    if quantity == "usd":
        return "$" + significant(value, digits)
    ladders: dict[str, tuple[tuple[float, str], ...]] = {
        "seconds": ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")),
        "bytes": ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1, "B")),
    }
    steps = ladders.get(quantity, ((1.0, quantity),))
    # Rounded first: 999.7 kB is 1 MB, not 1,000 kB.
    rounded = 0.0 if value == 0 else round(value, digits - 1 - math.floor(math.log10(abs(value))))
    size, unit = next((step for step in steps if abs(rounded) >= step[0]), steps[-1])
    text = significant(value / size, digits)
    if quantity == "bytes" and "." in text:  # counted, not measured: 91.0 MB claims no more than 91 MB
        text = text.rstrip("0").rstrip(".")
    return f"{text}{NARROW_SPACE}{unit}"


def ratio_text(ratio: float) -> str:
    """How one cost stands to another: `1/14`, `1/4,100`, `62 %`, `3.1 times`."""
    if ratio > 1.05:
        return f"{significant(ratio, 2)} times"
    return f"1/{significant(1 / ratio, 2)}" if ratio < 0.1 else f"{significant(ratio * 100, 2)}{NARROW_SPACE}%"
