"""SVD-LLM: the thin product that changes the layer's outputs least (Wang et al. 2024, arXiv:2403.07378).

With S ST = H, ||(W - What) X||^2 is proportional to ||(W - What) S||^2: factor the whitened W S, where cutting a
singular value costs exactly its square, and take S out of the right factor again.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.hessian import cholesky
from sizewise.make.lowrank import rank_for, truncate
from sizewise.make.method import weight_method
from sizewise.make.packed import Factors

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def svd_llm(
    weight: "Tensor",
    hessian: "Tensor",
    *,
    keep: Annotated[float, Range(0, 1), Search(0.6, 0.8, 0.9)] = 0.8,
    rank: Annotated[int | None, Range(1)] = None,
    damp: Annotated[float, Range(0, 1)] = 0.0,
) -> "Tensor | Factors":
    """Factorize: two thin matrices whose product changes the layer's outputs least.

    Args:
        weight: (out, in).
        hessian: (in, in), mean of x xT over the calibration tokens.
        keep: share of the matrix's numbers that its two factors have; 1 leaves it as it is.
        rank: the rank itself, in place of a share.
        damp: share of the Hessian's mean diagonal that is added to its diagonal.

    Raises:
        UsageError: that rank saves nothing.
    """
    import torch

    if keep == 1 and rank is None:
        return weight
    chosen = rank_for((weight.shape[0], weight.shape[1]), keep, rank)
    root = cholesky(hessian, damp)
    thin = truncate(weight.to(root.dtype) @ root, chosen)
    right = torch.linalg.solve_triangular(root, thin.right, upper=False, left=False)
    return Factors(thin.left.to(weight.dtype), right.to(weight.dtype))
