"""Rounding to a GGUF grid from left to right, later columns making up for earlier ones (GPTQ, arXiv:2210.17323).

The grid of a group is settled when the sweep reaches it, from weights that hold all repairs so far. How: a handful of
scales (and offsets) is tried, the whole group is swept with each, and the one is kept whose sweep cost least. What a
sweep costs is known exactly: with U the upper Cholesky factor of H^-1 it adds e_j^2 for each column, e_j being the
column's error divided by U_jj, when all later columns do their best. The units d and dmin of a block of 256 are settled
when the sweep reaches the block, from the scales that its groups would like.

Everything here is feature by feature: (in, out), so that one column of the matrix is contiguous.
"""

from typing import TYPE_CHECKING

from sizewise.make.gguf_forms import Coded, Form, to_half

if TYPE_CHECKING:
    from torch import Tensor

TRIES = 10  # scales tried for each group


def sweep_columns(weight: "Tensor", factor: "Tensor", form: Form, tries: int = TRIES) -> Coded:
    """Put a matrix on the grid of a type.

    Args:
        weight: (in, out) float32; changed.
        factor: (in, in) float32, upper triangular U with UT U = H^-1.
        form: the type.
        tries: how many scales are tried for each group.
    """
    import torch

    width, rows = weight.shape
    size, groups = form.group, width // form.group
    loud = factor.diagonal().reciprocal().square()  # what a square error costs when later columns repair it
    blocks = width // form.block if form.steps else 0
    made = Coded(
        form, torch.empty_like(weight), *(torch.zeros(count, rows) for count in (groups, groups, blocks, blocks))
    )
    for group in range(groups):
        first, end = group * size, (group + 1) * size
        block = first // form.block
        if form.steps and first % form.block == 0:
            part = slice(first, first + form.block)
            made.d[block], made.dmin[block] = _units(weight[part], loud[part], form, tries)
        scale, offset = candidates(weight[first:end], loud[first:end], form, tries)
        units = (made.d[block], made.dmin[block]) if form.steps else (None, None)
        scale, offset = settle(scale, units[0], form), settle_offset(offset, units[1], form)
        level, error, best = _try(weight[first:end], factor[first:end, first:end], scale, offset, form)
        made.level[first:end] = level
        made.scale[group] = scale.gather(0, best[None])[0]
        made.offset[group] = offset.gather(0, best[None])[0]
        weight[end:].addmm_(factor[first:end, end:].T, error, alpha=-1.0)
    return made


def candidates(weight: "Tensor", loud: "Tensor", form: Form, tries: int) -> "tuple[Tensor, Tensor]":
    """Scales and offsets worth trying for one group, each fitted to the levels that it gives rise to.

    Args:
        weight: (n, out), the group.
        loud: (n,), what a square error costs at each place.
        form: the type.
        tries: how many.

    Returns:
        (tries, out) each.
    """
    import torch

    low, high = form.levels[0], form.levels[-1]
    steps = torch.linspace(-1.0, 1.0, tries)[:, None]
    if form.offset:
        most = weight.amax(0)
        least = weight.amin(0) if form.steps is None else weight.amin(0).clamp(max=0.0)
        # from somewhat more than the range to a good deal less: few levels gain from cutting off the tails
        reach = 1.0 - (0.02 + 0.6 / (high + 1)) + steps * (0.08 + 0.6 / (high + 1))
        middle = (most + least) / 2 if form.steps is None else least
        offset = middle + (least - middle) * reach
        if form.steps:
            offset = least * (0.5 + reach / 2)
        scale = (most - least) * reach / (high - low)
    else:
        loudest = weight.gather(0, weight.abs().argmax(0, keepdim=True))  # (1, out)
        reach = 1.0 + steps * (0.06 + 1.0 / -low if -low < 64 else 0.02)
        scale = loudest / (low * reach)
        scale[1::4] = loudest / (high * reach[1::4])  # the loudest weight may sit at the other end too
        offset = torch.zeros_like(scale)
    return _fitted(weight, loud, form, scale, offset)


def settle(scale: "Tensor", unit: "Tensor | None", form: Form) -> "Tensor":
    """The nearest scales that can be stored: 16-bit numbers, or multiples of `unit` (out,)."""
    if form.steps is None or unit is None:
        return to_half(scale)
    return _multiple(scale, unit, *form.steps)


