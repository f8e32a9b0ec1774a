"""SliceGPT: rotate the residual stream to its principal axes and cut off the quietest (arXiv:2401.15024).

A network whose norms only divide by a length computes the same in any rotated residual stream: what writes into the
stream is rotated, what reads from it is rotated back. So the norms' weights are first moved into the matrices that
follow them, then everything is rotated by the eigenvectors of the stream's second moments, and the axes with the least
energy are left out.

One rotation serves all blocks here. The paper's rotation for each block is closer to each block's own axes, but it
needs a matrix between any two blocks, which no stock class has; with one rotation the result is an ordinary network of
smaller width. The second moments of all blocks are averaged, each divided by its trace, so that the loud last blocks
do not decide alone.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from sizewise.core.errors import Unsupported
from sizewise.core.params import Range, Search
from sizewise.load.layers import Layout
from sizewise.make.method import structure_method
from sizewise.make.packed import Reshaped
from sizewise.make.reshape import Tensors, check_config, count_stream, set_size, stretch_epsilon

if TYPE_CHECKING:
    from torch import Tensor

_DAMPING = 0.01  # of the mean eigenvalue, as in the paper


@structure_method
def slicegpt(
    layout: Layout,
    config: dict[str, Any],
    tensors: Tensors,
    attention_gram: "Tensor",
    ffn_gram: "Tensor",
    final_gram: "Tensor",
    *,
    share: Annotated[float, Range(0, 1), Search(0.1, 0.2, 0.25)] = 0.2,
    multiple: Annotated[int, Range(1)] = 32,
) -> Reshaped:
    """Prune: rotate the residual stream to its principal axes and leave out the quietest.

    Args:
        layout: the network's parts.
        config: its config.json.
        tensors: its tensors.
        attention_gram: (n, hidden, hidden), mean of x xT of the stream before each attention.
        ffn_gram: (n, hidden, hidden), the same before each feed-forward.
        final_gram: (hidden, hidden), the same after the last block.
        share: share of the axes to leave out; 0 returns the network untouched.
        multiple: how many axes stay is a multiple of this, so that blocks of quantized weights fit; where the heads
            do not divide such a number, a multiple of theirs.

    Returns:
        A network of the same kind and smaller width with a head of its own, which stock transformers loads.

    Raises:
        Unsupported: the family's norms do more than divide by a length.
        UsageError: nothing would stay, or transformers refuses the width.
    """
    count = count_stream(layout.hidden, share, multiple, layout.heads, "axes")
    if count == layout.hidden:
        return Reshaped(config, ((name, tensors.get(name)) for name in tensors), {"hidden": count})
    refuse_other_norms(layout)
    axes, kept = principal_axes([*attention_gram, *ffn_gram, final_gram], count)
    figures = {"hidden": count, "energy_kept": round(kept, 6)}
    return Reshaped(sliced_config(config, layout, count), rotated(layout, tensors, axes), figures)


def refuse_other_norms(layout: Layout) -> None:
    """See that the stream can be rotated.

    Raises:
        Unsupported: norms subtract a mean, or are applied to what is about to be added to the stream.
    """
    after = any("post_feedforward" in norm for norm in layout.blocks[0].norms)
    if layout.norm_kind != "rms" or after or layout.final_norm is None:
        what = "norms what it adds to the residual stream" if after else "subtracts the mean in its norms"
        raise Unsupported(f"{layout.family} {what}, so its residual stream cannot be rotated; take width or depth")


def principal_axes(grams: "list[Tensor]", count: int) -> "tuple[Tensor, float]":
    """The axes of most energy.

    Args:
        grams: second moments (hidden, hidden), positive semidefinite.
        count: how many axes.

    Returns:
        (hidden, count) float64 with orthonormal columns, most energy first; and their share of the energy.
    """
    import torch

    total = sum(
        (gram.double() / gram.double().trace().clamp(min=1e-30) for gram in grams), start=torch.zeros(()).double()
    )
    total = total / len(grams)
    damped = total + _DAMPING * total.diagonal().mean() * torch.eye(len(total), dtype=total.dtype)
    axes = torch.linalg.eigh(damped).eigenvectors.flip(1)[:, :count]
    return axes, float(torch.einsum("ij,ik,kj->", axes, total, axes) / total.trace())


def sliced_config(config: dict[str, Any], layout: Layout, count: int) -> dict[str, Any]:
    """config.json of the network with a stream of `count` axes."""
    changed = dict(config) | {"head_dim": layout.head_dim, "tie_word_embeddings": False}
    set_size(changed, layout, "hidden", count)
    stretch_epsilon(changed, layout.hidden / count)
    check_config(changed)
    return changed


def rotated(layout: Layout, tensors: Tensors, axes: "Tensor") -> Iterator[tuple[str, "Tensor"]]:
    """All tensors of the network in the rotated stream, norms fused into what follows them.

    Args:
        layout: the network's parts.
        tensors: its tensors.
        axes: (hidden, count) with orthonormal columns; count = hidden changes nothing but rounding.
    """
    import torch

    count = axes.shape[1]
    norm_weight = (layout.hidden / count) ** 0.5  # a mean over fewer axes of nearly the same sum
    readers = {name: norm for block in layout.blocks for name, norm in _readers(block).items()}
    writers = {linear.name for block in layout.blocks for linear in block.of("o", "down")}
    norms = {*readers.values(), layout.final_norm}

    def scale(norm: str | None) -> "Tensor":
        return tensors.get(f"{norm}.weight").double() + layout.norm_offset

    for name in tensors:
        tensor, (module, _, kind) = tensors.get(name), name.rpartition(".")
        wide = tensor.double()
        if module in readers and kind == "weight":
            wide = (wide * scale(readers[module])) @ axes
        elif module in writers:
            wide = axes.T @ wide
        elif module in norms:
            wide = torch.full((count,), norm_weight - layout.norm_offset)
        elif module == layout.embedding:
            if layout.tied:
                yield "lm_head.weight", ((wide * scale(layout.final_norm)) @ axes).to(tensor.dtype)
            wide = wide @ axes
        elif module == layout.head and kind == "weight":
            wide = (wide * scale(layout.final_norm)) @ axes
        if not (layout.tied and module == "lm_head"):  # a copy of the embedding that nobody reads
            yield name, wide.to(tensor.dtype).contiguous()


def _readers(block: Any) -> dict[str, str]:
    """The matrices that read the stream -> the norm before them: the first before attention, the second after it."""
    attention, feed = block.norms[0], block.norms[1]
    found = {linear.name: attention for linear in block.of("q", "k", "v", "qkv")}
    return found | {linear.name: feed for linear in block.of("gate", "up", "gate_up")}
