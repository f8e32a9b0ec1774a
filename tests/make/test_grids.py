"""Uniform grids: coverage, idempotence, what is stored."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sizewise.core.errors import UsageError
from sizewise.make.grids import fit, fit_best, group_size, quantize, storable


def groups(seed: int, size: float = 1.0) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(6, 3, 8, generator=draw) * size + torch.randn(6, 3, 1, generator=draw) * size


@given(st.integers(0, 2**16), st.integers(2, 8), st.booleans(), st.sampled_from([1e-6, 1e-2, 1.0, 1e4]))
def test_no_error_exceeds_half_a_step(seed: int, bits: int, symmetric: bool, size: float) -> None:
    weight = groups(seed, size)
    grid = fit(weight, bits, symmetric)
    rounded = grid.nearest(weight)
    assert ((weight - rounded).abs() <= grid.scale / 2 * (1 + 1e-5)).all()
    assert torch.equal(grid.nearest(rounded), rounded)
    assert (grid.nearest(torch.zeros_like(weight)) == 0).all()  # zero is always on the grid


@given(st.integers(0, 2**16), st.booleans())
def test_more_bits_are_no_worse_and_sixteen_nearly_exact(seed: int, symmetric: bool) -> None:
    weight = groups(seed)
    errors = [
        float((fit(weight, bits, symmetric).nearest(weight) - weight).square().sum()) for bits in (2, 4, 6, 8, 16)
    ]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-6


def test_constant_and_empty_groups() -> None:
    for value in (0.0, 3.0, -0.25):
        weight = torch.full((2, 1, 8), value)
        for symmetric in (True, False):
            rounded = fit(weight, 4, symmetric).nearest(weight)
            assert torch.isfinite(rounded).all()
            assert (rounded - value).abs().max() <= abs(value) / 7
    assert fit(torch.zeros(1, 1, 8), 4, symmetric=False).scale.item() == 1.0


def test_scales_are_numbers_that_sixteen_bits_hold_and_cover_the_range() -> None:
    scale = torch.tensor([1.0, 0.3, 1e-5, 7.7e3])
    stored = storable(scale)
    assert torch.equal(stored.bfloat16().float(), stored)
    assert (stored >= scale).all()
    assert (stored <= scale * (1 + 2**-7)).all()
    assert stored[0] == 1.0


def test_the_best_grid_is_no_worse_and_clips_an_outlier() -> None:
    weight = groups(3)
    weight[..., 0] = 6.0
    plain, best = fit(weight, 3, symmetric=True), fit_best(weight, 3, symmetric=True, importance=torch.ones(()))
    cost = [((grid.nearest(weight) - weight) ** 2).sum(-1) for grid in (plain, best)]
    assert (cost[1] <= cost[0]).all()
    quiet = torch.ones(8).index_fill(0, torch.tensor([0]), 0.0)  # where the outlier does not matter it is clipped
    assert (fit_best(weight, 3, symmetric=True, importance=quiet).scale < plain.scale).all()


def test_codes_stand_for_what_the_grid_says() -> None:
    weight = groups(4)
    grid = fit(weight, 4, symmetric=False)
    packed = quantize(weight, grid, symmetric=False)
    assert torch.equal(packed.dense(), grid.nearest(weight).reshape(6, 24))
    assert packed.size_bits == 6 * 24 * 4 + 18 * (16 + 4)
    assert packed.shape == (6, 24)


def test_groups_must_divide() -> None:
    assert (group_size(0, 36), group_size(12, 36)) == (36, 12)
    with pytest.raises(UsageError, match="groups of 128 do not divide rows of 576 weights: 192, 96, 64"):
        group_size(128, 576)
    with pytest.raises(UsageError, match="groups of 64 do not divide rows of 36 weights: 0 means whole rows"):
        group_size(64, 36)
