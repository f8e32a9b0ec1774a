"""Which tensor of a GGUF gets how many bits: the mixes that the names Q2_K, Q4_K_M, ... stand for.

A mix is a base type and exceptions: values, the second half of the feed-forward and the last matrix hurt most when
they lose bits, the more so in the first and last layers. The rules are those of llama.cpp, so that a file made here has
the size and the types that its name promises everywhere. No importance matrix is used.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from sizewise.load.gguf.file import GgufInfo, TensorInfo
from sizewise.load.gguf.types import BY_NAME, GgmlType

Part = Literal["embedding", "output", "attn_v", "attn_k", "attn_output", "ffn_down", "other"]
When = Literal["always", "grouped", "first 2", "first 4", "first sixteenth", "first eighth", "edges and every third"]
Rules = tuple[tuple[When, str], ...]


@dataclass(frozen=True, slots=True)
class Mix:
    """A base type, and for some parts of the model the types that replace it: the first rule that holds counts."""

    base: str
    rules: dict[Part, Rules] = field(default_factory=dict)


def _both(rules: Rules) -> dict[Part, Rules]:
    return {"attn_v": rules, "ffn_down": rules}


MIXES: dict[str, Mix] = {
    **{name: Mix(name) for name in ("F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_0", "Q5_1", "Q4_0", "Q4_1")},
    "Q5_K_M": Mix("Q5_K", _both((("edges and every third", "Q6_K"),))),
    "Q5_K_S": Mix("Q5_K"),
    "Q4_K_M": Mix("Q4_K", _both((("edges and every third", "Q6_K"),))),
    "Q4_K_S": Mix("Q4_K", {"attn_v": (("first 4", "Q5_K"),), "ffn_down": (("first eighth", "Q5_K"),)}),
    "IQ4_NL": Mix("IQ4_NL", {"attn_v": (("grouped", "Q5_K"),), "ffn_down": (("first eighth", "Q5_K"),)}),
    "IQ4_XS": Mix("IQ4_XS", {"attn_v": (("grouped", "Q5_K"),), "ffn_down": (("first eighth", "Q5_K"),)}),
    "Q3_K_L": Mix("Q3_K", dict.fromkeys(("attn_v", "attn_output", "ffn_down"), (("always", "Q5_K"),))),
    "Q3_K_M": Mix(
        "Q3_K",
        {
            "attn_v": (("first 2", "Q5_K"), ("always", "Q4_K")),
            "attn_output": (("always", "Q4_K"),),
            "ffn_down": (("first sixteenth", "Q5_K"), ("always", "Q4_K")),
        },
    ),
    "Q3_K_S": Mix("Q3_K"),
    "Q2_K": Mix(
        "Q2_K",
        {
            "attn_v": (("grouped", "Q4_K"), ("always", "Q3_K")),
            "attn_output": (("always", "Q3_K"),),
            "ffn_down": (("always", "Q3_K"),),
        },
    ),
}
# Falcon puts attention and feed-forward side by side, so other parts are the sensitive ones.
_FALCON: dict[str, dict[Part, Rules]] = {
    "Q2_K": {"attn_output": ()},
    "Q3_K_M": {
        "attn_output": (),
        "ffn_down": (("first sixteenth", "Q5_K"), ("edges and every third", "Q4_K")),
    },
    "Q3_K_L": {"attn_output": (("always", "Q4_K"),), "ffn_down": (("always", "Q4_K"),)},
    "Q4_K_M": {"ffn_down": (("first sixteenth", "Q6_K"), ("edges and every third", "Q5_K"))},
    "Q4_K_S": {"ffn_down": ()},
}
# Blocks of 256 weights need rows that 256 divides; the nearest block of 32 that is no worse takes their place.
_FALLBACK = {"Q2_K": "Q4_0", "Q3_K": "Q4_0", "Q4_K": "Q5_0", "Q5_K": "Q5_1", "Q6_K": "Q8_0", "IQ4_XS": "IQ4_NL"}
_EIGHT_EXPERTS = frozenset({"Q2_K", "Q3_K_S", "Q3_K_M", "IQ4_NL", "Q4_K_S", "Q4_K_M", "IQ4_XS"})

# Small or delicate: kept as they are. The first two by whole name, the rest by a piece of it.
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})
_KEPT_PIECES = (
    *("_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj"),
    *("ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "attn_rel_b.weight"),
    *("time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight", "time_mix_v0.weight"),
    *("time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight", "time_mix_a2.weight"),
    *("time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight", "time_mix_decay_w2.weight"),
    *("time_mix_lerp_fused.weight", ".position_embd", "sam.pos_embd", "sam.neck.", "sam.net_", ".rel_pos"),
    *(".patch_embd", ".patch_merger", "a.rvq.codebook", "mm.a.code_embd"),
)
_PARTS: tuple[tuple[str, Part], ...] = (
    ("attn_qkv.weight", "attn_v"),
    ("attn_kv_b.weight", "attn_v"),
    ("attn_v.weight", "attn_v"),
    ("attn_k.weight", "attn_k"),
    ("attn_output.weight", "attn_output"),
    ("ffn_down", "ffn_down"),
)


def assign(info: GgufInfo, mix: str) -> dict[str, GgmlType]:
    """The type of every tensor of `info` in the mix of that name.

    Args:
        info: the model's header.
        mix: a key of `MIXES`.
    """
    plan = MIXES[mix]
    base = BY_NAME[plan.base]
    types = {tensor.name: tensor.type for tensor in info.tensors}
    chosen = [tensor for tensor in sorted(info.tensors, key=_layer_order) if may_change(tensor)]
    if not base.quantized:
        return types | {tensor.name: base for tensor in info.tensors if may_change(tensor) or tensor.type.quantized}
    shape = _shape_of(info)
    seen: dict[Part, int] = {}
    for tensor in chosen:
        part = part_of(tensor.name)
        place = seen.get(part, 0)
        seen[part] = place + 1
        if part == "ffn_down" and shape.experts > 1:  # experts come in any order: only the name tells the layer
            place = max(_layer_order(tensor)[0], 0)
        name = _type_name(mix, plan, tensor, part, place, shape)
        types[tensor.name] = fitting(BY_NAME[name], tensor.shape[0])
    return types


def may_change(tensor: TensorInfo) -> bool:
    """True for the large matrices; norms, biases, routers and position tables keep the type that they have."""
    name = tensor.name
    matrix = sum(size > 1 for size in tensor.shape[1:]) >= 1
    kept = name in _KEPT_NAMES or any(piece in name for piece in _KEPT_PIECES)
    return matrix and name.endswith("weight") and not kept


def fitting(kind: GgmlType, width: int) -> GgmlType:
    """`kind`, or the one that takes its place where rows of `width` weights do not fit its blocks."""
    if width % kind.block == 0:
        return kind
    fallback = BY_NAME[_FALLBACK.get(kind.name, "F16")]
    return fallback if width % fallback.block == 0 else BY_NAME["F16"]


def part_of(name: str) -> Part:
    """What a tensor does in the model."""
    if name == "output.weight":
        return "output"
    if name in ("token_embd.weight", "per_layer_token_embd.weight"):
        return "embedding"
    return next((part for piece, part in _PARTS if piece in name), "other")


@dataclass(frozen=True, slots=True)
class _Shape:
    """What the rules need to know of a model."""

    falcon: bool
    tied: bool  # the embedding is also the last matrix
    experts: int
    heads_per_group: int
    layers: int
    values: int  # how many tensors are attention values


def _shape_of(info: GgufInfo) -> _Shape:
    def number(key: str, default: int) -> int:
        value = info.metadata.get(f"{info.architecture}.{key}", default)
        value = value[0] if isinstance(value, list) and value else value
        return value if isinstance(value, int) else default

    heads = number("attention.head_count", 1)
    parts = [part_of(tensor.name) for tensor in info.tensors]
    return _Shape(
        falcon=info.architecture == "falcon",
        tied="output" not in parts,
        experts=number("expert_count", 0),
        heads_per_group=heads // max(number("attention.head_count_kv", heads), 1),
        layers=info.block_count or 0,
        values=parts.count("attn_v"),
    )


def _type_name(mix: str, plan: Mix, tensor: TensorInfo, part: Part, place: int, shape: _Shape) -> str:
    base = BY_NAME[plan.base]
    if part == "output" or (part == "embedding" and shape.tied):
        if shape.falcon or tensor.shape[0] % base.block or base.name == "Q8_0":
            return "Q8_0"
        return "Q6_K"
    if shape.experts == 8 and part in ("attn_v", "attn_k"):
        return "Q8_0"  # small next to the experts
    if shape.experts == 8 and part == "attn_output" and not shape.falcon:
        return "Q5_K" if mix in _EIGHT_EXPERTS else plan.base
    rules = plan.rules.get(part, ())
    if shape.falcon:
        rules = _FALCON.get(mix, {}).get(part, rules)
    count = shape.values if part == "attn_v" else shape.layers
    name = next((name for when, name in rules if _holds(when, place, count, shape)), plan.base)
    if part == "attn_v" and shape.layers == 80 and name in ("Q3_K", "Q4_K"):
        return "Q5_K"  # in models of 70B eight heads share one value matrix
    return name


def _holds(when: When, place: int, count: int, shape: _Shape) -> bool:
    eighth = count // 8
    return {
        "always": True,
        "grouped": shape.heads_per_group >= 4,
        "first 2": place < 2,
        "first 4": place < 4,
        "first sixteenth": place < count // 16,
        "first eighth": place < eighth,
        "edges and every third": place < eighth or place >= 7 * count // 8 or (place - eighth) % 3 == 2,
    }[when]


def _layer_order(tensor: TensorInfo) -> tuple[int, str]:
    match = re.match(r"blk\.(\d+)\.", tensor.name)
    return (int(match.group(1)) if match else -1, tensor.name)


def average_bits(info: GgufInfo, types: dict[str, GgmlType], tensors: Sequence[TensorInfo] | None = None) -> float:
    """Bits per weight of the tensors, scales included, header left out."""
    chosen = info.tensors if tensors is None else tensors
    return sum(types[tensor.name].bits * tensor.elements for tensor in chosen) / sum(t.elements for t in chosen)
