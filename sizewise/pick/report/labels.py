"""Names beside points: near, never on top of one another, of a point or of the edge.

Greedy: labels are placed in order of importance, each at the first of its places (nearest first) that is free. A label
that finds none is left out; the table and the point's own tip still hold the name.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_GAP = 11.0  # between a point and its label
_RINGS = (0.0, 14.0, 28.0, 44.0, 64.0, 90.0)
_DIRECTIONS = ((1, 0), (-1, 0), (1, -1), (-1, -1), (1, 1), (-1, 1), (0, -1), (0, 1))


class Box(NamedTuple):
    """A rectangle in the picture; y grows downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlaps(self, other: "Box") -> bool:
        """True where the two share some area."""
        apart_across = self.right <= other.left or other.right <= self.left
        apart_along = self.bottom <= other.top or other.bottom <= self.top
        return not (apart_across or apart_along)

    def inside(self, other: "Box") -> bool:
        """True where nothing of this box lies outside `other`."""
        across = self.left >= other.left and self.right <= other.right
        return across and self.top >= other.top and self.bottom <= other.bottom


class Wanted(NamedTuple):
    """A label to place: the point that it belongs to, and its size."""

    x: float
    y: float
    width: float
    height: float


def place_labels(wanted: Sequence[Wanted], frame: Box, hard: Sequence[Box], soft: Sequence[Box]) -> list[Box | None]:
    """Where each label goes, or None.

    Args:
        wanted: labels, the most important first.
        frame: what they must stay inside.
        hard: what they must not touch (points).
        soft: what they should rather not touch (lines, intervals).

    Returns:
        One box or None for each label; no two of them overlap, and none overlaps anything `hard`.
    """
    placed: list[Box | None] = []
    for label in wanted:
        taken = [*hard, *(box for box in placed if box)]
        free = [box for box in _places(label) if box.inside(frame) and not any(box.overlaps(other) for other in taken)]
        # sorted() is stable: among places that touch equally many lines the nearest comes first.
        ranked = sorted(free, key=lambda box: sum(box.overlaps(line) for line in soft) * 30 + _distance(box, label))
        placed.append(ranked[0] if ranked else None)
    return placed


def _places(label: Wanted) -> Iterator[Box]:
    for ring in _RINGS:
        for across, along in _DIRECTIONS:
            yield _box(label, across, along, ring)


def _box(label: Wanted, across: int, along: int, ring: float) -> Box:
    reach = _GAP + ring
    diagonal = reach * 0.72 if across and along else reach
    if across > 0:
        left = label.x + diagonal
    elif across < 0:
        left = label.x - diagonal - label.width
    else:
        left = label.x - label.width / 2
    if along > 0:
        top = label.y + diagonal - 3
    elif along < 0:
        top = label.y - diagonal - label.height + 3
    else:
        top = label.y - label.height / 2
    return Box(left, top, left + label.width, top + label.height)


def _distance(box: Box, label: Wanted) -> float:
    """From the point to the nearest place of the box."""
    across = max(box.left - label.x, 0.0, label.x - box.right)
    along = max(box.top - label.y, 0.0, label.y - box.bottom)
    return math.hypot(across, along)
