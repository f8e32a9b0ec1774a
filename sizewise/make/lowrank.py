"""Matrices of low rank: how many parameters a rank costs, and the best product of two thin matrices."""

import math
from typing import TYPE_CHECKING

from sizewise.core.errors import UsageError
from sizewise.make.packed import Factors

if TYPE_CHECKING:
    from torch import Tensor


def rank_for(shape: tuple[int, int], keep: float, rank: int | None) -> int:
    """The rank that a matrix is cut to.

    Args:
        shape: (out, in).
        keep: share of the matrix's numbers that the two factors may have.
        rank: the rank itself; then `keep` does not count.

    Raises:
        UsageError: factors of that rank hold as many numbers as the matrix, or none.
    """
    rows, columns = shape
    limit = math.ceil(rows * columns / (rows + columns)) - 1  # the largest rank that saves anything
    chosen = rank if rank is not None else int(keep * rows * columns / (rows + columns) + 1e-9)
    if chosen > limit:
        raise UsageError(f"rank {chosen} saves nothing in a matrix of {rows} x {columns}: at most {limit} does")
    if chosen < 1:
        raise UsageError(f"keeping {keep:g} of a matrix of {rows} x {columns} leaves no rank; keep more")
    return chosen


def truncate(matrix: "Tensor", rank: int) -> Factors:
    """The product of rank `rank` with the least square error (Eckart and Young 1936), singular values split evenly.

    Args:
        matrix: (out, in).
        rank: 1 to min(out, in).

    Returns:
        Factors of the matrix's type.
    """
    import torch

    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    root = values[:rank].sqrt()
    return Factors(left[:, :rank] * root, root[:, None] * right[:rank])
