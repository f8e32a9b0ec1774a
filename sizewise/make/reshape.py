"""A network with fewer channels, heads or blocks: rows and columns that stay, and what config.json says then.

All blocks lose the same number of each, since config.json holds one number for all of them; which ones, each block
decides for itself, except for the channels of the residual stream, which all blocks share.
"""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from sizewise.core.errors import Unsupported, UsageError
from sizewise.load.layers import Block, Layout, Linear

if TYPE_CHECKING:
    from torch import Tensor

# What each family calls a size; the first name is the usual one.
_KEYS: dict[str, dict[str, tuple[str, ...]]] = {
    "hidden": {"gpt2": ("n_embd",), "opt": ("hidden_size", "word_embed_proj_dim")},
    "ffn": {"gpt2": ("n_inner",), "opt": ("ffn_dim",), "falcon": ("ffn_hidden_size",)},
    "layers": {"gpt2": ("n_layer",)},
    "heads": {},
    "kv_heads": {},
}
_USUAL = {
    "hidden": "hidden_size",
    "ffn": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "kv_heads": "num_key_value_heads",
}
# transformers computes the width of a head from the other sizes in these, so it would change with them
_WIDTH_IS_DERIVED = frozenset({"falcon", "gpt2", "opt"})
_OF_HEADS = ("q_norm", "k_norm", "q_layernorm", "k_layernorm")  # norms that are as wide as a head
_EPSILONS = ("rms_norm_eps", "layer_norm_eps", "layer_norm_epsilon")


class Tensors(Protocol):
    """Tensors by name, read when asked for."""

    def __contains__(self, name: object) -> bool: ...

    def __iter__(self) -> Iterator[str]: ...

    def get(self, name: str) -> "Tensor":
        """The tensor of that name, as stored."""
        ...


@dataclass(frozen=True, slots=True)
class Kept:
    """What stays, as ascending indices; None: everything. One row for each block where blocks may differ."""

    ffn: "Tensor | None" = None  # (n, k)
    heads: "Tensor | None" = None  # (n, k) query heads
    kv_heads: "Tensor | None" = None  # (n, k)
    hidden: "Tensor | None" = None  # (k,)


def set_size(config: dict[str, Any], layout: Layout, what: str, size: int) -> None:
    """Write a size into config.json under the name that the family has for it."""
    for key in _KEYS[what].get(layout.family, (_USUAL[what],)):
        config[key] = size


def keep_blocks(config: Mapping[str, Any], layout: Layout, kept: list[int]) -> dict[str, Any]:
    """config.json of a network that has the blocks `kept`, in that order; lists that go by block are cut too."""
    changed = dict(config)
    count = len(layout.blocks)
    set_size(changed, layout, "layers", len(kept))
    if any(block.window for block in layout.blocks) or "layer_types" in changed:
        kinds = ["sliding_attention" if block.window else "full_attention" for block in layout.blocks]
        changed["layer_types"] = kinds
    if layout.family == "smollm3" and "no_rope_layers" not in changed:
        every = int(changed.get("no_rope_layer_interval", 4))
        changed["no_rope_layers"] = [int((index + 1) % every != 0) for index in range(count)]
    for key, value in changed.items():
        if isinstance(value, list) and len(value) == count and key in ("layer_types", "no_rope_layers"):
            changed[key] = [value[index] for index in kept]
    return changed


def renamed(layout: Layout, tensors: Tensors, kept: list[int]) -> Iterator[tuple[str, "Tensor"]]:
    """The tensors of the blocks `kept` under their new numbers, and everything outside the blocks."""
    inside = {f"{layout.blocks[old].prefix}.": f"{layout.blocks[new].prefix}." for new, old in enumerate(kept)}
    stems = tuple(f"{block.prefix}." for block in layout.blocks)
    for name in tensors:
        stem = next((stem for stem in stems if name.startswith(stem)), None)
        if stem is None:
            yield name, tensors.get(name)
        elif stem in inside:
            yield inside[stem] + name.removeprefix(stem), tensors.get(name)


