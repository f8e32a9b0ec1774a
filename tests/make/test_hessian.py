"""Factors of Hessians, and damping that is never silent."""

import warnings

import pytest
import torch
from layers_at_random import damage, random_layer

from sizewise.core.errors import BadModel
from sizewise.make.hessian import Damped, cholesky, inverse_factor, output_error


def test_the_factor_of_the_inverse() -> None:
    _, _, hessian = random_layer(0)
    factor = inverse_factor(hessian, damp=0.0)
    assert torch.equal(factor, factor.triu())
    assert torch.allclose(factor.T @ factor, torch.linalg.inv(hessian), rtol=1e-9, atol=1e-12)


def test_damping_adds_its_share_of_the_mean_diagonal() -> None:
    _, _, hessian = random_layer(1)
    root = cholesky(hessian, damp=0.5)
    expected = hessian + 0.5 * hessian.diagonal().mean() * torch.eye(16, dtype=torch.float64)
    assert torch.allclose(root @ root.T, expected)


def test_too_few_tokens_are_damped_and_it_is_said() -> None:
    _, inputs, _ = random_layer(2, tokens=3)
    hessian = inputs.T @ inputs / 3
    with pytest.warns(Damped, match="not positive definite: damped by 1e-0"):
        root = cholesky(hessian - 1e-9 * torch.eye(16, dtype=torch.float64))
    assert (root @ root.T - hessian).abs().max() < 1e-4 * hessian.abs().max()  # near H, far from I
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cholesky(hessian, damp=0.01)  # as much as was asked for: nothing to say


def test_features_that_never_fired_stand_alone() -> None:
    _, _, hessian = random_layer(3)
    hessian[5], hessian[:, 5] = 0.0, 0.0
    factor = inverse_factor(hessian, damp=0.0)
    assert factor[5, 5] == 1.0
    assert factor[5].count_nonzero() == factor[:, 5].count_nonzero() == 1


def test_what_cannot_be_repaired_is_refused() -> None:
    _, _, hessian = random_layer(4)
    with pytest.raises(BadModel, match="not finite"):
        cholesky(hessian.masked_fill(hessian > 3, torch.nan))
    with pytest.raises(BadModel, match="no damping removes"):
        cholesky(-hessian)


def test_output_error_is_what_the_tokens_say() -> None:
    weight, inputs, hessian = random_layer(5)
    new = weight.round()
    measured = ((inputs @ (weight - new).T) ** 2).sum(1).mean()
    assert output_error(weight - new, hessian) == pytest.approx(float(measured))
    assert damage(weight, new, hessian) == pytest.approx(float(measured))
