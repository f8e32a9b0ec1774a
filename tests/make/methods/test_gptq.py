"""Oracles of GPTQ: the sweep knows its own error, independence of block size, where it equals rounding."""

from typing import Any

import pytest
import torch
from layers_at_random import damage, random_layer

from sizewise.core.errors import UsageError
from sizewise.make.compensate import sweep
from sizewise.make.grids import fit
from sizewise.make.hessian import Damped, damped, inverse_factor
from sizewise.make.methods.gptq import gptq
from sizewise.make.methods.rtn import rtn
from sizewise.make.packed import Quantized


def quantized(*args: Any, **options: Any) -> Quantized:
    made = gptq(*args, **options)
    assert isinstance(made, Quantized)
    return made


@pytest.mark.parametrize("damp", [0.0, 0.01])
@pytest.mark.parametrize("seed", range(5))
def test_the_sum_of_squares_is_the_error_of_the_outputs(seed: int, damp: float) -> None:
    weight, _, hessian = random_layer(seed)
    grid = fit(weight, 3, symmetric=False)
    new, errors = sweep(
        weight,
        inverse_factor(hessian, damp),
        lambda _, __: lambda ___, column: grid.nearest(column[:, None])[:, 0],
        segment=16,
    )
    assert float(errors.square().sum()) == pytest.approx(damage(weight, new, damped(hessian, damp)), rel=1e-12)


@pytest.mark.parametrize("act_order", [True, False])
@pytest.mark.parametrize("static", [True, False])
@pytest.mark.parametrize("group", [0, 4, 8])
def test_block_size_changes_nothing(act_order: bool, static: bool, group: int) -> None:
    weight, _, hessian = random_layer(6)
    options: dict[str, Any] = {"bits": 3, "group": group, "act_order": act_order, "static_groups": static}
    first, *others = (quantized(weight, hessian, block=block, **options) for block in (1, 7, 5, 128))
    for other in others:
        assert torch.equal(first.codes, other.codes)
        assert torch.equal(first.scales, other.scales)
        assert torch.equal(first.zeros, other.zeros)


@pytest.mark.parametrize("act_order", [True, False])
def test_unrelated_inputs_make_it_rounding_to_nearest(act_order: bool) -> None:
    weight, _, _ = random_layer(7)
    loud = (torch.rand(16, dtype=torch.float64) + 0.1).diag()
    made, plain = quantized(weight, loud, bits=4, group=4, act_order=act_order), rtn(weight, bits=4, group=4)
    assert isinstance(plain, Quantized)
    assert torch.equal(made.codes, plain.codes)
    assert torch.equal(made.dense(), plain.dense())


@pytest.mark.parametrize("options", [{}, {"act_order": False}, {"static_groups": False}, {"clip": True, "group": 0}])
def test_no_layer_comes_out_worse_than_rounded(options: dict[str, Any]) -> None:
    ratios = []
    for seed in range(40):
        weight, _, hessian = random_layer(seed, rows=24, columns=32, tokens=128)
        given = {"bits": 3, "group": 16, "damp": 1e-4} | options
        plain = rtn(weight, bits=3, group=given["group"])
        assert isinstance(plain, Quantized)
        made = quantized(weight, hessian, **given)
        ratios.append(damage(weight, made.dense(), hessian) / damage(weight, plain.dense(), hessian))
    assert max(ratios) <= 1 + 1e-9
    assert sorted(ratios)[20] < 0.6


def test_no_row_comes_out_worse_than_rounded_to_the_same_grids() -> None:
    weight, _, hessian = random_layer(3, rows=200, columns=32, tokens=128)
    made, plain = quantized(weight, hessian, bits=2, group=16), rtn(weight, bits=2, group=16)
    assert isinstance(plain, Quantized)
    for row in range(200):
        one = slice(row, row + 1)
        rounded = damage(weight[one], plain.dense()[one], hessian)
        assert damage(weight[one], made.dense()[one], hessian) <= rounded * (1 + 1e-6)


def test_sorted_columns_find_their_places_again() -> None:
    weight, _, hessian = random_layer(8)
    scattered = quantized(weight, hessian, bits=8, group=4, act_order=True, static_groups=False)
    static = quantized(weight, hessian, bits=8, group=4, act_order=True, static_groups=True)
    assert scattered.groups is not None
    assert sorted(scattered.groups.tolist()) == sorted(list(range(4)) * 4)
    assert static.groups is None
    for made in (scattered, static):
        assert (made.dense() - weight).abs().max() < 0.1
    loudest = int(hessian.diagonal().argmax())
    assert scattered.groups[loudest] == 0


def test_silent_features_are_rounded_and_repair_nothing() -> None:
    weight, _, hessian = random_layer(9)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    made = quantized(weight, hessian, bits=4, group=4, damp=0.0).dense()
    plain = rtn(weight, bits=4, group=4)
    assert isinstance(plain, Quantized)
    assert torch.equal(made[:, 5], plain.dense()[:, 5])


def test_a_singular_hessian_is_damped_and_it_is_said() -> None:
    weight, inputs, _ = random_layer(10, tokens=3)
    with pytest.warns(Damped, match="damped by"):
        made = quantized(weight, inputs.T @ inputs / 3 - 1e-9 * torch.eye(16), bits=4, group=4, damp=0.0)
    assert torch.isfinite(made.dense()).all()
    plain = rtn(weight, bits=4, group=4)
    assert isinstance(plain, Quantized)
    assert not torch.equal(made.codes, plain.codes)  # the identity in place of H would give rounding to nearest


def test_options_that_do_not_fit_or_do_nothing() -> None:
    weight, _, hessian = random_layer(11)
    assert gptq(weight, hessian, bits=16) is weight
    with pytest.raises(UsageError, match="groups of 5"):
        gptq(weight, hessian, group=5)
