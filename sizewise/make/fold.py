"""Where a scale of a matrix's input can go: into the norm before it, the values before the output projection, or "up".

A matrix that was multiplied by s, column by column, needs its input divided by s. A norm's weight and bias can be
divided; so can rows of the matrix that makes the input, where nothing but multiplications lies between: values pass
through attention unchanged in kind as long as each query head has values of its own, and "up" is multiplied by the
gate, or passes through a ReLU, which commutes with positive numbers.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from sizewise.load.layers import Block, Layout, Linear

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Outlet:
    """What divides an input: a norm, or some output rows of a matrix of the same block."""

    norm: str | None = None
    linear: Linear | None = None
    rows: tuple[range, ...] = ()


def outlet_of(layout: Layout, block: Block, names: tuple[str, ...], norm: str | None, activation: str) -> Outlet | None:
    """Where the scale of the input that the matrices `names` share can go; None: nowhere.

    Args:
        layout: of the model.
        block: that the matrices belong to.
        names: all matrices that get this input.
        norm: the norm that made the input, if one did.
        activation: config's name of the feed-forward's activation.
    """
    members = [linear for linear in block.linears if linear.name in names]
    if norm is not None:
        mixed = any(linear.role == "router" or linear.expert is not None for linear in members)
        return None if mixed else Outlet(norm=norm)  # experts get tokens of that norm by other ways too
    if len(members) != 1:
        return None
    if members[0].role == "o":
        source, part = _one(block, ("v", "qkv"), None), "v"
    elif members[0].role == "down":
        source, part = _one(block, ("up", "gate_up"), members[0].expert), "up"
        gated = bool(block.of("gate", "gate_up"))
        if not gated and activation != "relu":
            return None
    else:
        return None
    rows = source.rows_of(part) if source else ()
    fits = source is not None and sum(map(len, rows)) == members[0].shape[1] and len(rows) == 1
    return Outlet(linear=source, rows=rows) if fits else None


def _one(block: Block, roles: tuple[str, ...], expert: int | None) -> Linear | None:
    found = [linear for linear in block.of(*roles) if linear.expert == expert]
    return found[0] if len(found) == 1 else None


def divide(tensors: "dict[str, Tensor]", outlet: Outlet, scale: "Tensor", norm_offset: float) -> None:
    """Divide what `outlet` names by `scale`, in place of the tensors in the dictionary.

    Args:
        tensors: float32 tensors of the block by their names in the files; matrices as (out, in).
        outlet: what to divide.
        scale: (n,), positive.
        norm_offset: what the network adds to a norm's weight when it runs.
    """
    if outlet.norm is not None:
        weight = tensors[f"{outlet.norm}.weight"]
        tensors[f"{outlet.norm}.weight"] = (weight + norm_offset) / scale - norm_offset
        if f"{outlet.norm}.bias" in tensors:
            tensors[f"{outlet.norm}.bias"] = tensors[f"{outlet.norm}.bias"] / scale
    elif outlet.linear is not None:
        place = slice(outlet.rows[0].start, outlet.rows[0].stop)
        for name in (outlet.linear.weight, f"{outlet.linear.name}.bias"):
            if name in tensors:
                changed = tensors[name].clone()
                changed[place] /= scale if changed.dim() == 1 else scale[:, None]
                tensors[name] = changed
