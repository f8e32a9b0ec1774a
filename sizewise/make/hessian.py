"""Factors of a layer's Hessian H = mean of x xT: the metric in which an error of the weights becomes one of the output.

With too few or too similar calibration tokens H is singular. It is then damped: a share of its mean diagonal is added
to the diagonal, ten times more until it can be factored, and a `Damped` warning says how much that was. It is never
replaced by the identity.
"""

import warnings
from typing import TYPE_CHECKING

from sizewise.core.errors import BadModel

if TYPE_CHECKING:
    from torch import Tensor


class Damped(UserWarning):
    """More was added to the diagonal of a Hessian than was asked for."""


def damped(hessian: "Tensor", damp: float) -> "Tensor":
    """H + damp * mean(diag H) * I in float64. Features that never fired get a 1, so that they stand for themselves.

    Args:
        hessian: (in, in), symmetric.
        damp: share of the mean of the diagonal.

    Raises:
        BadModel: an entry is not a finite number.
    """
    import torch

    if not all(bool(torch.isfinite(end)) for end in torch.aminmax(hessian)):
        raise BadModel("the calibration activations are not finite numbers; the model or the text is damaged")
    matrix = hessian.to(torch.float64, copy=True)
    diagonal = matrix.diagonal()
    mean = float(diagonal.mean())
    diagonal += damp * mean
    diagonal[diagonal == 0] = 1.0
    return matrix


def cholesky(hessian: "Tensor", damp: float = 0.0) -> "Tensor":
    """Lower triangular L with L LT = H, damped as little as needed.

    Args:
        hessian: (in, in), symmetric.
        damp: share of the mean diagonal to add in any case.

    Returns:
        (in, in) float64.

    Raises:
        BadModel: H is not finite, or no damping makes it positive definite (then it is no mean of squares).
    """
    import torch

    strength, failed = damp, torch.empty((), dtype=torch.int32, device=hessian.device)
    while strength <= 10.0:
        factor = damped(hessian, strength).T  # by columns, as LAPACK has it: factored in place
        torch.linalg.cholesky_ex(factor, out=(factor, failed))
        if not int(failed) and float(factor.diagonal().min()) > 0:
            if strength > damp:
                warnings.warn(f"Hessian not positive definite: damped by {strength:g} of its diagonal", Damped, 2)
            return factor
        strength = max(strength * 10, 1e-8)
    raise BadModel("a Hessian has negative directions that no damping removes: its calibration statistics are damaged")


def inverse_factor(hessian: "Tensor", damp: float = 0.01) -> "Tensor":
    """Upper triangular U with UT U = H^-1, the matrix that GPTQ and SparseGPT spread errors with.

    Seen from its last feature to its first, H = L LT, and U is L^-1 seen so: one factorization and one triangular
    inverse, where factoring H, inverting it and factoring again would lose digits twice. Both are done in place.

    Args:
        hessian: (in, in), symmetric.
        damp: share of the mean diagonal to add.

    Returns:
        (in, in) float64.
    """
    import torch

    lower = cholesky(hessian.flip(0, 1), damp)
    inverse = torch.eye(len(lower), dtype=lower.dtype, device=lower.device).T
    torch.linalg.solve_triangular(lower, inverse, upper=False, out=inverse)
    del lower
    return inverse.flip(0, 1)


def output_error(error: "Tensor", hessian: "Tensor") -> float:
    """tr(E H ET): mean square of the change of the layer's output, summed over its features.

    Args:
        error: (out, in), what was taken from the weights.
        hessian: (in, in).
    """
    return float(((error @ hessian.to(error.dtype)) * error).sum())
