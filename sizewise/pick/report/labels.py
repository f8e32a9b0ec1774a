"""Names beside points: near, never on top of one another, of a point or of the edge.

Greedy: labels are placed in order of importance, each at the first of its places (nearest first) that is free. A label
that finds none is left out; the table and the point's own tip still hold the name.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

_RINGS = (0.0, 14.0, 28.0, 44.0, 64.0, 90.0)
# Across, along, and for places above and below the share of the label that stands left of the point.
_DIRECTIONS = (
    (1, 0, 0.5), (-1, 0, 0.5), (1, -1, 0.5), (-1, -1, 0.5), (1, 1, 0.5), (-1, 1, 0.5),
    (0, -1, 0.5), (0, 1, 0.5), (0, -1, 0.8), (0, 1, 0.8), (0, -1, 0.2), (0, 1, 0.2),
)  # fmt: skip


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
    """A label to place: the point that it belongs to, its size, and how far off it starts."""

    x: float
    y: float
    width: float
    height: float
    gap: float = 11.0  # between the point and its label


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
        others = [other for other in wanted if other is not label]
        placed.append(min(free, key=lambda box: _badness(box, label, others, soft), default=None))
    return placed


def ambiguous(box: Box, label: Wanted, others: Sequence[Wanted]) -> bool:
    """True where the box stands as near to another point as to its own."""
    own = _distance(box, label)
    return any(_distance(box, other) < own + 5 for other in others)


def _badness(box: Box, label: Wanted, others: Sequence[Wanted], soft: Sequence[Box]) -> float:
    crossed = sum(box.overlaps(line) for line in soft)
    return _distance(box, label) + 18 * crossed + (35 if ambiguous(box, label, others) else 0)


def _places(label: Wanted) -> Iterator[Box]:
    for ring in _RINGS:
        for across, along, share in _DIRECTIONS:
            yield _box(label, across, along, share, ring)


def _box(label: Wanted, across: int, along: int, share: float, ring: float) -> Box:
    """The box in one of eight directions; the diagonal ones sit a little lower, so that they still read as beside."""
    reach = label.gap + ring
    rise = reach * 0.6 if across else reach
    if across > 0:
        left = label.x + reach
    elif across < 0:
        left = label.x - reach - label.width
    else:
        left = label.x - label.width * share
    if along > 0:
        top = label.y + rise
    elif along < 0:
        top = label.y - rise - label.height
    else:
        top = label.y - label.height / 2
    return Box(left, top, left + label.width, top + label.height)


def _distance(box: Box, label: Wanted) -> float:
    """From the point to the nearest place of the box."""
    across = max(box.left - label.x, 0.0, label.x - box.right)
    along = max(box.top - label.y, 0.0, label.y - box.bottom)
    return math.hypot(across, along)