def narrow(config: Mapping[str, Any], layout: Layout, kept: Kept) -> dict[str, Any]:
    """config.json of a narrower network.

    Raises:
        Unsupported: transformers derives the width of a head from a size that would change.
        UsageError: transformers refuses these sizes.
    """
    changed = dict(config)
    if kept.ffn is not None:
        set_size(changed, layout, "ffn", kept.ffn.shape[1])
    if kept.heads is not None or kept.hidden is not None:
        _narrow_stream(changed, layout, kept)
    check_config(changed)
    return changed


def check_config(config: Mapping[str, Any]) -> None:
    """See whether transformers takes a config.json.

    Raises:
        UsageError: it does not; the message is its own.
    """
    from huggingface_hub.errors import StrictDataclassError
    from transformers import AutoConfig

    fields = {key: value for key, value in config.items() if key != "model_type"}
    try:
        AutoConfig.for_model(config["model_type"], **fields)
    except (ValueError, TypeError, KeyError, StrictDataclassError) as error:
        line = str(error).strip().splitlines()[-1].strip()
        raise UsageError(f"transformers refuses a network of these sizes; choose others: {line[:300]}") from error


def _narrow_stream(changed: dict[str, Any], layout: Layout, kept: Kept) -> None:
    if layout.family in _WIDTH_IS_DERIVED:
        raise Unsupported(f"{layout.family}: its heads must be as wide as hidden size / heads; prune --ffn only")
    changed["head_dim"] = layout.head_dim
    if kept.heads is not None:
        set_size(changed, layout, "heads", kept.heads.shape[1])
        set_size(changed, layout, "kv_heads", layout.kv_heads if kept.kv_heads is None else kept.kv_heads.shape[1])
    if kept.hidden is not None:
        if layout.norm_kind != "rms":
            raise Unsupported(
                f"{layout.family}: its norms subtract the mean over all hidden channels; prune --ffn or --heads"
            )
        set_size(changed, layout, "hidden", kept.hidden.numel())
        stretch_epsilon(changed, layout.hidden / kept.hidden.numel())


def stretch_epsilon(config: dict[str, Any], factor: float) -> None:
    """Multiply the norms' epsilon, which is added to a mean over fewer channels now."""
    for key in _EPSILONS:
        if key in config:
            config[key] = config[key] * factor


def narrowed(layout: Layout, tensors: Tensors, kept: Kept) -> Iterator[tuple[str, "Tensor"]]:
    """All tensors of a narrower network, such that it computes what the wide one does with the rest set to zero.

    A norm's mean is then taken over fewer channels of the same sum: its weight makes up for that.
    """
    owners = {linear.name: (block, linear) for block in layout.blocks for linear in block.linears}
    norms = {name for block in layout.blocks for name in block.norms if not name.endswith(_OF_HEADS)}
    norms.add(layout.final_norm or "")
    for name in tensors:
        tensor, (module, _, kind) = tensors.get(name), name.rpartition(".")
        if module in owners:
            tensor = _linear(layout, *owners[module], tensor, kind, kept)
        elif kept.hidden is not None and module in norms:
            tensor = _norm(layout, tensor[kept.hidden], module, kept.hidden.numel())
        elif kept.hidden is not None and module in (layout.embedding, layout.head, layout.positions):
            tensor = tensor[:, kept.hidden] if tensor.dim() == 2 else tensor
            tensor = _embedded(layout, tensor, module, kept.hidden.numel())
        yield name, tensor.contiguous()


def _norm(layout: Layout, weight: "Tensor", module: str, width: int) -> "Tensor":
    factor = (layout.hidden / width) ** 0.5
    if layout.norm_offset and layout.tied and module == layout.final_norm:
        factor *= (width / layout.hidden) ** 0.5  # takes back what `_embedded` did for the head
    scaled: Tensor = (weight.float() + layout.norm_offset) * factor - layout.norm_offset
    return scaled.to(weight.dtype)


