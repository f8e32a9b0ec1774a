"""Optimal Brain Damage: drop the weights that the loss would miss least (LeCun, Denker and Solla 1990).

To second order, with all but the diagonal of the loss's curvature left out and the model trained to a minimum, setting
weight w to zero raises the loss by h * w^2 / 2. The curvature h is estimated by the mean square of the loss's gradient
(the empirical Fisher information), which for a log-likelihood is its expectation at the minimum.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.method import weight_method
from sizewise.make.sparsity import Scope, prune

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def obd(
    weight: "Tensor",
    gradient: "Tensor",
    *,
    sparsity: Annotated[float, Range(0, 1), Search(0.3, 0.5, 0.6)] = 0.5,
    pattern: str = "",
    scope: Scope = "matrix",
) -> "Tensor":
    """Prune: zero the weights whose loss raises the model's own loss least, from its gradients.

    Args:
        weight: (out, in).
        gradient: (out, in), root of the mean square of the loss's gradient: the root of h.
        sparsity: share of the weights set to zero; 0 returns the matrix untouched, 1 returns zeros.
        pattern: n:m, keep n of every m neighbours in a row, in place of a share; for example 2:4.
        scope: compare weights within the whole matrix, or within each row.

    Returns:
        (out, in), in which floor(sparsity * number) entries have been set to zero.

    Raises:
        UsageError: the pattern is none, or its m does not divide the rows.
    """
    return prune(weight, (weight * gradient).square() / 2, sparsity, pattern, scope)
