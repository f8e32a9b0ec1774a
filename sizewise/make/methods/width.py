"""Width: leave out feed-forward channels, heads and hidden channels that carry little (Minitron, arXiv:2407.14679).

Importance comes from forward activations alone, L2 over windows of the mean |x| over a window: of each feed-forward
channel before the down projection, of each head's output, of each hidden channel after the norms. Heads go in groups,
since all query heads of a group share keys and values; where there is one group for all, query heads go one by one.

What is left out behaves as if it were zero, and nothing else changes: the result equals the masked network.
"""

from typing import TYPE_CHECKING, Annotated, Any

from sizewise.core.errors import Unsupported
from sizewise.core.params import Range, Search
from sizewise.load.layers import Layout
from sizewise.make.method import structure_method
from sizewise.make.packed import Reshaped
from sizewise.make.reshape import Kept, Tensors, count_kept, count_stream, largest, narrow, narrowed

if TYPE_CHECKING:
    from torch import Tensor


@structure_method
def width(
    layout: Layout,
    config: dict[str, Any],
    tensors: Tensors,
    channel_activation: "Tensor",
    head_activation: "Tensor",
    hidden_activation: "Tensor",
    *,
    ffn: Annotated[float, Range(0, 1), Search(0.1, 0.2, 0.3)] = 0.2,
    heads: Annotated[float, Range(0, 1)] = 0.0,
    hidden: Annotated[float, Range(0, 1)] = 0.0,
    multiple: Annotated[int, Range(1)] = 32,
) -> Reshaped:
    """Prune: leave out feed-forward channels, heads and hidden channels that carry little.

    Args:
        layout: the network's parts.
        config: its config.json.
        tensors: its tensors.
        channel_activation: (n, ffn), norm of each feed-forward channel.
        head_activation: (n, heads), norm of each head's output.
        hidden_activation: (hidden,), norm of each hidden channel after the norms.
        ffn: share of the feed-forward channels to leave out.
        heads: share of the heads to leave out, in whole groups that share keys and values.
        hidden: share of the hidden channels to leave out, the same in all blocks.
        multiple: how many channels stay is a multiple of this, so that blocks of quantized weights fit; hidden
            channels where the heads do not divide such a number are a multiple of theirs.

    Returns:
        A network of the same kind with smaller matrices, which stock transformers loads.

    Raises:
        Unsupported: the family cannot have heads or hidden channels of another number.
        UsageError: nothing would stay.
    """
    stay = _heads(layout, head_activation, heads)
    count = layout.heads if stay["heads"] is None else stay["heads"].shape[1]
    wide = count_stream(layout.hidden, hidden, multiple, count, "channels")
    kept = Kept(
        ffn=_channels(channel_activation, ffn, multiple),
        hidden=None if wide == layout.hidden else largest(hidden_activation, wide),
        **stay,
    )
    changed = narrow(config, layout, kept)
    figures = {
        "ffn": layout.ffn if kept.ffn is None else kept.ffn.shape[-1],
        "heads": layout.heads if kept.heads is None else kept.heads.shape[-1],
        "hidden": layout.hidden if kept.hidden is None else kept.hidden.numel(),
    }
    return Reshaped(changed, narrowed(layout, tensors, kept), figures)


def _channels(activation: "Tensor", share: float, multiple: int) -> "Tensor | None":
    total = activation.shape[-1]
    count = count_kept(total, share, min(multiple, total), "channels")
    return None if count == total else largest(activation, count)


def _heads(layout: Layout, activation: "Tensor", share: float) -> "dict[str, Tensor | None]":
    """Query heads and groups that stay."""
    import torch

    blocks, groups = len(layout.blocks), layout.kv_heads
    each = layout.heads // groups
    if share and layout.heads % groups:
        raise Unsupported(f"{layout.heads} heads in {groups} groups cannot be cut")
    if groups == 1:
        count = count_kept(layout.heads, share, 1, "heads")
        chosen = None if count == layout.heads else largest(activation, count)
        return {"heads": chosen, "kv_heads": None}
    count = count_kept(groups, share, 1, "groups of heads")
    if count == groups:
        return {"heads": None, "kv_heads": None}
    kept = largest(activation.reshape(blocks, groups, each).sum(2), count)  # (n, count)
    return {"heads": (kept[..., None] * each + torch.arange(each)).reshape(blocks, -1), "kv_heads": kept}
