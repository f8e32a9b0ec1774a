"""Oracles of magnitude, Wanda and Optimal Brain Damage: the answer is known without the method."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from layers_at_random import damage, random_layer
from torch import Tensor

from sizewise.core.errors import UsageError
from sizewise.make.methods.magnitude import magnitude
from sizewise.make.methods.obd import obd
from sizewise.make.methods.sparsegpt import sparsegpt
from sizewise.make.methods.wanda import wanda


def run(method: Callable[..., Tensor], weight: Tensor, hessian: Tensor, **options: Any) -> Tensor:
    given = {magnitude: (), wanda: (hessian.diagonal().sqrt(),), obd: (weight.abs() + 1,), sparsegpt: (hessian,)}
    return method(weight, *given[method], **options)


METHODS = [magnitude, wanda, obd, sparsegpt]


@pytest.mark.parametrize("method", METHODS)
def test_off_is_identity_full_is_zero_and_numbers_are_exact(method: Callable[..., Tensor]) -> None:
    weight, _, hessian = random_layer(0)
    weight[3] = 0.5  # ties
    weight[0, 0] = -0.0
    assert torch.equal(run(method, weight, hessian, sparsity=0.0).view(torch.int64), weight.view(torch.int64))
    assert run(method, weight, hessian, sparsity=1.0).count_nonzero() == 0
    full = weight + 5.0  # no zero to begin with
    for sparsity in (0.01, 0.29, 0.5, 0.9):
        pruned = run(method, full, hessian, sparsity=sparsity)
        exact = 12 * int(sparsity * 16 + 1e-9) if method is wanda else int(sparsity * 192 + 1e-9)
        assert int((pruned == 0).sum()) == exact


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (4, 8), (1, 4), (1, 16)])
def test_n_of_m_holds_in_every_group(method: Callable[..., Tensor], n: int, m: int) -> None:
    weight, _, hessian = random_layer(1)
    pruned = run(method, weight, hessian, pattern=f"{n}:{m}")
    assert ((pruned.reshape(-1, m) != 0).sum(1) == n).all()
    with pytest.raises(UsageError, match="5 does not divide rows of 16"):
        run(method, weight, hessian, pattern="2:5")


@pytest.mark.parametrize("method", [magnitude, wanda, obd])
def test_masks_are_nested(method: Callable[..., Tensor]) -> None:
    weight, _, hessian = random_layer(2)
    zero = torch.zeros_like(weight, dtype=torch.bool)
    for step in range(11):
        now = run(method, weight, hessian, sparsity=step / 10) == 0
        assert not (zero & ~now).any()
        zero = now


def test_quiet_inputs_go_first() -> None:
    weight = torch.tensor([[1.0, 2.0, 3.0, 4.0]])
    loud = torch.tensor([100.0, 1.0, 1.0, 1.0])
    assert wanda(weight, loud, sparsity=0.5).tolist() == [[1.0, 0.0, 0.0, 4.0]]


def test_equally_loud_inputs_make_it_magnitude_by_row() -> None:
    weight, _, _ = random_layer(3)
    by_row = magnitude(weight, sparsity=0.4, scope="row")
    assert torch.equal(wanda(weight, torch.full((16,), 2.5), sparsity=0.4), by_row)
    assert not torch.equal(magnitude(weight, sparsity=0.4), by_row)


def test_no_other_mask_of_the_same_size_hurts_a_row_less() -> None:
    """Brute force over all masks, on inputs whose features are independent (where the diagonal is all there is)."""
    weight, norm = torch.randn(1, 6, generator=torch.Generator().manual_seed(1)), torch.rand(6) + 0.1
    cost = (weight * norm).square()[0]
    best = min(cost[list(mask)].sum() for mask in torch.combinations(torch.arange(6), 3).tolist())
    assert torch.isclose(cost[(wanda(weight, norm, sparsity=0.5) == 0)[0]].sum(), best)


def test_on_a_quadratic_loss_the_predicted_rise_is_the_real_one() -> None:
    """At the minimum w of L(v) = sum h (v - w)^2 / 2, OBD's saliency is what dropping a weight costs."""
    draw = torch.Generator().manual_seed(4)
    weight, curvature = torch.randn(3, 4, generator=draw), torch.rand(3, 4, generator=draw) + 0.1

    def loss(values: Tensor) -> float:
        return float((curvature * (values - weight).square()).sum() / 2)

    pruned = obd(weight, curvature.sqrt(), sparsity=0.25)
    single = sorted(loss(weight.flatten().index_fill(0, torch.tensor([at]), 0.0).reshape(3, 4)) for at in range(12))
    assert loss(pruned) == pytest.approx(sum(single[:3]))


def test_better_knowledge_of_the_inputs_makes_less_damage() -> None:
    """SparseGPT <= Wanda <= magnitude at 50 % on layers with related inputs: nearly always, so a count and no rule."""
    wins = [0, 0]
    for seed in range(60):
        weight, _, hessian = random_layer(seed, rows=24, columns=32, tokens=256)
        hurt = [damage(weight, run(method, weight, hessian), hessian) for method in (magnitude, wanda, sparsegpt)]
        wins[0] += hurt[1] <= hurt[0]
        wins[1] += hurt[2] <= hurt[1]
    assert min(wins) >= 57
