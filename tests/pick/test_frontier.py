"""The frontier against the definition, by brute force."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from sizewise.pick.frontier import Point, dominates, frontier, step_line

# Few distinct values, so that ties in one or both coordinates are common.
points = st.lists(st.builds(Point, st.integers(0, 6).map(float), st.integers(0, 6).map(float)), max_size=12)


def test_cheaper_and_better_dominates() -> None:
    assert dominates(Point(1, 0.9), Point(2, 0.8))
    assert dominates(Point(1, 0.9), Point(1, 0.8))
    assert dominates(Point(1, 0.9), Point(2, 0.9))
    assert not dominates(Point(1, 0.8), Point(2, 0.9))
    assert not dominates(Point(1, 0.9), Point(1, 0.9))


@given(points)
def test_frontier_is_what_nothing_dominates(given_points: list[Point]) -> None:
    undominated = {
        place for place, point in enumerate(given_points) if not any(dominates(other, point) for other in given_points)
    }
    kept = frontier(given_points)
    assert set(kept) == undominated
    assert len(kept) == len(set(kept))
    assert [given_points[place].cost for place in kept] == sorted(given_points[place].cost for place in kept)


@given(points)
def test_step_line_is_the_best_quality_for_the_money(given_points: list[Point]) -> None:
    corners = step_line(given_points)
    assert bool(corners) == bool(given_points)
    for budget in (0.0, 0.5, 1.5, 3.0, 6.0):
        affordable = [point.quality for point in given_points if point.cost <= budget]
        reached = [corner.quality for corner in corners if corner.cost <= budget]
        assert max(reached, default=None) == max(affordable, default=None)
    for before, after in itertools.pairwise(corners):
        assert before != after
        assert (before.cost == after.cost) != (before.quality == after.quality)  # each edge runs along one axis


def test_ties_stay_together_in_the_order_given() -> None:
    twins = [Point(2, 0.9), Point(1, 0.5), Point(2, 0.9), Point(3, 0.9)]
    assert frontier(twins) == [1, 0, 2]
    assert step_line(twins) == [Point(1, 0.5), Point(2, 0.5), Point(2, 0.9)]
