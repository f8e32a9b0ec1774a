"""Oracles of rounding to nearest, HQQ, codebooks and LLM.int8()."""

from itertools import combinations

import pytest
import torch
from layers_at_random import damage, random_layer
from torch import Tensor

from sizewise.make.grids import fit, storable
from sizewise.make.methods.hqq import hqq, refine
from sizewise.make.methods.int8 import int8
from sizewise.make.methods.lut import lut
from sizewise.make.methods.rtn import rtn
from sizewise.make.packed import Codebook, Int8, Packed


def dense(made: Tensor | Packed) -> Tensor:
    return made if isinstance(made, Tensor) else made.dense()


def test_rounding_by_hand() -> None:
    weight = torch.tensor([[0.0, 1.0, 2.0, 3.0, -8.0, -4.0, 0.0, 7.0]])
    made = rtn(weight, bits=2, group=4)
    assert not isinstance(made, Tensor)
    assert made.codes[0, :4].tolist() == [0, 1, 2, 3]
    assert made.dense()[0, :4].tolist() == [0.0, 1.0, 2.0, 3.0]
    assert made.scales[0, 1] == pytest.approx(5.0, rel=2**-7)
    assert made.bits == 2


def test_more_bits_smaller_groups_and_clipping_do_no_harm() -> None:
    weight = random_layer(0)[0].float()
    errors = [float((dense(rtn(weight, bits=bits, group=8)) - weight).norm()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True)
    assert (dense(rtn(weight, bits=4, group=0)) - weight).norm() > errors[2]
    clipped = dense(rtn(weight, bits=2, group=8, clip=True))
    assert (clipped - weight).norm() < errors[0]
    assert rtn(weight, bits=9) is weight
    assert hqq(weight, bits=16) is weight


def test_hqq_keeps_the_best_of_every_group() -> None:
    draw = torch.Generator().manual_seed(1)
    weight = torch.randn(32, 4, 16, generator=draw) ** 3  # heavy tails
    grid = fit(weight, 3, symmetric=False)

    def cost(zero: Tensor) -> Tensor:
        codes = (weight / grid.scale + zero).round().clamp(0, 7)
        return (weight - (codes - zero) * grid.scale).abs().pow(0.7).sum(-1)

    refined = refine(weight, grid, 0.7, 10.0, 1.01, 20)
    before, after = cost(grid.zero), cost(refined.zero)
    assert (after <= before).all()
    assert after.sum() < before.sum()
    longer = refine(weight, grid, 0.7, 10.0, 1.01, 200)
    assert (cost(longer.zero) <= after).all()
    assert torch.equal(refine(weight, grid, 0.7, 10.0, 1.01, 0).zero, grid.zero)


def best_codebook(values: list[float], masses: list[float], size: int) -> float:
    """Brute force: the least weighted error of any cut of the sorted values into `size` runs."""
    pairs = sorted(zip(values, masses, strict=True))
    least = float("inf")
    for cuts in combinations(range(1, len(pairs)), size - 1):
        total = 0.0
        for first, last in zip((0, *cuts), (*cuts, len(pairs)), strict=True):
            mass = sum(weight for _, weight in pairs[first:last])
            mean = sum(value * weight for value, weight in pairs[first:last]) / mass
            total += sum(weight * (value - mean) ** 2 for value, weight in pairs[first:last])
        least = min(least, total)
    return least


def test_codebooks_come_near_the_best_possible_one() -> None:
    draw = torch.Generator().manual_seed(2)
    weight, norm = torch.randn(20, 10, generator=draw), torch.rand(10, generator=draw) + 0.1
    made = dense(lut(weight, norm, bits=2))
    error = ((made - weight).square() * norm.square()).sum(1)
    best = torch.tensor([best_codebook(row.tolist(), norm.square().tolist(), 4) for row in weight])
    assert (error >= best * (1 - 1e-4)).all()
    assert (error / best).median() < 1.2
    exact = dense(lut(weight.round(), norm, bits=4))
    assert torch.equal(exact, weight.round())  # no more values than entries: nothing is lost


def test_codebooks_beat_even_grids_on_every_row_and_listen_to_loud_inputs() -> None:
    weight, _, hessian = random_layer(3, columns=64)
    norm = hessian.diagonal().sqrt()
    even, free = dense(lut(weight, norm, bits=3, steps=0)), lut(weight, norm, bits=3)
    assert isinstance(free, Codebook)
    cost = [((made - weight).square() * norm.square()).sum(1) for made in (even, free.dense())]
    assert (cost[1] <= cost[0] * (1 + 1e-6)).all()
    assert (free.table.diff(dim=1) >= 0).all()
    assert free.size_bits == 12 * 64 * 3 + 12 * 8 * 16
    unheard = norm.clone()
    unheard[7] = 0.0
    without = dense(lut(weight, unheard, bits=3))
    others = torch.arange(64) != 7
    assert ((without - weight)[:, others] * norm[others]).square().sum() <= (cost[1].sum()) * 1.05
    assert torch.isfinite(dense(lut(weight, torch.zeros(64), bits=3))).all()


def test_outlier_columns_stay_and_the_ends_of_the_threshold_are_known() -> None:
    weight, inputs, hessian = random_layer(4)
    weight[:, 3] *= 100  # a planted column that would set every scale
    loudest = inputs.abs().amax(0)
    loudest[3] = 50.0
    alone = loudest.masked_fill(torch.arange(16) != 3, 1.0)
    assert torch.equal(dense(int8(weight, loudest, threshold=0.0)), weight)
    plain, kept = int8(weight, alone, threshold=1e9), int8(weight, alone, threshold=6.0)
    assert isinstance(kept, Int8)
    assert isinstance(plain, Int8)
    assert kept.kept.tolist() == [3]
    assert plain.kept.numel() == 0
    scale = storable(weight.abs().amax(1, keepdim=True) / 127)
    assert torch.allclose(plain.dense(), ((weight / scale).round() * scale).float(), rtol=1e-5)
    assert damage(weight, kept.dense(), hessian) < 1e-2 * damage(weight, plain.dense(), hessian)
    assert torch.isfinite(dense(int8(torch.zeros(2, 16), loudest))).all()
