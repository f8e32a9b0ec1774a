"""Coordinate descent on a matrix that is on a GGUF grid: every level, scale and offset in turn takes its best value.

tr(E H ET), E being the error of the weights, is a quadratic in each of them alone. Its minimum among the values that
can be stored is the one nearest to its minimum among all numbers, so every step is exact and none makes a row worse.
A sweep from left to right can repair only to its right; the descent repairs what it left, in all directions.
"""

from typing import TYPE_CHECKING

from sizewise.make.gguf_forms import Coded, to_half
from sizewise.make.gguf_sweep import inverse_of, settle, settle_offset

if TYPE_CHECKING:
    from torch import Tensor

ROUNDS = 3


def descend(made: Coded, weight: "Tensor", hessian: "Tensor", rounds: int = ROUNDS) -> None:
    """Improve `made` in place.

    Args:
        made: on its grid.
        weight: (in, out) float32, what it should be.
        hessian: (in, in) float32, symmetric and positive definite.
        rounds: how often each value is visited.
    """
    dense = made.dense()
    pull = hessian @ (dense - weight)  # half the gradient of tr(E H ET)
    for _ in range(rounds):
        for first in range(0, len(weight), made.form.group):
            if made.form.steps and first % made.form.block == 0:
                _move_units(made, first // made.form.block, dense, pull, hessian)
            _move_group(made, first // made.form.group, dense, pull, hessian)


def _move_group(made: Coded, group: int, dense: "Tensor", pull: "Tensor", hessian: "Tensor") -> None:
    form = made.form
    part = slice(group * form.group, (group + 1) * form.group)
    square = hessian[part, part]
    before, level = dense[part].clone(), made.level[part]
    _move_levels(made, group, dense[part], pull[part].clone(), square)
    block = part.start // form.block
    near = pull[part] + square @ (dense[part] - before)
    scale = _best(made.scale[group], level, near, square)
    _accept(made, group, settle(scale, made.d[block] if form.steps else None, form), None, near, square)
    now = level * made.scale[group] + made.offset[group]
    if form.offset:
        near = pull[part] + square @ (now - before)
        offset = made.offset[group] - near.sum(0) / square.sum()
        _accept(made, group, None, settle_offset(offset, made.dmin[block] if form.steps else None, form), near, square)
        now = level * made.scale[group] + made.offset[group]
    dense[part] = now
    pull.addmm_(hessian[:, part], now - before)


def _move_levels(made: Coded, group: int, dense: "Tensor", pull: "Tensor", square: "Tensor") -> None:
    """Each column of a group once; `dense` and the levels are changed, `pull` is used up."""
    form, scale, offset = made.form, made.scale[group], made.offset[group]
    inverse = inverse_of(scale)
    for place in range(form.group):
        wanted = dense[place] - pull[place] / square[place, place]
        level = form.nearest(wanted.sub_(offset).mul_(inverse))
        value = level * scale + offset
        change = value - dense[place]
        made.level[group * form.group + place] = level
        dense[place] = value
        pull[place + 1 :].addr_(square[place, place + 1 :], change)


def _best(scale: "Tensor", direction: "Tensor", pull: "Tensor", square: "Tensor") -> "Tensor":
    """Where along `direction` (n, out) the error is least."""
    import torch

    curvature = (direction * (square @ direction)).sum(0)
    return torch.where(curvature > 0, scale - (direction * pull).sum(0) / curvature, scale)


def _accept(
    made: Coded, group: int, scale: "Tensor | None", offset: "Tensor | None", pull: "Tensor", square: "Tensor"
) -> None:
    """Take the new scales or offsets in those rows that they help (rounding may have gone past the old ones)."""
    import torch

    part = slice(group * made.form.group, (group + 1) * made.form.group)
    level, old_scale, old_offset = made.level[part], made.scale[group], made.offset[group]
    new_scale = old_scale if scale is None else scale
    new_offset = old_offset if offset is None else offset
    change = level * (new_scale - old_scale) + (new_offset - old_offset)
    helps = (change * (2 * pull + square @ change)).sum(0) < 0
    made.scale[group] = torch.where(helps, new_scale, old_scale)
    made.offset[group] = torch.where(helps, new_offset, old_offset)


def _move_units(made: Coded, block: int, dense: "Tensor", pull: "Tensor", hessian: "Tensor") -> None:
    """D and dmin of one block of 256, the multiples of them being kept."""
    import torch

    form = made.form
    part = slice(block * form.block, (block + 1) * form.block)
    groups = slice(part.start // form.group, part.stop // form.group)
    square, before = hessian[part, part], dense[part].clone()
    for kind in ("d", "dmin") if form.offset else ("d",):
        unit = getattr(made, kind)[block]
        values = made.scale[groups] if kind == "d" else made.offset[groups]
        multiples = (values * inverse_of(unit)).round()
        direction = multiples.repeat_interleave(form.group, 0)
        direction = direction * made.level[part] if kind == "d" else direction
        near = pull[part] + square @ (dense[part] - before)
        better = to_half(_best(unit, direction, near, square))
        change = direction * (better - unit)
        helps = ((change * (2 * near + square @ change)).sum(0) < 0) & (better != 0)
        unit = torch.where(helps, better, unit)
        getattr(made, kind)[block] = unit
        values.copy_(unit * multiples)
        dense[part] = made.level[part] * made.scale[groups].repeat_interleave(form.group, 0) + made.offset[
            groups
        ].repeat_interleave(form.group, 0)
    pull.addmm_(hessian[:, part], dense[part] - before)
