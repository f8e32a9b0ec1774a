"""Round to nearest: every weight to the closest value of its group's grid, without data.

The grid row of layer-wise compression with H = I. With groups of 128 or fewer at 4 bits it is hard to beat by much
(Dettmers and Zettlemoyer 2023, arXiv:2212.09720), below that it is not.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.grids import MOST_BITS, fit, fit_best, group_size, quantize
from sizewise.make.method import weight_method
from sizewise.make.packed import Quantized

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def rtn(
    weight: "Tensor",
    *,
    bits: Annotated[int, Range(2, 16), Search(3, 4, 8)] = 4,
    group: Annotated[int, Range(0), Search(32, 64, 128)] = 64,
    symmetric: bool = False,
    clip: bool = False,
) -> "Tensor | Quantized":
    """Quantize: round every weight to the nearest value of a uniform grid.

    Args:
        weight: (out, in).
        bits: of each code; above 8 the matrix is left as it is.
        group: neighbouring columns that share a scale; 0 = whole rows.
        symmetric: let the middle of each grid be zero, which saves the zero points.
        clip: try narrower grids that clip the outermost weights, and keep the one of least square error.

    Raises:
        UsageError: the groups do not divide the rows.
    """
    if bits > MOST_BITS:
        return weight
    grouped = weight.reshape(weight.shape[0], -1, group_size(group, weight.shape[1]))
    grid = fit_best(grouped, bits, symmetric, weight.new_ones(())) if clip else fit(grouped, bits, symmetric)
    return quantize(grouped, grid, symmetric)
