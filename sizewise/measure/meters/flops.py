"""FLOPs per token: what the architecture needs for one token, whatever runs it.

A decoder multiplies each weight of its matrices once by an activation and adds the product: 2 FLOPs per weight. The
input embedding is looked up, not multiplied (where it is the output matrix too it is multiplied there, once). In each
layer the token's query meets the keys of all `positions` tokens so far, and their values are summed with the result: 2
FLOPs each per position and channel, so 4 * layers * positions * channels. Norms, softmax and activations are left out;
they are under 1 % for any model worth counting. In a mixture of experts only the experts that a token visits count.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sizewise.core.errors import SizewiseError
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.model import Model

POSITIONS = 512
_NAME, _UNIT = "flops_per_token", "FLOP"
# Families whose positions are a table to look up: which setting says how many rows it has, and how many it has beyond.
_LEARNED = {"gpt2": (("n_positions", "max_position_embeddings"), 0), "opt": (("max_position_embeddings",), 2)}
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts")  # families call their number so


@dataclass(frozen=True, slots=True)
class Shape:
    """What the closed form needs to know of an architecture."""

    weights: int  # all of them, the input embedding included
    embedding: int  # weights of the input embedding of which a token picks a row
    tied: bool  # the input embedding is the output matrix too
    layers: int
    channels: int  # of all query heads together
    experts: int = 0  # weights of all experts of all layers
    experts_used: float = 1.0  # share of the experts that one token visits


def flops(model: Model, positions: int = POSITIONS) -> Measurement:
    """Forward FLOPs of one token that attends to `positions` tokens.

    Args:
        model: a decoder, as GGUF or checkpoint.
        positions: tokens attended to, the token itself included.
    """
    if model.kind not in ("gguf", "checkpoint") or not model.files:
        return unmeasured(_NAME, _UNIT, f"there are no tokens to count for a model of kind {model.kind}")
    try:
        shape = _shape_of_gguf(model) if model.kind == "gguf" else _shape_of_checkpoint(model)
    except SizewiseError as error:
        return unmeasured(_NAME, _UNIT, str(error))
    if shape is None:
        return unmeasured(_NAME, _UNIT, "the model's files do not say how many layers and channels it has")
    method = f"2 per multiplied weight + 4 x layers x channels x {positions} positions"
    return Measurement(_NAME, _UNIT, flops_of(shape, positions), provenance="estimated", method=method)


def flops_of(shape: Shape, positions: int) -> float:
    """The closed form."""
    multiplied = shape.weights - (0 if shape.tied else shape.embedding)
    multiplied -= round(shape.experts * (1 - shape.experts_used))
    return float(2 * multiplied + 4 * shape.layers * positions * shape.channels)


def _shape_of_gguf(model: Model) -> Shape | None:
    from sizewise.load.gguf.file import read_gguf

    info = read_gguf(next(iter(model.files.values())))
    elements = {tensor.name: tensor.elements for tensor in info.tensors}
    if not info.block_count or not info.embedding_length or "token_embd.weight" not in elements:
        return None

    def fact(key: str) -> Any:
        return info.metadata.get(f"{info.architecture}.{key}")

    heads, head_width = fact("attention.head_count"), fact("attention.key_length")
    wide = isinstance(heads, int) and isinstance(head_width, int)
    count, used = fact("expert_count"), fact("expert_used_count")
    return Shape(
        weights=sum(elements.values()) - elements.get("position_embd.weight", 0),  # looked up, never multiplied
        embedding=elements["token_embd.weight"],
        tied="output.weight" not in elements,
        layers=info.block_count,
        channels=heads * head_width if wide else info.embedding_length,
        experts=sum(size for name, size in elements.items() if name.endswith("_exps.weight")),
        experts_used=used / count if count and used else 1.0,
    )


def _shape_of_checkpoint(model: Model) -> Shape | None:
    import json

    path = model.files.get("config.json")
    config = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    layers, width = config.get("num_hidden_layers", config.get("n_layer")), config.get("hidden_size")
    width = width or config.get("n_embd")
    vocabulary = config.get("vocab_size")
    if not (model.parameters and layers and width and vocabulary):
        return None
    heads = config.get("num_attention_heads", config.get("n_head"))
    channels = heads * config["head_dim"] if heads and config.get("head_dim") else width
    tied = config.get("tie_word_embeddings", True)
    keys, more = _LEARNED.get(config.get("model_type", ""), ((), 0))
    positions = next((config[key] + more for key in keys if key in config), 0)
    count = next((config[key] for key in _EXPERTS if config.get(key)), 0)
    used = config.get("num_experts_per_tok") or count
    inner = config.get("moe_intermediate_size") or config.get("intermediate_size") or 0
    return Shape(
        weights=model.parameters - positions * width,
        embedding=_looked_up(model) or vocabulary * width,
        tied=bool(tied),
        layers=layers,
        channels=channels,
        experts=_expert_weights(model, width * inner) if count else 0,
        experts_used=used / count if count else 1.0,
    )


def _looked_up(model: Model) -> int:
    """Weights in that factor of the input embedding which has a row for each token; 0 where it is one matrix."""
    from sizewise.load.layers import EMBEDDINGS

    ends = tuple(f"{name}.weight_left" for name in EMBEDDINGS)
    return next((math.prod(tensor.shape) for name, tensor in _tensors(model) if name.endswith(ends)), 0)


def _tensors(model: Model) -> Iterator[tuple[str, Any]]:
    """Name and header of each tensor of a checkpoint."""
    from sizewise.load.checkpoint.folder import read_safetensors_header

    for title, path in model.files.items():
        if title.endswith(".safetensors"):
            yield from read_safetensors_header(path).items()


def _expert_weights(model: Model, matrix: int) -> int:
    """Weights of all experts; `matrix` is how many one of their matrices has where it is kept as integers."""
    total = 0
    for name, tensor in _tensors(model):
        _, is_expert, rest = name.partition(".experts.")
        if is_expert and rest.endswith(("weight", "weight_left", "weight_right")):
            total += math.prod(tensor.shape)
        elif is_expert and rest.endswith(("weight_packed", "weight_codes")):
            total += matrix
    return total
