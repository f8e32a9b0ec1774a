"""GPTQ: round column by column and let the columns still to come make up for the error (Frantar et al. 2022).

arXiv:2210.17323. With act-order the columns of the loudest inputs go first, when there is most left to repair with.
Static groups fix every grid beforehand, from the weights as they were, so that the sorted columns keep their places in
storage; otherwise a grid is fitted when the sweep reaches its group, to weights that have been moved by then.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.compensate import Change, sweep
from sizewise.make.grids import MOST_BITS, Grid, fit, fit_best, group_size
from sizewise.make.hessian import inverse_factor
from sizewise.make.method import weight_method
from sizewise.make.packed import Quantized

if TYPE_CHECKING:
    from torch import Tensor

_ROWS = 512  # that are turned into codes at once


@weight_method
def gptq(
    weight: "Tensor",
    hessian: "Tensor",
    *,
    bits: Annotated[int, Range(2, 16), Search(3, 4, 8)] = 4,
    group: Annotated[int, Range(0), Search(32, 64, 128)] = 64,
    symmetric: bool = False,
    act_order: bool = True,
    static_groups: bool = True,
    clip: bool = False,
    block: Annotated[int, Range(1, 4096)] = 128,
    damp: Annotated[float, Range(0, 1)] = 0.01,
) -> "Tensor | Quantized":
    """Quantize: round column by column, moving the weights still to come to make up for each error.

    A feature that no calibration token touched is rounded to nearest and repairs nothing, and no row comes out worse
    than if all its weights were rounded to the nearest values of the same grids.

    Args:
        weight: (out, in).
        hessian: (in, in), mean of x xT over the calibration tokens.
        bits: of each code; above 8 the matrix is left as it is.
        group: neighbouring columns that share a scale; 0 = whole rows.
        symmetric: let the middle of each grid be zero, which saves the zero points.
        act_order: begin with the columns of the loudest inputs.
        static_groups: fix all grids beforehand; without it, act_order makes groups of scattered columns.
        clip: try narrower grids, and keep the one of least square error weighted by the loudness of the inputs.
        block: columns whose updates are applied at once; changes speed alone.
        damp: share of the Hessian's mean diagonal that is added to its diagonal.

    Raises:
        UsageError: the groups do not divide the rows.
    """
    import torch

    if bits > MOST_BITS:
        return weight
    columns = weight.shape[1]
    size = group_size(group, columns)
    loud = hessian.diagonal().to(weight.dtype)
    order = torch.argsort(loud, descending=True, stable=True) if act_order else torch.arange(columns)
    grids = _Grids(loud[order], size, bits, symmetric, clip)
    if static_groups:
        grids.fix(weight, loud, order)
    hessian, weight = hessian[order[:, None], order], weight[:, order]
    swept, _ = sweep(weight, inverse_factor(hessian, damp).to(weight.dtype), grids.begin, segment=size, block=block)
    return grids.packed(swept, weight, hessian, order)


class _Grids:
    """The grid of every column in the order of the sweep: fixed beforehand, or fitted as the sweep reaches a group."""

    def __init__(self, loud: "Tensor", size: int, bits: int, symmetric: bool, clip: bool) -> None:
        import torch

        self.loud, self.size, self.bits, self.symmetric, self.clip = loud, size, bits, symmetric, clip
        self.group = torch.arange(len(loud)) // size  # of each column, as swept
        self.scales: list[Tensor] = []  # (out,) each
        self.zeros: list[Tensor] = []
        self.fixed = False

    def fix(self, weight: "Tensor", loud: "Tensor", order: "Tensor") -> None:
        """Fit all grids to neighbouring columns of the weights as they are."""
        for start in range(0, weight.shape[1], self.size):
            self._fit(weight[:, start : start + self.size], loud[start : start + self.size])
        self.group, self.fixed = order // self.size, True

    def begin(self, origin: int, current: "Tensor") -> Change:
        """The sweep has come to column `origin` of a new group."""
        if not self.fixed:
            self._fit(current, self.loud[origin : origin + self.size])
        group = self.group[origin : origin + self.size].tolist()

        def change(place: int, column: "Tensor") -> "Tensor":
            return Grid(self.scales[group[place]], self.zeros[group[place]], self.bits).nearest(column)

        return change

    def packed(self, swept: "Tensor", weight: "Tensor", hessian: "Tensor", order: "Tensor") -> Quantized:
        """Codes in their old places, of what the sweep left or, in rows that it did not help, of the nearest values.

        A repair can push a weight beyond its grid, where it is cut off; in a few rows that costs more than was saved.

        Args:
            swept: (out, in), all on their grids.
            weight: (out, in), as it was, in the order of the sweep.
            hessian: (in, in), in the order of the sweep.
            order: (in,), the column of the matrix at each place of the sweep.
        """
        import torch

        scales, zeros = torch.stack(self.scales, 1), torch.stack(self.zeros, 1)
        back = torch.argsort(order)
        codes = torch.empty(swept.shape, dtype=torch.uint8)
        for rows in torch.split(torch.arange(len(weight)), _ROWS):
            grid = Grid(scales[rows][:, self.group], zeros[rows][:, self.group], self.bits)
            nearest = grid.nearest(weight[rows])
            repaired = _row_errors(swept[rows] - weight[rows], hessian)
            helped = repaired <= _row_errors(nearest - weight[rows], hessian)
            codes[rows] = grid.encode(torch.where(helped[:, None], swept[rows], nearest)).to(torch.uint8)[:, back]
        group = self.group[back]
        in_place = torch.equal(group, torch.arange(len(order)) // self.size)
        return Quantized(
            codes=codes,
            scales=scales.float(),
            zeros=zeros.float(),
            bits=self.bits,
            group=self.size,
            symmetric=self.symmetric,
            groups=None if in_place else group.to(torch.int32),
        )

    def _fit(self, weight: "Tensor", loud: "Tensor") -> None:
        best = (
            fit_best(weight, self.bits, self.symmetric, loud) if self.clip else fit(weight, self.bits, self.symmetric)
        )
        self.scales.append(best.scale[:, 0])
        self.zeros.append(best.zero[:, 0])


def _row_errors(error: "Tensor", hessian: "Tensor") -> "Tensor":
    """(out,): what each row's error does to its output."""
    return ((error @ hessian.to(error.dtype)) * error).sum(1)
