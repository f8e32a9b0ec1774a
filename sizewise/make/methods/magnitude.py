"""Magnitude pruning: drop the smallest weights.

The sparse row of layer-wise compression with every input taken to be equally loud and unrelated to the others (H = I).
It needs no data, and it is the floor that anything cleverer must clear (Han et al. 2015, arXiv:1506.02626).
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.method import weight_method
from sizewise.make.sparsity import Scope, prune

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def magnitude(
    weight: "Tensor",
    *,
    sparsity: Annotated[float, Range(0, 1), Search(0.3, 0.5, 0.6)] = 0.5,
    pattern: str = "",
    scope: Scope = "matrix",
) -> "Tensor":
    """Prune: zero the smallest weights of each matrix.

    Args:
        weight: (out, in).
        sparsity: share of the weights set to zero; 0 returns the matrix untouched, 1 returns zeros.
        pattern: n:m, keep n of every m neighbours in a row, in place of a share; for example 2:4.
        scope: compare weights within the whole matrix, or within each row.

    Returns:
        (out, in), in which floor(sparsity * number) entries have been set to zero.

    Raises:
        UsageError: the pattern is none, or its m does not divide the rows.
    """
    return prune(weight, weight.abs(), sparsity, pattern, scope)
