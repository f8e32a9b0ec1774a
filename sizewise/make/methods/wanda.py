"""Wanda: drop the weights that are small *and* listen to quiet inputs (Sun et al. 2023, arXiv:2306.11695).

A linear layer computes y = W x. Zeroing W[i, j] changes y[i] by W[i, j] * x[j], so over the calibration tokens the
damage is |W[i, j]| * ||X_j||: the magnitude, weighted by how loud input feature j is. That is the sparse row of
layer-wise compression with the curvature kept to its diagonal: no other weight is moved to make up for the loss.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.method import weight_method
from sizewise.make.sparsity import Scope, prune

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def wanda(
    weight: "Tensor",
    input_norm: "Tensor",
    *,
    sparsity: Annotated[float, Range(0, 1), Search(0.3, 0.5, 0.6)] = 0.5,
    pattern: str = "",
    scope: Scope = "row",
) -> "Tensor":
    """Prune: zero the weights whose loss changes each output least, by size of weight and loudness of input.

    Args:
        weight: (out, in).
        input_norm: (in,), root mean square of each input feature over the calibration tokens.
        sparsity: share of the weights set to zero; 0 returns the matrix untouched, 1 returns zeros.
        pattern: n:m, keep n of every m neighbours in a row, in place of a share; for example 2:4.
        scope: compare weights within each row, as in the paper, or within the whole matrix.

    Returns:
        (out, in), in which floor(sparsity * number) entries of every row (or of the matrix) have been set to zero.

    Raises:
        UsageError: the pattern is none, or its m does not divide the rows.
    """
    return prune(weight, weight.abs() * input_norm, sparsity, pattern, scope)