def _embedded(layout: Layout, weight: "Tensor", module: str, width: int) -> "Tensor":
    """Gemma multiplies embeddings by the root of the width, which is smaller now."""
    if module != layout.embedding or not layout.norm_offset:
        return weight
    scaled: Tensor = weight.float() * (layout.hidden / width) ** 0.5
    return scaled.to(weight.dtype)


def _linear(layout: Layout, block: Block, linear: Linear, tensor: "Tensor", kind: str, kept: Kept) -> "Tensor":
    """The rows and columns that stay of a matrix, or the entries of its bias."""
    rows, columns = _rows(layout, block, linear, kept), _columns(layout, block, linear, kept)
    if kind == "bias":
        return tensor if rows is None else tensor[rows]
    matrix = tensor.T if linear.transposed else tensor
    matrix = matrix if rows is None else matrix[rows]
    matrix = matrix if columns is None else matrix[:, columns]
    return matrix.T if linear.transposed else matrix


def _rows(layout: Layout, block: Block, linear: Linear, kept: Kept) -> "Tensor | None":
    import torch

    if linear.role in ("o", "down"):
        return kept.hidden
    if linear.role == "router":
        return None
    heads, groups = _of(kept.heads, block), _of(kept.kv_heads, block)
    parts = {"q": _spread(heads, layout), "k": _spread(groups, layout), "v": _spread(groups, layout)}
    parts |= dict.fromkeys(("gate", "up"), _of(kept.ffn, block))
    found, at, whole = [], 0, True
    for part, count in linear.rows or ((linear.role, linear.shape[0]),):
        stay = parts.get(part)
        whole = whole and stay is None
        found.append(at + (torch.arange(count) if stay is None else stay))
        at += count
    return None if whole else torch.cat(found)


def _columns(layout: Layout, block: Block, linear: Linear, kept: Kept) -> "Tensor | None":
    if linear.role == "o":
        return _spread(_of(kept.heads, block), layout)
    return _of(kept.ffn, block) if linear.role == "down" else kept.hidden


def _of(kept: "Tensor | None", block: Block) -> "Tensor | None":
    return None if kept is None else kept[block.index]


def _spread(heads: "Tensor | None", layout: Layout) -> "Tensor | None":
    """Rows of whole heads."""
    import torch

    if heads is None:
        return None
    return (heads[:, None] * layout.head_dim + torch.arange(layout.head_dim)).reshape(-1)


def count_kept(total: int, share: float, multiple: int, what: str) -> int:
    """How many of `total` stay when `share` of them goes: a multiple, unless everything stays.

    Raises:
        UsageError: nothing would stay.
    """
    if share == 0:
        return total
    kept = round(total * (1 - share) / multiple) * multiple
    if kept < multiple:
        raise UsageError(f"of {total} {what} none would stay: prune less, or set a smaller --multiple than {multiple}")
    return min(total, kept)


def count_stream(hidden: int, share: float, multiple: int, heads: int, what: str) -> int:
    """How many channels of the residual stream stay: stock classes want a multiple of the number of heads.

    It is a multiple of `multiple` too where that comes within a twentieth of the share that was asked for.

    Raises:
        UsageError: nothing would stay.
    """
    wanted = hidden * (1 - share)
    for step in (math.lcm(min(multiple, hidden), heads), heads):
        kept = round(wanted / step) * step
        if share and 0 < kept <= hidden and abs(kept - wanted) <= hidden / 20:
            return kept
    return count_kept(hidden, share, min(multiple, hidden), what)


def largest(scores: "Tensor", count: int) -> "Tensor":
    """Indices of the `count` largest entries of each row, ascending; of equal ones the first."""
    return scores.argsort(dim=-1, descending=True, stable=True)[..., :count].sort(dim=-1).values
