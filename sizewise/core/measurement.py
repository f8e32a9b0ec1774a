"""A measured number never travels alone: unit, interval, how many, by what method, on which machine.

Where nothing was measured there is no number: `value` is None and `why` says why (design, principle 7).
"""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Provenance = Literal["measured", "estimated", "stated"]


@dataclass(frozen=True, slots=True)
class Measurement:
    """One quantity. `low` and `high` bound its 95 % interval (or p5 to p95 where `spread` says so)."""

    name: str
    unit: str
    value: float | None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    spread: str = ""  # what low..high is, e.g. "95 % bootstrap", "p50..p95"
    provenance: Provenance = "measured"
    method: str = ""  # how it was measured or estimated
    why: str = ""  # why there is no value
    machine: str = ""  # fingerprint of the machine, see measure.machine

    def __post_init__(self) -> None:
        if self.value is None and not self.why:
            raise ValueError(f"{self.name}: a missing value needs its reason")

    def as_json(self) -> dict[str, Any]:
        """The measurement as JSON, fields that say nothing left out (but never `value`)."""
        return {key: item for key, item in asdict(self).items() if key == "value" or item not in (None, "")}


def unmeasured(name: str, unit: str, why: str) -> Measurement:
    """A measurement that was not made, and the reason."""
    return Measurement(name, unit, None, why=why)
