"""Uniform grids: 2^bits evenly spaced values for each group of neighbouring weights of a row.

weight = (code - zero) * scale. Scales are rounded up to numbers that bfloat16 holds, before any weight is rounded: so
they are the same wherever the result is stored, and the grid still covers the weights.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sizewise.core.errors import UsageError
from sizewise.make.packed import Quantized

if TYPE_CHECKING:
    from torch import Tensor

MOST_BITS = 8  # codes are bytes; with more bits a matrix is left as it is


@dataclass(frozen=True, slots=True)
class Grid:
    """One grid for each of a number of groups; all tensors have the groups' shape and a last dimension of 1."""

    scale: "Tensor"
    zero: "Tensor"
    bits: int

    def encode(self, weight: "Tensor") -> "Tensor":
        """The nearest codes, as floating-point numbers.

        Args:
            weight: (..., n), in groups.
        """
        return (weight / self.scale + self.zero).round().clamp(0, 2**self.bits - 1)

    def decode(self, codes: "Tensor") -> "Tensor":
        """The weights that codes stand for."""
        return (codes - self.zero) * self.scale

    def nearest(self, weight: "Tensor") -> "Tensor":
        """Weights rounded to the grid."""
        return self.decode(self.encode(weight))


def group_size(group: int, width: int) -> int:
    """Columns in a group; 0 means whole rows.

    Raises:
        UsageError: groups of that size do not divide the rows.
    """
    if group == 0:
        return width
    if width % group:
        fitting = [size for size in (256, 192, 128, 96, 64, 48, 32, 16, 8) if width % size == 0]
        hint = f"{', '.join(map(str, fitting))} do, and 0 means whole rows" if fitting else "0 means whole rows"
        raise UsageError(f"groups of {group} do not divide rows of {width} weights: {hint}")
    return group


def fit(weight: "Tensor", bits: int, symmetric: bool, shrink: "float | Tensor" = 1.0) -> Grid:
    """The grid from the least to the greatest weight of each group, 0 always being on it.

    Args:
        weight: (..., n).
        bits: the grid has 2^bits values.
        symmetric: the middle of the grid is 0.
        shrink: factor on the range; below 1 the outermost weights are clipped.

    Returns:
        For all-zero groups a scale of 1.
    """
    import torch

    low = weight.amin(dim=-1, keepdim=True).clamp(max=0.0) * shrink
    high = weight.amax(dim=-1, keepdim=True).clamp(min=0.0) * shrink
    if symmetric:
        high = torch.maximum(-low, high)
        low = -high
    steps = 2**bits - 1
    scale = storable((high - low) / steps)
    zero = torch.full_like(scale, 2 ** (bits - 1)) if symmetric else (-low / scale).round().clamp(0, steps)
    return Grid(scale, zero, bits)


def fit_best(weight: "Tensor", bits: int, symmetric: bool, importance: "Tensor", steps: int = 20) -> Grid:
    """Of grids whose ranges shrink from all of the weights' to 0.4 of it, the one of least weighted square error.

    Args:
        weight: (..., n).
        bits: the grid has 2^bits values.
        symmetric: the middle of the grid is 0.
        importance: broadcasts to `weight`: what a square error costs at each place.
        steps: how many ranges are tried.
    """
    import torch

    best = fit(weight, bits, symmetric)
    least = ((best.nearest(weight) - weight).square() * importance).sum(-1, keepdim=True)
    for step in range(1, steps):
        grid = fit(weight, bits, symmetric, 1.0 - 0.6 * step / steps)
        cost = ((grid.nearest(weight) - weight).square() * importance).sum(-1, keepdim=True)
        better = cost < least
        least = torch.where(better, cost, least)
        best = Grid(torch.where(better, grid.scale, best.scale), torch.where(better, grid.zero, best.zero), bits)
    return best


def storable(scale: "Tensor") -> "Tensor":
    """The least bfloat16 numbers that are no smaller than these positive scales; 1 in place of 0."""
    import torch

    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    bits = scale.to(torch.float32).view(torch.int32)
    return ((bits + 0xFFFF) & ~0xFFFF).view(torch.float32).to(scale.dtype)


def quantize(weight: "Tensor", grid: Grid, symmetric: bool) -> Quantized:
    """Every weight rounded to the nearest value of its group's grid.

    Args:
        weight: (out, groups, n).
        grid: with tensors of (out, groups, 1).
        symmetric: whether the grid is.
    """
    import torch

    rows, groups, size = weight.shape
    return Quantized(
        codes=grid.encode(weight).to(torch.uint8).reshape(rows, groups * size),
        scales=grid.scale[..., 0].float(),
        zeros=grid.zero[..., 0].float(),
        bits=grid.bits,
        group=size,
        symmetric=symmetric,
    )
