"""SparseGPT: prune column by column and let the remaining weights make up for it (Frantar and Alistarh 2023).

Within each block of columns the weights of least w^2 / U_jj^2 go, which is what their loss costs after the best repair
(arXiv:2301.00774, equations 3 to 5); the repair is the sweep of `make.compensate`. The choice is made block by block
because the weights that it looks at have been moved by then.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.compensate import Change, sweep
from sizewise.make.hessian import inverse_factor
from sizewise.make.method import weight_method
from sizewise.make.sparsity import count, lowest_of_each, parse_pattern

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def sparsegpt(
    weight: "Tensor",
    hessian: "Tensor",
    *,
    sparsity: Annotated[float, Range(0, 1), Search(0.3, 0.5, 0.6)] = 0.5,
    pattern: str = "",
    block: Annotated[int, Range(1, 4096)] = 128,
    damp: Annotated[float, Range(0, 1)] = 0.01,
) -> "Tensor":
    """Prune: zero weights column by column, moving those still to come to make up for each loss.

    Args:
        weight: (out, in).
        hessian: (in, in), mean of x xT over the calibration tokens.
        sparsity: share of the weights set to zero; 0 returns the matrix untouched, 1 returns zeros.
        pattern: n:m, keep n of every m neighbours in a row, in place of a share; for example 2:4.
        block: columns that share one choice of what goes; with a pattern, rounded down to a multiple of m.
        damp: share of the Hessian's mean diagonal that is added to its diagonal.

    Returns:
        (out, in), in which exactly floor(sparsity * number) entries have been set to zero.

    Raises:
        UsageError: the pattern is none, or its m does not divide the rows.
    """
    rows, columns = weight.shape
    chosen = parse_pattern(pattern, columns)
    if chosen is None and count(sparsity, weight.numel()) == 0:
        return weight
    factor = inverse_factor(hessian, damp).to(weight.dtype)
    cost = factor.diagonal().square()
    segment = max(block - block % chosen[1], chosen[1]) if chosen else block

    def begin(origin: int, current: "Tensor") -> Change:
        width = current.shape[1]
        score = current.square() / cost[origin : origin + width]
        if chosen:
            mask = lowest_of_each(score, *chosen)
        else:  # what is due up to here, so that the whole matrix gets the exact number
            due = count(sparsity, rows * (origin + width)) - count(sparsity, rows * origin)
            mask = _lowest(score, due)
        keep = (~mask).T.contiguous()
        return lambda place, column: column * keep[place]

    return sweep(weight, factor, begin, segment=segment, block=block)[0]


def _lowest(score: "Tensor", number: int) -> "Tensor":
    """Marks the `number` lowest scores of a block, of ties the first."""
    import torch

    flat = score.reshape(-1)
    if number == 0:
        return torch.zeros_like(score, dtype=torch.bool)
    border = flat.kthvalue(number).values  # sorting all of them would take most of the method's time
    below, level = flat < border, flat == border
    return (below | (level & (level.cumsum(0) <= number - below.sum()))).reshape(score.shape)
