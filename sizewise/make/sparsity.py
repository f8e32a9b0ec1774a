"""Which weights go: masks with an exact number of zeros, from scores that say what each weight is worth."""

import re
from typing import TYPE_CHECKING, Literal

from sizewise.core.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

Scope = Literal["matrix", "row"]


def count(sparsity: float, size: int) -> int:
    """How many of `size` weights a sparsity means: the floor, but 0.29 of 100 is 29."""
    return min(size, int(sparsity * size + 1e-9))


def parse_pattern(pattern: str, width: int) -> tuple[int, int] | None:
    """The n and m of "n:m", which keeps n of every m neighbours in a row; None for "".

    Raises:
        UsageError: that is no pattern, or m does not divide rows of `width`.
    """
    if not pattern:
        return None
    match = re.fullmatch(r"(\d{1,4}):(\d{1,4})", pattern)
    n, m = (int(match[1]), int(match[2])) if match else (1, 0)
    if n > m:
        raise UsageError(f"pattern {pattern!r} is none: write n:m, for example 2:4 to keep 2 of every 4 weights")
    if width % m:
        raise UsageError(f"pattern {pattern}: {m} does not divide rows of {width} weights")
    return n, m


def lowest(score: "Tensor", sparsity: float, scope: Scope) -> "Tensor":
    """Marks the weights of lowest score: exactly floor(sparsity * number), of ties the first.

    Args:
        score: (out, in).
        sparsity: share to mark, 0 to 1. What is marked at one share is marked at every larger one.
        scope: compare within the whole matrix, or within each row.

    Returns:
        (out, in) bool.
    """
    import torch

    rows = score.reshape(1, -1) if scope == "matrix" else score
    drop = rows.argsort(dim=1, stable=True)[:, : count(sparsity, rows.shape[1])]
    return torch.zeros_like(rows, dtype=torch.bool).scatter_(1, drop, True).reshape(score.shape)


def lowest_of_each(score: "Tensor", n: int, m: int) -> "Tensor":
    """Marks the m - n weights of lowest score among every m neighbours of a row.

    Args:
        score: (out, in), where m divides `in`.
        n: how many of each m are not marked.
        m: size of a neighbourhood.

    Returns:
        (out, in) bool.
    """
    return lowest(score.reshape(-1, m), (m - n) / m, "row").reshape(score.shape)


def prune(weight: "Tensor", score: "Tensor", sparsity: float, pattern: str, scope: Scope) -> "Tensor":
    """The matrix without its weights of lowest score.

    Args:
        weight: (out, in).
        score: (out, in), what each weight is worth.
        sparsity: share of weights set to zero.
        pattern: "n:m" in place of a share, or "".
        scope: where scores are compared.
    """
    chosen = parse_pattern(pattern, weight.shape[1])
    mask = lowest_of_each(score, *chosen) if chosen else lowest(score, sparsity, scope)
    return weight.masked_fill(mask, 0.0)
