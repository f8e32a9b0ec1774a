"""What llama.cpp calls the tensors of a checkpoint, and how it wants their rows ordered.

A name is translated part by part (block, role, weight or bias), after the same rows of `load.layers` that the rest of
the package reads. What changes besides the name:

    permuted rows    llama.cpp rotates pairs of neighbours where transformers rotates the two halves of a head: rows of
                     q and k of the llama kind are shuffled so that both compute the same
    gathered rows    Falcon interleaves q, k and v group by group; llama.cpp wants all of q, then k, then v
    transposed       GPT-2's Conv1D
    offset           Gemma's norms are stored around 0 and used around 1; llama.cpp stores what is used
    stacked          the experts of a layer are one tensor

Phi-3.5-MoE needs more. Its norms subtract the mean, its two experts add up with a weight near 1 each; llama.cpp's
`phimoe` has norms that do not, and weights that add up to 1. So everything that writes into the residual stream is
centred, which makes both norms the same function; experts are doubled and the router is made so flat that both experts
get a half. What stays different are ties: transformers shares the weight among experts that are within 2 % of the best.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import Unsupported
from sizewise.load.layers import family_of, fused_rows, head_dim_of, kv_heads_of

ARCHITECTURES = {
    **{name: name for name in ("llama", "qwen2", "qwen3", "gemma2", "phi3", "phimoe", "granite", "falcon", "gpt2")},
    "smollm3": "smollm3",
    "mistral": "llama",
    "gemma3_text": "gemma3",
    "phi": "phi2",
}
_ROLES = {"q": "attn_q", "k": "attn_k", "v": "attn_v", "qkv": "attn_qkv", "o": "attn_output", "router": "ffn_gate_inp"}
_ROLES |= {"gate": "ffn_gate", "up": "ffn_up", "gate_up": "ffn_up", "down": "ffn_down"}
_NORMS = {"input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "ln_1": "attn_norm"}
_NORMS |= {"ln_2": "ffn_norm", "ln_mlp": "attn_norm", "ln_attn": "attn_norm_2"}
_NORMS |= {"self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm"}
_GEMMA_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
ROUTER_SCALE = 2.0**-14  # flat enough for halves to 1e-4, steep enough to tell experts apart in 32 bits
_PERMUTED = frozenset({"llama", "granite", "smollm3"})  # architectures that rotate neighbours


@dataclass(frozen=True, slots=True)
class Place:
    """Where one tensor of a checkpoint goes, and what happens to it on the way."""

    gguf: str
    expert: int | None = None
    rows: NDArray[np.int64] | None = None  # row i of the GGUF is row rows[i] of the checkpoint
    transposed: bool = False
    offset: float = 0.0
    centred: int | None = None  # along which axis the mean is subtracted
    scale: float = 1.0  # a power of 2

    @property
    def whole(self) -> bool:
        """True where rows cannot be turned some at a time."""
        return self.rows is not None or self.transposed or self.centred == 0

    def encode(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """From the checkpoint's form to the GGUF's."""
        values = values.T if self.transposed else values
        values = values if self.rows is None else values[self.rows]
        if self.centred is not None:
            mean = values.mean(axis=self.centred, keepdims=True, dtype=np.float64)
            values = ((values - mean) * self.scale).astype(np.float32)
        elif self.scale != 1:
            values = values * np.float32(self.scale)
        return values + np.float32(self.offset) if self.offset else values

    def decode(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """The inverse of `encode`, except for means; an offset costs the last bits of numbers near 0."""
        values = values - np.float32(self.offset) if self.offset else values
        values = values / np.float32(self.scale) if self.scale != 1 else values
        if self.rows is not None:
            restored = np.empty_like(values)
            restored[self.rows] = values
            values = restored
        return np.ascontiguousarray(values.T) if self.transposed else values


class Names:
    """Both directions for one model. `config` is transformers' own; `prefix` that of the names in the files.

    `flattened`: a Phi-3.5-MoE as it is written here, see above; files from elsewhere are not.
    """

    def __init__(self, config: Any, prefix: str | None = None, *, flattened: bool = False) -> None:
        """Raises Unsupported where llama.cpp has no such architecture, or the family has no row in `load.layers`."""
        if config.model_type not in ARCHITECTURES:
            family_of(config.model_type)
            raise Unsupported(f"llama.cpp has no architecture for family {config.model_type!r}, so GGUF cannot hold it")
        self.config, self.family = config, family_of(config.model_type)
        self.architecture = ARCHITECTURES[config.model_type]
        self.flattened = flattened and self.architecture == "phimoe"
        self.prefix = self.family.prefix if prefix is None else prefix
        self._norms = _NORMS | (_GEMMA_NORMS if self.family.norm_offset else {})
        self._outside = {
            self.prefix + self.family.embedding: "token_embd",
            self.prefix + self.family.final_norm: "output_norm",
            "lm_head": "output",
        }
        if self.family.positions:
            self._outside[self.prefix + self.family.positions] = "position_embd"

    def place(self, name: str) -> Place:
        """Where the tensor `name` of a checkpoint goes.

        Raises:
            Unsupported: llama.cpp has no tensor for it.
        """
        module, _, kind = name.rpartition(".")
        offset = self.family.norm_offset
        if module in self._outside:
            title = self._outside[module]
            centred = 1 if self.flattened and title == "token_embd" else None
            return Place(f"{title}.{kind}", offset=offset if title == "output_norm" else 0.0, centred=centred)
        block = re.fullmatch(rf"{re.escape(self.prefix + self.family.blocks)}\.(\d+)\.(.+)", module)
        if block:
            index, short = block.groups()
            if short in self.family.norms and short in self._norms:
                return Place(f"blk.{index}.{self._norms[short]}.{kind}", offset=offset)
            for pattern, role in self.family.linears.items():
                if match := re.fullmatch(pattern, short):
                    return self._linear(int(index), role, kind, match)
        raise Unsupported(f"llama.cpp's {self.architecture} has no tensor for {name}")

    def _linear(self, index: int, role: str, kind: str, match: re.Match[str]) -> Place:
        expert = int(match.group(1)) if match.groups() else None
        title = _ROLES[role] + ("" if expert is None else "_exps")
        turned = self.family.transposed and kind == "weight"
        place = Place(f"blk.{index}.{title}.{kind}", expert, self._rows(role), turned)
        if not self.flattened:
            return place
        scale = {"down": 2.0, "router": ROUTER_SCALE}.get(role, 1.0)
        return replace(place, centred=0 if role in ("o", "down") else None, scale=scale)

    def _rows(self, role: str) -> NDArray[np.int64] | None:
        width = head_dim_of(self.config)
        if role in ("q", "k") and self.architecture in _PERMUTED:
            heads = self.config.num_attention_heads if role == "q" else kv_heads_of(self.config)
            return _rotated(heads, width)
        if role == "qkv" and self.architecture == "falcon":
            return _gathered(fused_rows(self.config, role))
        return None

    def sources(self, gguf_name: str, present: Iterable[str]) -> list[str]:
        """The tensors of a checkpoint that are in the tensor `gguf_name` of a file that holds those in `present`.

        Raises:
            Unsupported: the family has no tensor for it.
        """
        stem, _, kind = gguf_name.rpartition(".")
        for module, title in self._outside.items():
            if stem == title:
                return [f"{module}.{kind}"]
        block = re.fullmatch(r"blk\.(\d+)\.(\w+)", stem)
        short = self._inside(block.group(2), f"blk.{block.group(1)}.attn_norm_2.weight" in present) if block else ()
        if not block or not short:
            raise Unsupported(f"nothing in {self.config.model_type} corresponds to the tensor {gguf_name}")
        return [f"{self.prefix}{self.family.blocks}.{block.group(1)}.{part}.{kind}" for part in short]

    def _inside(self, title: str, two_norms: bool) -> tuple[str, ...]:
        """Modules of a block for llama.cpp's name."""
        if self.architecture == "falcon" and title == "attn_norm":
            return ("ln_mlp",) if two_norms else ("input_layernorm",)
        if title.endswith("_exps"):
            patterns = [name for name, role in self.family.linears.items() if _ROLES[role] + "_exps" == title]
            count = int(self.config.num_local_experts)
            return tuple(patterns[0].replace(r"(\d+)", str(expert)) for expert in range(count)) if patterns else ()
        roles = {_ROLES[role]: name for name, role in self.family.linears.items() if "(" not in name}
        norms = {self._norms[name]: name for name in reversed(self.family.norms) if name in self._norms}
        found = roles.get(title) or norms.get(title)
        return (found,) if found else ()


def _rotated(heads: int, width: int) -> NDArray[np.int64]:
    """Neighbours of the result are as far apart as the halves of a head."""
    return np.arange(heads * width).reshape(heads, 2, width // 2).swapaxes(1, 2).reshape(-1)


def _gathered(rows: Iterable[tuple[str, int]]) -> NDArray[np.int64]:
    """All rows of q, then of k, then of v."""
    found: dict[str, list[NDArray[np.int64]]] = {"q": [], "k": [], "v": []}
    at = 0
    for part, count in rows:
        found[part].append(np.arange(at, at + count))
        at += count
    return np.concatenate([piece for part in ("q", "k", "v") for piece in found[part]])
