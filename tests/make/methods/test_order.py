"""The order of steps, and features that say the same."""

from collections.abc import Callable

import pytest
import torch
from layers_at_random import damage, random_layer
from torch import Tensor

from sizewise.make.methods.magnitude import magnitude
from sizewise.make.methods.rtn import rtn
from sizewise.make.methods.sparsegpt import sparsegpt
from sizewise.make.methods.wanda import wanda
from sizewise.make.packed import Quantized


def rounded(weight: Tensor, bits: int) -> Tensor:
    made = rtn(weight, bits=bits, group=16)
    assert isinstance(made, Quantized)
    return made.dense().double()


def prune_by(method: str, hessian: Tensor) -> Callable[[Tensor], Tensor]:
    if method == "magnitude":
        return lambda weight: magnitude(weight, sparsity=0.5)
    return lambda weight: wanda(weight, hessian.diagonal().sqrt(), sparsity=0.5)


@pytest.mark.parametrize("bits", [3, 4])
@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_pruned_then_rounded_is_no_worse_than_rounded_then_pruned(method: str, bits: int) -> None:
    """Rounding first makes small weights equal, so that pruning can no longer tell them apart."""
    gains, wins = [], 0
    for seed in range(60):
        weight, _, hessian = random_layer(seed, rows=24, columns=32, tokens=256)
        prune = prune_by(method, hessian)
        first, second = rounded(prune(weight), bits), prune(rounded(weight, bits))
        assert int((first == 0).sum()) >= int((second == 0).sum()) >= 24 * 16  # neither order loses a zero
        one, other = damage(weight, first, hessian), damage(weight, second, hessian)
        wins += one <= other
        gains.append(one / other)
    assert sorted(gains)[30] <= 1.0
    assert wins >= 30


def test_of_two_equal_features_one_is_merged_into_the_other() -> None:
    """Repair is a merge of weights: where two features always agree, pruning one of them costs nothing."""
    weight, inputs, _ = random_layer(5)
    inputs[:, 11] = inputs[:, 2]
    hessian = inputs.T @ inputs / len(inputs)
    pruned = sparsegpt(weight, hessian, sparsity=1 / 16, block=16, damp=1e-10)
    assert (pruned[:, 2] == 0).all()
    torch.testing.assert_close(pruned[:, 11], weight[:, 2] + weight[:, 11], rtol=1e-5, atol=1e-5)
    others = [at for at in range(16) if at not in (2, 11)]
    torch.testing.assert_close(pruned[:, others], weight[:, others], rtol=1e-5, atol=1e-5)
    assert damage(weight, pruned, hessian) < 1e-8 * damage(weight, weight.masked_fill(pruned == 0, 0.0), hessian)
