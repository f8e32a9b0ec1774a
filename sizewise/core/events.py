"""Progress as values. Long work calls a listener; who listens decides whether anything is drawn."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a piece of work has come: `done` of `total` in `unit` ("bytes", "items", "tokens").

    Without a unit it is a step that begins. `digest`: of the blob that moves.
    """

    what: str
    done: float
    total: float | None
    unit: str = "items"
    digest: str = ""


Listener = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """The listener that draws nothing."""
