"""Embedding and head as matrices that weight methods may change: outside the blocks, and much of a small model.

What the head multiplies is known from calibration. An embedding that is looked up multiplies nothing: all of its
columns count alike. Where one matrix is both, the head's statistics count, and looking up adds a share of their mean.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING

from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import Block, Layout, Linear
from sizewise.make.statistics import Seen, add_products, mirror
from sizewise.make.stream import Stream

if TYPE_CHECKING:
    from torch import Tensor

OUTER = ("embedding", "head")
LOOKED_UP = 0.05  # of a matrix that is both: the share of the mean square input that looking up adds to each


def outer_blocks(layout: Layout, source: TensorSource, roles: Iterable[str]) -> list[Block]:
    """Those of embedding and head that are among the roles, each as a block of one matrix behind the real ones.

    A tied matrix comes once, whichever of its two roles is asked for.
    """
    asked = set(roles) & set(OUTER)
    modules = {"embedding": layout.embedding, "head": layout.head or layout.embedding}
    chosen = {modules[role]: role for role in OUTER if role in asked}
    blocks = []
    for place, (name, role) in enumerate(chosen.items()):
        rows, columns = source.shape(f"{name}.weight")
        bias = f"{name}.bias" in source
        linear = Linear(name, "head" if role == "head" else "embedding", bias=bias, shape=(rows, columns))
        blocks.append(Block(len(layout.blocks) + place, name, (linear,), ()))
    return blocks


def head_sums(stream: Stream) -> "dict[str, Tensor]":
    """Means over all tokens of what the head multiplies, of hidden states that have left the last block."""
    import torch

    width, tokens = stream.hidden.shape[-1], stream.hidden[..., 0].numel()
    products, size, largest = torch.zeros(width, width), torch.zeros(width, dtype=torch.float64), torch.zeros(width)
    with torch.no_grad(), stream.normed() as normed:
        for batch in torch.split(stream.hidden, 8):
            rows = normed(batch.to(stream.compute)).reshape(-1, width).float()
            add_products(products, rows)
            size += rows.abs().sum(0, dtype=torch.float64)
            largest = largest.maximum(rows.abs().amax(0))
    mirror(products)
    return {"hessian": products / tokens, "abs_mean": (size / tokens).float(), "abs_max": largest}


def seen_outside(block: Block, layout: Layout, sums: "dict[str, Tensor]") -> Seen:
    """What the matrix of such a block multiplies.

    Args:
        block: of `outer_blocks`.
        layout: the model's parts.
        sums: of `head_sums`.
    """
    import torch

    (linear,) = block.linears
    width = linear.shape[1]
    if (linear.name == layout.embedding and not layout.tied) or len(sums["hessian"]) != width:
        hessian, even = torch.eye(width), torch.ones(width)
        found = {"hessian": hessian, "abs_mean": even, "abs_max": even}
    else:
        found = dict(sums)
        if layout.tied:
            found["hessian"] = sums["hessian"] + torch.eye(width) * LOOKED_UP * sums["hessian"].diagonal().mean()
    found["input_norm"] = found["hessian"].diagonal().clone()
    return Seen((linear.name,), tokens=1, windows=1, sums=found)
