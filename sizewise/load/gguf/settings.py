"""A model's settings in both worlds: config.json of transformers, and the metadata of a GGUF.

llama.cpp has constants where some families have settings. A setting that it cannot express is refused here, by name,
rather than dropped: the exported file would run and be another model.
"""

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.gguf.file import GgufInfo
from sizewise.load.gguf.names import ARCHITECTURES
from sizewise.load.layers import Layout

_SILU, _TANH = ("silu", "swish"), ("gelu_pytorch_tanh", "gelu_new", "gelu_fast")
_ACTIVATIONS = {"gemma2": _TANH, "gemma3": _TANH, "phi2": _TANH, "gpt2": _TANH, "falcon": (*_TANH, "gelu")}
_OWN_WINDOWS = frozenset({"gemma2", "gemma3"})  # llama.cpp attends within a window in these alone
_RMS = frozenset({"llama", "qwen2", "qwen3", "gemma2", "gemma3", "phi3", "phimoe", "granite", "smollm3"})


def metadata_of(config: Any, layout: Layout) -> tuple[dict[str, Any], list[str]]:
    """The metadata of a GGUF for a model, tokenizer left out.

    Args:
        config: transformers' configuration.
        layout: the same model's parts.

    Returns:
        Key -> value, and what a user of the file must know.

    Raises:
        Unsupported: a setting has no counterpart in llama.cpp.
    """
    architecture = ARCHITECTURES[layout.family]
    _refuse(config, architecture, layout)
    context, notes = _context(config, architecture, layout)
    norm = "layer_norm_rms_epsilon" if architecture in _RMS else "layer_norm_epsilon"
    epsilon = next(getattr(config, key) for key in _EPSILONS if getattr(config, key, None) is not None)
    values: dict[str, Any] = {
        "context_length": context,
        "embedding_length": layout.hidden,
        "block_count": len(layout.blocks),
        "feed_forward_length": layout.ffn,
        "vocab_size": layout.vocabulary,
        "attention.head_count": layout.heads,
        "attention.head_count_kv": layout.kv_heads,
        "attention.key_length": layout.head_dim,
        "attention.value_length": layout.head_dim,
        f"attention.{norm}": float(epsilon),
        **_rope(config, layout),
        **_own(config, architecture, layout),
    }
    return {f"{architecture}.{key}": value for key, value in values.items()}, notes


_EPSILONS = ("rms_norm_eps", "layer_norm_epsilon", "layer_norm_eps")


def rope_tensors(config: Any, layout: Layout) -> dict[str, NDArray[np.float32]]:
    """Tensors that stretch the rotation for long contexts: what each frequency is divided by."""
    rope = _rope_parameters(config)
    if rope.get("rope_type") == "llama3":
        return {"rope_freqs.weight": llama3_factors(rope, layout.head_dim)}
    if rope.get("rope_type") == "longrope":
        kinds = ("long", "short")
        return {f"rope_factors_{kind}.weight": np.array(rope[f"{kind}_factor"], np.float32) for kind in kinds}
    return {}


