"""AWQ: scale loud inputs down and their weights up before rounding (Lin et al. 2023, arXiv:2306.00978).

A weight multiplied by s and an input divided by s give the same product, but the error of rounding the weight shrinks
with s as long as its group's largest weight does not grow. s = mean |x|^alpha, and alpha is searched for on the error
of the outputs of all matrices that share the input. Then the range of each grid is searched for in the same way.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.grids import MOST_BITS, Grid, fit, group_size, quantize
from sizewise.make.hessian import output_error
from sizewise.make.method import weight_method
from sizewise.make.packed import Scaled

if TYPE_CHECKING:
    from torch import Tensor

_UNCLIPPED = frozenset({"q", "k", "qkv"})  # attention scores suffer more from clipped weights than they gain


@weight_method
def awq(
    weights: "Sequence[Tensor]",
    roles: Sequence[str],
    abs_mean: "Tensor",
    hessian: "Tensor",
    scalable: bool,
    *,
    bits: Annotated[int, Range(2, 16), Search(3, 4, 8)] = 4,
    group: Annotated[int, Range(0), Search(32, 64, 128)] = 64,
    symmetric: bool = False,
    grid: Annotated[int, Range(1, 1000)] = 20,
    clip: bool = True,
) -> Scaled:
    """Quantize: scale the columns of loud inputs up before rounding, and undo it in what comes before.

    Args:
        weights: (out, in) each, all with the same input.
        roles: what each of them is in the network: "q", "up", ...
        abs_mean: (in,), mean |x| of each input feature.
        hessian: (in, in), mean of x xT over the calibration tokens.
        scalable: whether what comes before can divide the input by a scale; else that scale is 1.
        bits: of each code; above 8 the matrices are left as they are.
        group: neighbouring columns that share a scale; 0 = whole rows.
        symmetric: let the middle of each grid be zero, which saves the zero points.
        grid: how many powers of the mean are tried; 0, which is plain rounding, is always one of them.
        clip: search for narrower ranges too, except in queries and keys.

    Raises:
        UsageError: the groups do not divide the rows.
    """
    import torch

    ones = torch.ones_like(abs_mean, dtype=torch.float32)
    if bits > MOST_BITS:
        return Scaled(ones, tuple(weights))
    size = group_size(group, weights[0].shape[1])

    def rounded(weight: "Tensor") -> "Tensor":
        grouped = weight.reshape(weight.shape[0], -1, size)
        return fit(grouped, bits, symmetric).nearest(grouped).reshape(weight.shape)

    def loss(scale: "Tensor") -> float:
        return sum(output_error(weight - rounded(weight * scale) / scale, hessian) for weight in weights)

    candidates = [_scale(abs_mean, step / grid) for step in range(grid if scalable else 1)]
    best = min(candidates, key=loss)
    inner = hessian / torch.outer(best, best)
    parts = []
    for weight, role in zip(weights, roles, strict=True):
        grouped = (weight * best).reshape(weight.shape[0], -1, size)
        narrow = clip and role not in _UNCLIPPED
        chosen = clipped(grouped, inner, bits, symmetric) if narrow else fit(grouped, bits, symmetric)
        parts.append(quantize(grouped, chosen, symmetric))
    return Scaled(best.float(), tuple(parts))


def _scale(abs_mean: "Tensor", alpha: float) -> "Tensor":
    """Powers of the mean, with largest and smallest on either side of 1."""
    import torch

    if alpha == 0:
        return torch.ones_like(abs_mean)
    scale = abs_mean.clamp(min=max(float(abs_mean.max()) * 1e-4, 1e-12)).pow(alpha)
    return scale / (scale.max() * scale.min()).sqrt()


def clipped(weight: "Tensor", hessian: "Tensor", bits: int, symmetric: bool, steps: int = 10) -> Grid:
    """Of grids down to half the weights' range, the one whose group changes the output least.

    Args:
        weight: (out, groups, n).
        hessian: (groups * n, groups * n).
        bits: the grid has 2^bits values.
        symmetric: the middle of the grid is 0.
        steps: how many ranges are tried, the full one first.
    """
    import torch

    _, groups, size = weight.shape
    blocks = torch.stack([hessian[at : at + size, at : at + size] for at in range(0, groups * size, size)])
    blocks = blocks.to(weight.dtype)

    def cost(grid: Grid) -> "Tensor":
        error = weight - grid.nearest(weight)
        spread = torch.einsum("ogn,gnm->ogm", error, blocks)
        return (spread * error).sum(-1, keepdim=True)

    best = fit(weight, bits, symmetric)
    least = cost(best)
    for step in range(1, steps):
        grid = fit(weight, bits, symmetric, 1.0 - 0.5 * step / steps)
        now = cost(grid)
        better = now < least
        least = torch.where(better, now, least)
        best = Grid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero), bits)
    return best
