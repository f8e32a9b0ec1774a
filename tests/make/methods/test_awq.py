"""Oracles of AWQ: it contains plain rounding, scaling cancels, clipping is judged by the outputs."""

import pytest
import torch
from layers_at_random import damage, random_layer

from sizewise.make.grids import fit
from sizewise.make.methods.awq import awq, clipped
from sizewise.make.methods.rtn import rtn
from sizewise.make.packed import Quantized


def outputs_error(weights: list[torch.Tensor], made: tuple[object, ...], scale: torch.Tensor, h: torch.Tensor) -> float:
    total = 0.0
    for weight, part in zip(weights, made, strict=True):
        assert isinstance(part, Quantized)
        total += damage(weight, part.dense() / scale, h)
    return total


@pytest.mark.parametrize("seed", range(8))
def test_search_never_loses_to_rounding(seed: int) -> None:
    weight, inputs, hessian = random_layer(seed, columns=32, tokens=128)
    other = random_layer(seed + 100, rows=4, columns=32)[0]
    weights = [weight, other]
    mean = inputs.abs().mean(0)
    found = awq(weights, ("gate", "up"), mean, hessian, True, bits=3, group=16, clip=False)
    plain = tuple(rtn(matrix, bits=3, group=16) for matrix in weights)
    ones = torch.ones(32)
    assert outputs_error(weights, found.parts, found.scale, hessian) <= outputs_error(weights, plain, ones, hessian) * (
        1 + 1e-6
    )


def test_a_loud_input_is_protected() -> None:
    weight, inputs, _ = random_layer(1, columns=32, tokens=512)
    inputs[:, 5] *= 60
    hessian = inputs.T @ inputs / len(inputs)
    found = awq([weight], ("up",), inputs.abs().mean(0), hessian, True, bits=3, group=32, clip=False)
    plain = rtn(weight, bits=3, group=32)
    assert found.scale.argmax() == 5
    assert outputs_error([weight], found.parts, found.scale, hessian) < 0.5 * outputs_error(
        [weight], (plain,), torch.ones(32), hessian
    )


def test_where_nothing_can_absorb_the_scale_it_is_one() -> None:
    weight, inputs, hessian = random_layer(2)
    made = awq([weight], ("o",), inputs.abs().mean(0), hessian, False, bits=4, group=4, clip=False)
    plain = rtn(weight, bits=4, group=4)
    assert isinstance(plain, Quantized)
    assert isinstance(made.parts[0], Quantized)
    assert torch.equal(made.scale, torch.ones(16))
    assert torch.equal(made.parts[0].dense(), plain.dense())


def test_clipping_is_no_worse_for_any_group_and_spares_queries_and_keys() -> None:
    weight, inputs, hessian = random_layer(3, rows=24, columns=32, tokens=256)
    weight[::3, 4] *= 8
    grouped = weight.reshape(24, 4, 8)
    blocks = [hessian[at : at + 8, at : at + 8] for at in range(0, 32, 8)]

    def cost(rounded: torch.Tensor) -> torch.Tensor:
        error = grouped - rounded
        return torch.stack([((error[:, at] @ block) * error[:, at]).sum(1) for at, block in enumerate(blocks)], 1)

    narrow, full = clipped(grouped, hessian, 2, symmetric=False), fit(grouped, 2, symmetric=False)
    assert (cost(narrow.nearest(grouped)) <= cost(full.nearest(grouped))).all()
    assert cost(narrow.nearest(grouped)).sum() < 0.9 * cost(full.nearest(grouped)).sum()
    mean = inputs.abs().mean(0)
    q, v = awq([weight, weight], ("q", "v"), mean, hessian, False, bits=2, group=8).parts
    assert isinstance(q, Quantized)
    assert isinstance(v, Quantized)
    assert torch.equal(q.dense(), full.nearest(grouped).reshape(24, 32).float())
    assert not torch.equal(q.dense(), v.dense())


def test_off_leaves_everything() -> None:
    weight, inputs, hessian = random_layer(4)
    made = awq([weight], ("up",), inputs.abs().mean(0), hessian, True, bits=16)
    assert made.parts == (weight,)
    assert torch.equal(made.scale, torch.ones(16))
