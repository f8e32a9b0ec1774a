"""ASVD: a thin product that is near where the inputs are loud (Yuan et al. 2023, arXiv:2312.05821).

With D = diag(mean |x|^alpha), factor W D instead of W and divide D out of the right factor. The diagonal is all that is
kept of the curvature.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.lowrank import rank_for, truncate
from sizewise.make.method import weight_method
from sizewise.make.packed import Factors

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def asvd(
    weight: "Tensor",
    abs_mean: "Tensor",
    *,
    keep: Annotated[float, Range(0, 1), Search(0.6, 0.8, 0.9)] = 0.8,
    rank: Annotated[int | None, Range(1)] = None,
    alpha: Annotated[float, Range(0, 2)] = 0.5,
) -> "Tensor | Factors":
    """Factorize: two thin matrices whose product is near where the inputs are loud.

    Args:
        weight: (out, in).
        abs_mean: (in,), mean |x| of each input feature.
        keep: share of the matrix's numbers that its two factors have; 1 leaves it as it is.
        rank: the rank itself, in place of a share.
        alpha: how much loudness counts; 0 is plain SVD.

    Raises:
        UsageError: that rank saves nothing.
    """
    if keep == 1 and rank is None:
        return weight
    chosen = rank_for((weight.shape[0], weight.shape[1]), keep, rank)
    floor = float(abs_mean.max()) * 1e-6  # a feature that was never seen must not be divided by zero
    scale = abs_mean.clamp(min=floor or 1.0).pow(alpha).to(weight.dtype)
    thin = truncate(weight * scale, chosen)
    return Factors(thin.left, thin.right / scale)
