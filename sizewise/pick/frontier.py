"""Which candidates are worth a look: those that no other candidate beats on both cost and quality.

Costs are better when lower, qualities when higher. Two candidates with the same cost and the same quality do not beat
one another, so ties stay on the frontier together.
"""

from collections.abc import Sequence
from typing import NamedTuple


class Point(NamedTuple):
    """One candidate: what it costs (lower is better) and how good it is (higher is better)."""

    cost: float
    quality: float


def dominates(first: Point, second: Point) -> bool:
    """True where `first` is at least as cheap and as good as `second`, and better in one of the two."""
    return first.cost <= second.cost and first.quality >= second.quality and first != second


def frontier(points: Sequence[Point]) -> list[int]:
    """Places in `points` of those that none dominates, cheapest first; equal points in the order given.

    Sorted by cost, a point is on the frontier exactly when it is better than everything cheaper, or equal to the last
    one that was: O(n log n).
    """
    order = sorted(range(len(points)), key=lambda place: (points[place].cost, -points[place].quality))
    kept: list[int] = []
    for place in order:
        if not kept or points[place].quality > points[kept[-1]].quality or points[place] == points[kept[-1]]:
            kept.append(place)
    return kept


def step_line(points: Sequence[Point]) -> list[Point]:
    """Corners of the frontier drawn as stairs: the best quality that can be had for at most a given cost.

    Stairs, not slopes: between two candidates there is no third one to be bought.
    """
    corners: list[Point] = []
    for place in frontier(points):
        point = points[place]
        if corners and point != corners[-1]:
            corners.append(Point(point.cost, corners[-1].quality))
        if not corners or point != corners[-1]:
            corners.append(point)
    return corners
