"""Which matrices get more bits, when all of them together may take so many: measured, then solved.

What a width of b bits does to a matrix is measured: tr(dW H dWT), the mean square of the change of its outputs on the
calibration text, for the rounding errors dW of every b. A change of a loud matrix is not worse than one of a quiet
matrix, so each is taken relative to tr(W H WT), the mean square of the outputs themselves. One width for each matrix
such that the sum of errors is least and the sum of sizes within the budget is a knapsack of multiple choice; its
table over all sizes finds the best choice.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sizewise.core.errors import UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.params import schema_of
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import Layout
from sizewise.make.grids import MOST_BITS, fit, group_size, quantize
from sizewise.make.hessian import output_error
from sizewise.make.method import wants
from sizewise.make.outer import outer_blocks, seen_outside
from sizewise.make.recorded import Recorded
from sizewise.make.treat import Treatment, read_block

if TYPE_CHECKING:
    from torch import Tensor

_CELLS = 20_000  # most entries of the table over sizes; beyond it sizes are rounded up


@dataclass(frozen=True, slots=True)
class Unit:
    """Matrices that get one width: what each width takes and what it costs."""

    names: tuple[str, ...]
    weights: int
    sizes: Mapping[int, int]  # bits stored, scales included, by width
    errors: Mapping[int, float]  # relative square error of the outputs, by width


def choose(units: Sequence[Unit], most: int) -> list[int]:
    """The width of each unit such that the errors' sum is least while sizes add up to no more than `most`.

    The best choice, where at most 20,000 different sums of sizes can occur; beyond that sizes are rounded up to
    multiples of most / 20,000, so that the result stays within the budget but may be a little worse than the best.

    Args:
        units: what is to be decided.
        most: bits.

    Raises:
        UsageError: not even the least widths fit; the message names the least budget.
    """
    import torch

    least = sum(min(unit.sizes.values()) for unit in units)
    if least > most:
        weights = sum(unit.weights for unit in units)
        raise UsageError(
            f"a budget of {most / weights:.4g} bits per weight cannot be met: scales included, the least that these "
            f"matrices take is {math.ceil(least / weights * 100) / 100:g}"
        )
    common = math.gcd(*(size for unit in units for size in unit.sizes.values()))
    step = max(common, -(-most // _CELLS))
    cells = most // step + 1
    best = torch.zeros(cells, dtype=torch.float64)  # least error of the units so far within each size
    taken = []
    for unit in units:
        widths = sorted(unit.sizes)
        rows = torch.full((len(widths), cells), math.inf, dtype=torch.float64)
        for row, width in zip(rows, widths, strict=True):
            size = -(-unit.sizes[width] // step)
            if size < cells:
                row[size:] = best[: cells - size] + unit.errors[width]
        best, place = rows.min(0)
        taken.append(place.to(torch.int8))
    return _traced(units, taken, cells - 1, step) if math.isfinite(best[-1]) else [min(unit.sizes) for unit in units]


def _traced(units: Sequence[Unit], taken: "Sequence[Tensor]", cell: int, step: int) -> list[int]:
    """The choices that led to the last entry of the table, from the last unit back to the first."""
    chosen = []
    for unit, places in zip(reversed(units), reversed(taken), strict=True):
        width = sorted(unit.sizes)[int(places[cell])]
        chosen.append(width)
        cell -= -(-unit.sizes[width] // step)
    return chosen[::-1]


def widths_within(
    budget: float,
    treatment: Treatment,
    source: TensorSource,
    layout: Layout,
    recorded: Recorded,
    listen: Listener = silent,
) -> dict[str, dict[str, Any]]:
    """Options by matrix, for `Treatment.per_matrix`: the number of bits of each.

    Args:
        budget: bits per weight of the matrices that are treated, scales included.
        treatment: a method with an option `bits`.
        source: the model's tensors.
        layout: the model's parts.
        recorded: statistics with Hessians.
        listen: hears the blocks done.

    Raises:
        UsageError: the budget cannot be met, or groups do not divide.
    """
    units: list[Unit] = []
    for block in layout.blocks:
        listen(Progress("budget", block.index, len(layout.blocks)))
        tensors = read_block(source, block)
        roles = {linear.name: linear for linear in block.linears if linear.role in treatment.roles}
        for seen in recorded.block(block.index, hessian=True):
            chosen = [roles[name] for name in seen.names if name in roles]
            groups = [chosen] if "weights" in wants(treatment.function) else [[linear] for linear in chosen]
            hessian = seen.mean("hessian")
            for members in groups:
                if members:
                    weights = [tensors[linear.weight] for linear in members]
                    units.append(_unit(treatment, tuple(linear.name for linear in members), weights, hessian))
    for block in outer_blocks(layout, source, treatment.roles):
        (linear,) = block.linears
        hessian = seen_outside(block, layout, recorded.head()).mean("hessian")
        units.append(_unit(treatment, (linear.name,), [read_block(source, block)[linear.weight]], hessian))
    listen(Progress("budget", len(layout.blocks), len(layout.blocks)))
    widths = choose(units, math.floor(budget * sum(unit.weights for unit in units)))
    return {name: {"bits": width} for unit, width in zip(units, widths, strict=True) for name in unit.names}


def _unit(treatment: Treatment, names: tuple[str, ...], weights: "list[Tensor]", hessian: "Tensor") -> Unit:
    low = next(parameter.range.low for parameter in schema_of(treatment.function) if parameter.name == "bits")
    widths = range(int(low or 1), MOST_BITS + 1)
    loud = sum(output_error(weight, hessian) for weight in weights)
    sizes, errors = {}, {}
    for width in widths:
        made = [_rounded(treatment, name, weight, hessian, width) for name, weight in zip(names, weights, strict=True)]
        sizes[width] = sum(size for _, size in made)
        lost = sum(output_error(weight - dense, hessian) for weight, (dense, _) in zip(weights, made, strict=True))
        errors[width] = lost / loud if loud > 0 else 0.0
    return Unit(names, sum(weight.numel() for weight in weights), sizes, errors)


def _rounded(treatment: Treatment, name: str, weight: "Tensor", hessian: "Tensor", bits: int) -> "tuple[Tensor, int]":
    """A matrix at so many bits, and the size that the method will give it.

    Methods that repair errors with the Hessian are stood for by their grids alone: it is the order of matrices that
    counts, and to sweep each of them at each width would take many times as long as the making itself.
    """
    options, function = treatment.options_of(name) | {"bits": bits}, treatment.function
    wanted = wants(function)
    if set(wanted) <= {"weight", "input_norm", "seed"}:
        given = {"weight": weight, "input_norm": hessian.diagonal().sqrt(), "seed": options.pop("seed", 0)}
        made = function(*(given[each] for each in wanted), **options)
        return made.dense(), made.size_bits
    symmetric = bool(options.get("symmetric"))
    grouped = weight.reshape(weight.shape[0], -1, group_size(options["group"], weight.shape[1]))
    plain = quantize(grouped, fit(grouped, bits, symmetric), symmetric)
    scattered = options.get("act_order") and not options.get("static_groups", True)
    return plain.dense(), plain.size_bits + (32 * weight.shape[1] if scattered else 0)