def _refuse(config: Any, architecture: str, layout: Layout) -> None:
    def refuse(what: str) -> None:
        raise Unsupported(f"llama.cpp's {architecture} {what}, so this model cannot be exported to GGUF")

    activation = next(
        (getattr(config, key) for key in ("hidden_activation", "hidden_act", "activation_function", "activation")
         if getattr(config, key, None)),
        None,
    )  # fmt: skip
    known = _ACTIVATIONS.get(architecture, _SILU)
    if activation not in known:
        refuse(f"has the activation {known[0]}, not {activation!r}")
    if getattr(config, "alibi", False) or getattr(config, "parallel_attn", True) is False:
        refuse("has rotary positions and parallel attention only")
    if getattr(config, "qk_layernorm", False) or getattr(config, "scale_attn_by_inverse_layer_idx", False):
        refuse("has neither norms of queries nor scales by layer")
    if layout.norm_kind == "layer" and architecture == "falcon" and any(linear.bias for linear in layout.linears):
        refuse("has no biases")
    scalar = getattr(config, "query_pre_attn_scalar", None)
    large = {"gemma2": 46, "gemma3": 62}.get(architecture) == len(layout.blocks)
    if scalar and scalar != (layout.hidden // layout.heads if large else layout.head_dim):
        refuse(f"scales attention by the head's width of {layout.head_dim}, not by {scalar}")
    if architecture == "smollm3" and list(config.no_rope_layers) != _no_rope(len(layout.blocks)):
        refuse("leaves out positions in every fourth layer and no other")


def _no_rope(layers: int) -> list[int]:
    return [0 if (index + 1) % 4 == 0 else 1 for index in range(layers)]


def _context(config: Any, architecture: str, layout: Layout) -> tuple[int, list[str]]:
    """Tokens of context: as many as the engine computes as the model would."""
    context = int(config.max_position_embeddings)
    if layout.window and layout.window < context and architecture not in _OWN_WINDOWS:
        note = (
            f"llama.cpp's {architecture} attends to all tokens where the model looks {layout.window} back: the context "
            f"is limited to {layout.window} of {context} tokens, within which both are the same"
        )
        return layout.window, [note]
    return context, []


def _rope_parameters(config: Any) -> dict[str, Any]:
    found = dict(getattr(config, "rope_parameters", None) or {})
    return dict(found.get("full_attention", found))


def _rope(config: Any, layout: Layout) -> dict[str, Any]:
    rope = _rope_parameters(config)
    if not rope or layout.positions:
        return {}
    kind = rope.get("rope_type", "default")
    share = rope.get("partial_rotary_factor") or getattr(config, "partial_rotary_factor", None) or 1.0
    values: dict[str, Any] = {
        "rope.dimension_count": int(layout.head_dim * share),
        "rope.freq_base": float(rope["rope_theta"]),
    }
    original = rope.get("original_max_position_embeddings") or getattr(config, "original_max_position_embeddings", None)
    if kind in ("linear", "yarn"):
        values |= {"rope.scaling.type": kind, "rope.scaling.factor": float(rope["factor"])}
        if kind == "yarn":
            values["rope.scaling.original_context_length"] = int(original or config.max_position_embeddings)
    elif kind == "longrope" and original:
        values["rope.scaling.original_context_length"] = int(original)
        scale = config.max_position_embeddings / original
        stretch = math.sqrt(1 + math.log(scale) / math.log(original)) if scale > 1 else 1.0
        values["rope.scaling.attn_factor"] = float(rope.get("attention_factor") or stretch)
    elif kind not in ("default", "llama3"):
        raise Unsupported(f"llama.cpp has no rotary scaling of type {kind!r}, so this model cannot be exported to GGUF")
    return values


def llama3_factors(rope: Mapping[str, Any], width: int) -> NDArray[np.float32]:
    """What Llama 3.1 divides each of `width` / 2 frequencies by: 1 the fast, `factor` the slow, a blend between."""
    frequencies = rope["rope_theta"] ** (-np.arange(0, width, 2) / width)
    turns = rope["original_max_position_embeddings"] * frequencies / (2 * np.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    blend = np.clip((turns - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - blend) / rope["factor"] + blend), np.float32)


def _own(config: Any, architecture: str, layout: Layout) -> dict[str, Any]:
    """What one architecture alone has."""
    if architecture == "granite":
        return {
            "attention.scale": float(config.attention_multiplier),
            "embedding_scale": float(config.embedding_multiplier),
            "residual_scale": float(config.residual_multiplier),
            "logit_scale": float(config.logits_scaling),
        }
    if architecture == "falcon":
        return {"tensor_data_layout": "jploski"}
    if architecture == "phimoe":
        return {"expert_count": layout.experts, "expert_used_count": int(config.num_experts_per_tok)}
    if architecture in _OWN_WINDOWS:
        return _gemma(config, architecture, layout)
    return {}


def _gemma(config: Any, architecture: str, layout: Layout) -> dict[str, Any]:
    values: dict[str, Any] = {"attention.sliding_window": int(config.sliding_window)}
    period = next((block.index + 1 for block in layout.blocks if not block.window), len(layout.blocks) + 1)
    regular = all(bool(block.window) == bool((block.index + 1) % period) for block in layout.blocks)
    usual = {"gemma2": 2, "gemma3": 6}[architecture]
    if not regular:
        raise Unsupported(f"llama.cpp's {architecture} has a whole attention in every n-th layer; this model has not")
    if period != usual and not (period > usual and len(layout.blocks) < usual):
        values["attention.sliding_window_pattern"] = period
    for key in ("attn_logit_softcapping", "final_logit_softcapping"):
        if getattr(config, key, None):
            values[key] = float(getattr(config, key))
    sliding = dict(config.rope_parameters).get("sliding_attention")
    if sliding:
        values["rope.freq_base_swa"] = float(sliding["rope_theta"])
    return values


def config_of(info: GgufInfo) -> dict[str, Any]:
    """The config.json for a GGUF's model, as keyword arguments of transformers' configuration class.

    Raises:
        BadModel: a key is missing without which nothing can be computed.
        Unsupported: the architecture is none that can be imported.
    """
    families = {architecture: family for family, architecture in ARCHITECTURES.items() if family != "mistral"}
    if info.architecture not in families:
        known = ", ".join(sorted(families))
        raise Unsupported(f"{info.path.name}: a {info.architecture} GGUF cannot be imported; known: {known}")
    return _Importer(info, families[info.architecture]).read()


class _Importer:
    """Reads the metadata of one file."""

    def __init__(self, info: GgufInfo, family: str) -> None:
        self.info, self.family = info, family
        self.tensors = {tensor.name: tensor.shape for tensor in info.tensors}

    def get(self, key: str, default: Any = None) -> Any:
        """`architecture.key`; an array whose entries are all the same counts as that entry."""
        value = self.info.metadata.get(f"{self.info.architecture}.{key}", default)
        if isinstance(value, list):
            if len(set(value)) != 1:
                raise Unsupported(f"{self.info.path.name}: {key} differs from layer to layer, which is not imported")
            value = value[0]
        return float(f"{value:.7g}") if isinstance(value, float) else value  # 32 bits of 0.3 are not 0.3

    def need(self, key: str) -> Any:
        """As `get`, but the key must be there."""
        value = self.get(key)
        if value is None:
            raise BadModel(f"{self.info.path.name}: {self.info.architecture}.{key} is missing")
        return value

    def read(self) -> dict[str, Any]:
        """All settings."""
        heads, hidden = int(self.need("attention.head_count")), int(self.need("embedding_length"))
        width = int(self.get("attention.key_length") or hidden // heads)
        titles = {"bos": "bos", "eos": "eos", "pad": "padding"}
        tokens = {name: self.info.metadata.get(f"tokenizer.ggml.{title}_token_id") for name, title in titles.items()}
        values: dict[str, Any] = {
            "model_type": self.family,
            "vocab_size": self.tensors["token_embd.weight"][1],
            "hidden_size": hidden,
            "num_hidden_layers": int(self.need("block_count")),
            "num_attention_heads": heads,
            "num_key_value_heads": int(self.get("attention.head_count_kv") or heads),
            "head_dim": width,
            "intermediate_size": int(self.need("feed_forward_length")),
            "max_position_embeddings": int(self.need("context_length")),
            "tie_word_embeddings": "output.weight" not in self.tensors,
            **{f"{name}_token_id": token for name, token in tokens.items()},
            **self._epsilon(),
            **self._rope(width),
        }
        adjust = {"gpt2": self._gpt2, "falcon": self._falcon, "granite": self._granite, "phimoe": self._phimoe}
        adjust |= {"gemma2": self._gemma, "gemma3_text": self._gemma, "llama": self._biases, "smollm3": self._biases}
        adjust |= {"qwen3": self._biases}
        return adjust.get(self.family, lambda found: found)(values)

    def _epsilon(self) -> dict[str, float]:
        layer = self.get("attention.layer_norm_epsilon")
        rms = self.get("attention.layer_norm_rms_epsilon")
        found = rms if rms is not None else layer
        if found is None:
            raise BadModel(f"{self.info.path.name}: the epsilon of the norms is missing")
        key = {"gpt2": "layer_norm_epsilon", "falcon": "layer_norm_epsilon", "phi": "layer_norm_eps"}
        return {key.get(self.family, "rms_norm_eps"): float(found)}

    def _rope(self, width: int) -> dict[str, Any]:
        if self.family == "gpt2":
            return {}
        rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(self.get("rope.freq_base", 10000.0))}
        kind, original = self.get("rope.scaling.type"), self.get("rope.scaling.original_context_length")
        share = self.get("rope.dimension_count", width) / width
        if share != 1:
            rope["partial_rotary_factor"] = share
        extra: dict[str, Any] = {}
        if kind in ("linear", "yarn"):
            rope |= {"rope_type": kind, "factor": float(self.need("rope.scaling.factor"))}
            if kind == "yarn" and original:
                rope["original_max_position_embeddings"] = int(original)
        elif "rope_factors_long.weight" in self.tensors:
            rope |= {"rope_type": "longrope", "original_max_position_embeddings": int(original or 4096)}
            extra["original_max_position_embeddings"] = int(original or 4096)
        elif "rope_freqs.weight" in self.tensors:
            rope |= {"rope_type": "llama3"}  # its factors are found from the tensor
        return {"rope_parameters": rope, **extra}

    def _biases(self, values: dict[str, Any]) -> dict[str, Any]:
        values["attention_bias"] = "blk.0.attn_q.bias" in self.tensors
        if self.family != "qwen3":
            values["mlp_bias"] = "blk.0.ffn_up.bias" in self.tensors
        return values

    def _gpt2(self, values: dict[str, Any]) -> dict[str, Any]:
        names = {"hidden_size": "n_embd", "num_hidden_layers": "n_layer", "num_attention_heads": "n_head"}
        names |= {"max_position_embeddings": "n_positions", "intermediate_size": "n_inner"}
        kept = {names.get(key, key): value for key, value in values.items()}
        for key in ("num_key_value_heads", "head_dim"):
            kept.pop(key)
        if kept["n_inner"] == 4 * kept["n_embd"]:
            kept["n_inner"] = None
        return kept

    def _falcon(self, values: dict[str, Any]) -> dict[str, Any]:
        groups = values.pop("num_key_value_heads")
        values["ffn_hidden_size"] = values.pop("intermediate_size")
        values.pop("head_dim")
        two = "blk.0.attn_norm_2.weight" in self.tensors
        new = groups > 1
        norms = {"num_ln_in_parallel_attn": 2 if two else 1} if new else {}
        return (
            values
            | {"alibi": False, "bias": False, "parallel_attn": True, **norms}
            | ({"new_decoder_architecture": True, "num_kv_heads": groups} if new else {"multi_query": True})
        )

    def _granite(self, values: dict[str, Any]) -> dict[str, Any]:
        return self._biases(values) | {
            "attention_multiplier": float(self.get("attention.scale") or values["head_dim"] ** -0.5),
            "embedding_multiplier": float(self.get("embedding_scale", 1.0)),
            "residual_multiplier": float(self.get("residual_scale", 1.0)),
            "logits_scaling": float(self.get("logit_scale", 1.0)),
        }

    def _phimoe(self, values: dict[str, Any]) -> dict[str, Any]:
        return values | {
            "num_local_experts": int(self.need("expert_count")),
            "num_experts_per_tok": int(self.need("expert_used_count")),
            "attention_bias": "blk.0.attn_q.bias" in self.tensors,
            "lm_head_bias": "output.bias" in self.tensors,
        }

    def _gemma(self, values: dict[str, Any]) -> dict[str, Any]:
        layers, usual = values["num_hidden_layers"], 2 if self.family == "gemma2" else 6
        period = int(self.get("attention.sliding_window_pattern", usual))
        large = {"gemma2": 46, "gemma3_text": 62}[self.family] == layers
        default = {"gemma2": 4096, "gemma3_text": 1024}[self.family]
        values |= {
            "layer_types": ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(layers)],
            "sliding_window": int(self.get("attention.sliding_window", default)),
            "query_pre_attn_scalar": values["hidden_size"] // values["num_attention_heads"]
            if large
            else values["head_dim"],
        }
        for key in ("attn_logit_softcapping", "final_logit_softcapping"):
            values[key] = self.get(key)
        if self.family == "gemma3_text":
            sliding = {"rope_type": "default", "rope_theta": float(self.get("rope.freq_base_swa", 10000.0))}
            values["rope_parameters"] = {"full_attention": values["rope_parameters"], "sliding_attention": sliding}
        return values
