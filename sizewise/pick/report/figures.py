"""One number as the page shows it: its exact value, the text that people read, and where it comes from."""

from collections.abc import Sequence
from dataclasses import dataclass

from sizewise.core.measurement import Measurement
from sizewise.pick.report.numbers import FIGURE_SPACE, NO_VALUE, POINT_SPACE, column, quantity_text

QUANTITIES = {"s": "seconds", "byte": "bytes", "bytes": "bytes", "B": "bytes", "USD": "usd", "usd": "usd", "$": "usd"}
EXACT = ("bytes", "parameters", "tokens")  # counted, so that three digits are worth writing
TITLES = {
    "bytes": "Size on disk",
    "parameters": "Weights",
    "bits_per_weight": "Bits per weight",
    "flops_per_token": "FLOPs per token",
    "peak_memory_bytes": "Peak memory",
    "load_s": "Loading",
    "first_token_s": "First token",
    "total_s": "Whole answer",
    "tokens_per_second": "Speed",
    "tokens": "Tokens",
    "energy_j": "Energy",
    "co2_g": "CO₂",
    "cost_usd": "Money",
    "energy_j_per_item": "Energy per item",
    "usd_per_1000_items": "Money per 1,000 items",
}


@dataclass(frozen=True, slots=True)
class Figure:
    """A number in a cell: `value` exactly, `text` for people. Where nothing was measured `why` says why."""

    value: float | None
    text: str
    why: str = ""
    provenance: str = "measured"

    @property
    def padding(self) -> str:
        """The spaces that bring the decimal points of a column into one line."""
        return self.text[len(self.words) :]

    @property
    def words(self) -> str:
        """The text without its padding."""
        return self.text.rstrip(FIGURE_SPACE + POINT_SPACE)

    @property
    def mark(self) -> str:
        """What stands behind the number where it was not measured."""
        return "" if self.value is None or self.provenance == "measured" else self.provenance


def title_of(name: str) -> str:
    """What people call a measurement."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def figure(measurement: Measurement | None, why: str = "not measured") -> Figure:
    """A measurement with the unit that suits it."""
    if measurement is None:
        return Figure(None, NO_VALUE, why)
    if measurement.value is None:
        return Figure(None, NO_VALUE, measurement.why)
    text = measurement_text(measurement.name, measurement.unit, measurement.value)
    return Figure(measurement.value, text, provenance=measurement.provenance)


def measurement_text(name: str, unit: str, value: float) -> str:
    """A value with its unit, with the digits that its kind deserves."""
    if name == "tokens":
        return f"{value:,.0f}"
    if name == "flops_per_token":
        return _large(value) + " FLOPs"
    if name == "parameters":
        return _large(value)
    digits = 3 if name in (*EXACT, "bits_per_weight") else 2
    return quantity_text(value, QUANTITIES.get(unit, unit), digits)


def _large(value: float) -> str:
    for size, word in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if value >= size:
            return f"{value / size:.3g}{word}"
    return f"{value:.0f}"


def cells(
    values: Sequence[float | None], quantity: str, reasons: Sequence[str], provenances: Sequence[str], digits: int = 2
) -> tuple[str, list[Figure]]:
    """A column of figures in one unit, and that unit."""
    shown = column(values, quantity, digits)
    return shown.unit, [
        Figure(value, text or NO_VALUE, why, provenance)
        for value, text, why, provenance in zip(values, shown.cells, reasons, provenances, strict=True)
    ]