def settle_offset(offset: "Tensor", unit: "Tensor | None", form: Form) -> "Tensor":
    """The nearest offsets that can be stored; zeros where the type has none."""
    import torch

    if not form.offset:
        return torch.zeros_like(offset)
    if form.steps is None or unit is None:
        return to_half(offset)
    return -_multiple(-offset, unit, 0, form.offset_steps)


def inverse_of(scale: "Tensor") -> "Tensor":
    """1 / scale, and 0 where the scale is 0: there all weights get level 0."""
    import torch

    return torch.where(scale == 0, torch.zeros_like(scale), scale.reciprocal())


def _multiple(value: "Tensor", unit: "Tensor", least: int, most: int) -> "Tensor":
    return unit * (value * inverse_of(unit)).round().clamp(least, most)


def _fitted(weight: "Tensor", loud: "Tensor", form: Form, scale: "Tensor", offset: "Tensor") -> "tuple[Tensor, Tensor]":
    """Least squares for scale and offset, given the levels that the weights take with these. (tries, out) each."""
    import torch

    level = form.nearest((weight[:, None] - offset) * inverse_of(scale))  # (n, tries, out)
    cost = loud[:, None, None]
    weighted = cost * level
    square, product = (weighted * level).sum(0), torch.einsum("nko,no->ko", weighted, weight)
    if not form.offset:
        return torch.where(square > 0, product / square, scale), offset
    total, plain, sums = loud.sum(), weighted.sum(0), (loud[:, None] * weight).sum(0)
    spread = total * square - plain * plain
    slope = (total * product - plain * sums) / spread
    start = (sums - slope * plain) / total
    fine = (spread > 1e-6 * total * square) & (slope > 0)
    if form.steps:  # an offset above 0 cannot be stored
        through = product / square
        above = fine & (start > 0) & (square > 0)
        slope, start = torch.where(above, through, slope), torch.where(above, torch.zeros_like(start), start)
    return torch.where(fine, slope, scale), torch.where(fine, start, offset)


def _units(weight: "Tensor", loud: "Tensor", form: Form, tries: int) -> "tuple[Tensor, Tensor]":
    """D and dmin of a block (256, out): such that the largest scale and offset of its groups are just in reach."""
    import torch

    scales, offsets = [], []
    for first in range(0, form.block, form.group):
        part, cost = weight[first : first + form.group], loud[first : first + form.group]
        scale, offset = candidates(part, cost, form, tries)
        ratio = (part[:, None] - offset) * inverse_of(scale)
        misses = (form.nearest(ratio) * scale + offset - part[:, None]).square_()
        best = (misses * cost[:, None, None]).sum(0).argmin(0, keepdim=True)
        scales.append(scale.gather(0, best)[0])
        offsets.append(offset.gather(0, best)[0])
    wanted, below = torch.stack(scales), -torch.stack(offsets)
    low, high = form.steps or (0, 1)
    if low < 0:
        peak = wanted.gather(0, wanted.abs().argmax(0, keepdim=True))[0]
        return to_half(peak / low), torch.zeros_like(peak)
    least = to_half(below.amax(0) / form.offset_steps) if form.offset else torch.zeros_like(wanted[0])
    return to_half(wanted.amax(0) / high), least


def _try(
    weight: "Tensor", factor: "Tensor", scale: "Tensor", offset: "Tensor", form: Form
) -> "tuple[Tensor, Tensor, Tensor]":
    """Sweep one group with every candidate and keep, row by row, the cheapest.

    Args:
        weight: (n, out).
        factor: (n, n), the group's part of U.
        scale: (tries, out).
        offset: (tries, out).
        form: the type.

    Returns:
        levels (n, out), errors divided by U_jj (n, out), which candidate (out,).
    """
    import torch

    size, tries = len(weight), len(scale)
    local = weight[:, None].expand(-1, tries, -1).reshape(size, -1).contiguous()
    flat, shift = scale.reshape(-1), offset.reshape(-1)
    inverse = inverse_of(flat)
    levels, errors = torch.empty_like(local), torch.empty_like(local)
    for place in range(size):
        column = local[place]
        level = form.nearest((column - shift).mul_(inverse))
        error = (column - level * flat - shift).div_(factor[place, place])
        levels[place], errors[place] = level, error
        local[place + 1 :].addr_(factor[place, place + 1 :], error, alpha=-1.0)
    best = errors.square().sum(0).reshape(tries, -1).argmin(0)
    index = best.expand(size, 1, -1)
    chosen = [each.reshape(size, tries, -1).gather(1, index)[:, 0] for each in (levels, errors)]
    return chosen[0], chosen[1], best
