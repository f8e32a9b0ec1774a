"""HQQ: find the zero points that make most errors small and let a few be large, without data (Badri and Shaji 2023).

Half-quadratic splitting of min over z of sum |W - s (q - z)|^p with p < 1: an auxiliary E takes the large residuals
(the shrinkage operator of the l_p norm), then z has a closed form, the mean of q - (W - E) / s. Scales stay as min-max
gives them; zeros end as real numbers. The error may rise from one step to the next, so each group keeps its best.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.grids import MOST_BITS, Grid, fit, group_size, quantize
from sizewise.make.method import weight_method
from sizewise.make.packed import Quantized

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def hqq(
    weight: "Tensor",
    *,
    bits: Annotated[int, Range(2, 16), Search(3, 4, 8)] = 4,
    group: Annotated[int, Range(0), Search(32, 64, 128)] = 64,
    p: Annotated[float, Range(0.1, 1)] = 0.7,
    beta: Annotated[float, Range(0.1)] = 10.0,
    growth: Annotated[float, Range(1, 10)] = 1.01,
    steps: Annotated[int, Range(0, 1000)] = 20,
) -> "Tensor | Quantized":
    """Quantize: uniform grids with real-valued zero points that are fitted to the weights, without data.

    Args:
        weight: (out, in).
        bits: of each code; above 8 the matrix is left as it is.
        group: neighbouring columns that share a scale; 0 = whole rows.
        p: power of the error that is made small; below 1 a few large errors are tolerated.
        beta: how closely the auxiliary variable follows the residual; larger moves it less.
        growth: factor on beta from one step to the next.
        steps: how many; 0 leaves the min-max grid.

    Raises:
        UsageError: the groups do not divide the rows.
    """
    if bits > MOST_BITS:
        return weight
    grouped = weight.reshape(weight.shape[0], -1, group_size(group, weight.shape[1]))
    best = fit(grouped, bits, symmetric=False)
    return quantize(grouped, refine(grouped, best, p, beta, growth, steps), symmetric=False)


def refine(weight: "Tensor", grid: Grid, p: float, beta: float, growth: float, steps: int) -> Grid:
    """The grid with better zeros, group by group.

    Args:
        weight: (..., n), in groups.
        grid: where to begin; no group gets worse than this.
        p: power of the error.
        beta: first weight of the auxiliary variable.
        growth: its factor from step to step.
        steps: how many.
    """
    import torch

    def cost(candidate: Grid) -> "Tensor":
        return (weight - candidate.nearest(weight)).abs().pow(p).sum(-1, keepdim=True)

    current, best, least = grid, grid, cost(grid)
    for _ in range(steps):
        codes = current.encode(weight)
        residual = weight - current.decode(codes)
        size = residual.abs()
        threshold = size.clamp(min=1e-12).pow(p - 1) / beta
        outliers = residual.sign() * (size - threshold).clamp(min=0)
        zero = (codes - (weight - outliers) / grid.scale).mean(-1, keepdim=True)
        zero = zero.to(torch.float16).to(weight.dtype)  # as it will be stored, so that the best is the best of those
        current = Grid(grid.scale, zero, grid.bits)
        now = cost(current)
        better = now < least
        least = torch.where(better, now, least)
        best = Grid(grid.scale, torch.where(better, zero, best.zero), grid.bits)
        beta *= growth
    return best
