"""Column by column, with what is still to come making up for what is done: the sweep of GPTQ and SparseGPT.

When column j of W is changed by e_j * U_jj, the best that the columns right of it can do for the layer's output is to
move by -e_j * U_j,: (the Optimal Brain Surgeon update, with U the upper Cholesky factor of H^-1). With E the matrix of
all e_j, W - What = E U and tr((W - What) H (W - What)T) = sum of E^2: the sweep knows its own error exactly.
(Frantar et al. 2022, arXiv:2210.17323, algorithm 1; Frantar and Alistarh 2023, arXiv:2301.00774, algorithm 1.)
"""

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

# given the first column of a segment and the segment's current weights (out, n), answer how to change each column:
# given its place in the segment and its current values (out,), the new values
Begin = Callable[[int, "Tensor"], "Change"]
Change = Callable[[int, "Tensor"], "Tensor"]


def sweep(
    weight: "Tensor", factor: "Tensor", begin: Begin, *, segment: int, block: int = 128
) -> "tuple[Tensor, Tensor]":
    """Change all columns from left to right.

    Args:
        weight: (out, in).
        factor: (in, in), upper triangular U with UT U = H^-1.
        begin: called at the start of each segment with weights that hold all updates so far.
        segment: columns that are decided upon together (a group that shares a scale, a block that shares a mask).
        block: columns whose updates are applied to the rest of the matrix at once. Changes speed alone.

    Returns:
        What (out, in) and E (out, in).
    """
    import torch

    work, errors = weight.clone(), torch.empty_like(weight)
    factor = factor.to(weight.dtype)
    change: Change = lambda _, column: column  # noqa: E731
    origin = 0
    for start, end in _blocks(weight.shape[1], segment, block):
        local = work[:, start:end].T.contiguous()  # (n, out): a column is contiguous
        upper = factor[start:end, start:end]
        mistakes = torch.empty_like(local)
        for place in range(end - start):
            if (start + place) % segment == 0:
                origin = start + place
                inside = local[place : place + segment].T
                # a segment that reaches beyond the block begins with it, so all its columns are up to date
                current = inside if origin + segment <= end else work[:, origin : origin + segment]
                change = begin(origin, current)
            column = local[place]
            new = change(start + place - origin, column)
            mistakes[place] = (column - new) / upper[place, place]
            local[place + 1 :].addr_(upper[place, place + 1 :], mistakes[place], alpha=-1.0)
            local[place] = new
        work[:, start:end] = local.T
        errors[:, start:end] = mistakes.T
        work[:, end:].addmm_(mistakes.T, factor[start:end, end:], alpha=-1.0)  # no second matrix of that size
    return work, errors


def _blocks(width: int, segment: int, block: int) -> Iterator[tuple[int, int]]:
    """Cuts of `width` into blocks such that each segment lies within one block or begins with one."""
    start = 0
    while start < width:
        end = min(start + block, width)
        if segment > block:
            end = min(end, (start // segment + 1) * segment)
        elif end < width:
            end -= end % segment
        yield start, end
        start = end
