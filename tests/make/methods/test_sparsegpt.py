"""Oracles of SparseGPT: the best repair of a row for a given mask is a least-squares problem with a closed form."""

import torch
from layers_at_random import damage, random_layer

from sizewise.make.methods.sparsegpt import sparsegpt


def test_unrelated_inputs_leave_nothing_to_repair() -> None:
    weight, _, _ = random_layer(0)
    loud = torch.rand(16, dtype=torch.float64) + 0.1
    pruned = sparsegpt(weight, loud.diag(), sparsity=0.5, damp=0.0)
    kept = pruned != 0
    assert torch.allclose(pruned[kept], weight[kept])
    score = weight.square() * loud
    assert score[kept].min() >= score[~kept].max()


def test_the_last_weights_repair_as_least_squares_would() -> None:
    """With only the first column pruned, the rest of the row is the best there is: W - w_0 U_0 / U_00."""
    weight, _, hessian = random_layer(1)
    weight[:, 0] *= 1e-6  # so that the first column is what goes
    pruned = sparsegpt(weight, hessian, sparsity=1 / 16, block=16, damp=0.0)
    assert (pruned[:, 0] == 0).all()
    rest = weight[:, 1:] + torch.linalg.solve(hessian[1:, 1:], hessian[1:, :1] @ weight[:, :1].T).T
    assert torch.allclose(pruned[:, 1:], rest, rtol=1e-8, atol=1e-12)


def test_repair_helps_and_small_blocks_choose_anew() -> None:
    weight, _, hessian = random_layer(2, rows=24, columns=32, tokens=256)
    pruned = sparsegpt(weight, hessian, sparsity=0.5, block=8)
    masked = weight.masked_fill(pruned == 0, 0.0)
    assert damage(weight, pruned, hessian) < 0.9 * damage(weight, masked, hessian)
    for start in range(0, 32, 8):  # every block gives its share
        assert int((pruned[:, start : start + 8] == 0).sum()) == 96


def test_silent_features_are_no_harm() -> None:
    weight, _, hessian = random_layer(3)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    pruned = sparsegpt(weight, hessian, sparsity=0.5)
    assert torch.isfinite(pruned).all()
    assert int((pruned == 0).sum()) == 96
