"""Oracles of the low-rank methods: singular values say what a cut costs."""

import pytest
import torch
from layers_at_random import damage, random_layer

from sizewise.core.errors import UsageError
from sizewise.make.hessian import Damped
from sizewise.make.lowrank import rank_for, truncate
from sizewise.make.methods.asvd import asvd
from sizewise.make.methods.svd import svd
from sizewise.make.methods.svd_llm import svd_llm
from sizewise.make.packed import Factors


def factors(made: object) -> Factors:
    assert isinstance(made, Factors)
    return made


def test_full_rank_is_exact_and_less_costs_the_rest_of_the_values() -> None:
    weight, _, _ = random_layer(0)
    assert torch.allclose(truncate(weight, 12).dense(), weight, atol=1e-12)
    values = torch.linalg.svdvals(weight)
    for rank in (1, 3, 6):
        made = factors(svd(weight, rank=rank))
        assert (made.left.shape, made.right.shape) == ((12, rank), (rank, 16))
        assert float((made.dense() - weight).norm()) == pytest.approx(float(values[rank:].norm()))


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_whitened_the_cut_costs_the_outputs_what_the_values_say(rank: int) -> None:
    weight, _, hessian = random_layer(1)
    values = torch.linalg.svdvals(weight @ torch.linalg.cholesky(hessian))
    made = factors(svd_llm(weight, hessian, rank=rank)).dense()
    assert damage(weight, made, hessian) == pytest.approx(float(values[rank:].square().sum()), rel=1e-9)


def test_better_knowledge_of_the_inputs_makes_less_damage() -> None:
    for seed in range(20):
        weight, inputs, hessian = random_layer(seed, rows=24, columns=32, tokens=256)
        hurt = [
            damage(weight, factors(made).dense(), hessian)
            for made in (
                svd_llm(weight, hessian, keep=0.6),
                asvd(weight, inputs.abs().mean(0), keep=0.6),
                svd(weight, keep=0.6),
            )
        ]
        assert hurt == sorted(hurt)


def test_without_loudness_asvd_is_svd() -> None:
    weight, inputs, _ = random_layer(2)
    mean = inputs.abs().mean(0)
    plain = factors(svd(weight, rank=4)).dense()
    assert torch.allclose(factors(asvd(weight, mean, rank=4, alpha=0.0)).dense(), plain)
    assert not torch.allclose(factors(asvd(weight, mean, rank=4)).dense(), plain, atol=1e-3)
    mean[3] = 0.0
    assert torch.isfinite(factors(asvd(weight, mean, rank=4)).dense()).all()


def test_ranks_that_save_nothing_are_refused() -> None:
    assert rank_for((24, 32), 0.99, None) == 13
    assert 13 * (24 + 32) < 24 * 32 <= 14 * (24 + 32)
    with pytest.raises(UsageError, match="rank 14 saves nothing in a matrix of 24 x 32: at most 13 does"):
        rank_for((24, 32), 0.5, 14)
    with pytest.raises(UsageError, match="saves nothing"):
        rank_for((16, 16), 1.0, None)  # 8 of 16 is exactly as much as before
    with pytest.raises(UsageError, match="leaves no rank"):
        rank_for((24, 32), 0.01, None)
    weight, inputs, hessian = random_layer(3)
    assert svd(weight, keep=1.0) is weight
    assert asvd(weight, inputs.abs().mean(0), keep=1.0) is weight
    assert svd_llm(weight, hessian, keep=1.0) is weight


def test_more_rank_is_no_worse_and_a_singular_hessian_is_damped_aloud() -> None:
    weight, inputs, hessian = random_layer(4)
    hurt = [damage(weight, factors(svd_llm(weight, hessian, rank=rank)).dense(), hessian) for rank in range(1, 7)]
    assert hurt == sorted(hurt, reverse=True)
    few = inputs[:3].T @ inputs[:3] / 3 - 1e-9 * torch.eye(16)
    with pytest.warns(Damped):
        made = factors(svd_llm(weight, few, rank=3)).dense()
    assert damage(weight, made, few) < 1e-3 * damage(weight, torch.zeros_like(weight), few)
