"""Which tensor gets which type, when the file may have so many bytes and no more.

Rounding a matrix by E adds about 1/2 sum_i G_i (E H ET)_ii to the KL divergence per token: H is the mean of x xT of its
inputs, G_i the mean square gradient at its output i (the Kronecker factors of the Fisher information: Martens and
Grosse 2015, arXiv:1503.05671). What each type would cost is tried on some rows of each matrix, rounded to nearest; the
sweep of GPTQ leaves of it what the columns to the right cannot repair, so a square error counts 1 / U_jj^2 and not
H_jj. Then types are chosen that cost least together: the lower convex hull of cost against bytes of each tensor is
climbed, always where a byte gains most.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from sizewise.load.gguf.types import BY_NAME, GgmlType

_WIDE = ("Q2_K", "Q3_K", "Q4_K", "IQ4_NL", "Q5_K", "Q6_K", "Q8_0")
_NARROW = ("Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0")


@dataclass(frozen=True, slots=True)
class Option:
    """One type for a tensor: its bytes in the file and what it costs."""

    kind: GgmlType
    bytes: int
    cost: float


def kinds_for(width: int) -> tuple[GgmlType, ...]:
    """The types worth considering for rows of that many weights, from fewest to most bits."""
    return tuple(BY_NAME[name] for name in (_WIDE if width % 256 == 0 else _NARROW))


def choose(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, GgmlType]:
    """The cheapest type of every tensor such that all together take at most `budget` bytes.

    Args:
        options: tensor name -> what it could be; at least one each.
        budget: bytes. Where even the smallest types take more, those are chosen.
    """
    hulls = {name: _hull(each) for name, each in options.items()}
    chosen = {name: hull[0] for name, hull in hulls.items()}
    left = budget - sum(option.bytes for option in chosen.values())
    steps = [
        ((low.cost - high.cost) / (high.bytes - low.bytes), place, name)
        for name, hull in hulls.items()
        for place, (low, high) in enumerate(pairwise(hull))
    ]
    blocked: set[str] = set()
    for _, place, name in sorted(steps, key=lambda step: (-step[0], step[1])):
        low, high = hulls[name][place : place + 2]
        if name in blocked or high.bytes - low.bytes > left:
            blocked.add(name)  # a later step of the same tensor would have to go through this one
            continue
        chosen[name] = high
        left -= high.bytes - low.bytes
    return {name: option.kind for name, option in chosen.items()}


def _hull(options: Sequence[Option]) -> list[Option]:
    """The options that no mixture of two others beats, from the smallest to the cheapest."""
    hull: list[Option] = []
    for option in sorted(options, key=lambda each: (each.bytes, each.cost)):
        if hull and (option.cost >= hull[-1].cost or option.bytes == hull[-1].bytes):
            continue
        while len(hull) > 1 and _slope(hull[-2], hull[-1]) <= _slope(hull[-2], option):
            hull.pop()
        hull.append(option)
    return hull


def _slope(low: Option, high: Option) -> float:
    return (low.cost - high.cost) / (high.bytes - low.bytes)
