"""Types under a budget, against every possible choice."""

import itertools
import random

import pytest

from sizewise.load.gguf.types import BY_NAME, GgmlType
from sizewise.make.gguf_budget import Option, choose, kinds_for

KINDS = [BY_NAME[name] for name in ("Q4_0", "Q4_1", "Q5_0", "Q8_0")]


def drawn(seed: int, tensors: int = 5) -> dict[str, list[Option]]:
    chance = random.Random(seed)
    return {
        f"t{index}": [
            Option(kind, size * (index + 1), chance.uniform(0.5, 1.5) * 2.0 ** (-size))
            for kind, size in zip(KINDS, (4, 5, 6, 8), strict=True)
        ]
        for index in range(tensors)
    }


def spent(options: dict[str, list[Option]], chosen: dict[str, GgmlType]) -> tuple[int, float]:
    picked = [next(each for each in options[name] if each.kind == kind) for name, kind in chosen.items()]
    return sum(each.bytes for each in picked), sum(each.cost for each in picked)


@pytest.mark.parametrize("seed", range(8))
def test_no_choice_of_as_few_bytes_is_much_cheaper(seed: int) -> None:
    """Brute force. A climb of hulls can miss the best by one step, so it gets the largest step more."""
    options = drawn(seed)
    for budget in (80, 95, 110):
        size, cost = spent(options, choose(options, budget))
        assert size <= budget
        best = min(
            sum(each.cost for each in picked)
            for picked in itertools.product(*options.values())
            if sum(each.bytes for each in picked) <= budget - 10
        )
        assert cost <= best * (1 + 1e-9)


def test_the_more_bytes_the_cheaper_and_the_ends_are_the_ends() -> None:
    options = drawn(3)
    costs = [spent(options, choose(options, budget))[1] for budget in range(60, 121, 5)]
    assert costs == sorted(costs, reverse=True)
    assert set(choose(options, 0).values()) == {KINDS[0]}
    cheapest = {name: min(each, key=lambda option: option.cost).kind for name, each in options.items()}
    assert choose(options, 10**6) == cheapest


def test_a_type_that_costs_more_and_is_larger_is_never_taken() -> None:
    options = {"t": [Option(KINDS[0], 4, 1.0), Option(KINDS[1], 5, 2.0), Option(KINDS[2], 6, 0.5)]}
    assert [choose(options, budget)["t"] for budget in (4, 5, 6)] == [KINDS[0], KINDS[0], KINDS[2]]


def test_only_types_whose_blocks_divide_the_rows() -> None:
    assert all(576 % kind.block == 0 for kind in kinds_for(576))
    assert {kind.block for kind in kinds_for(1536)} == {32, 256}
