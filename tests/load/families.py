"""A tiny random checkpoint of every family, written to disk by the family's own classes, with a real tokenizer.

Two or three layers of width 64 with what makes each family different: grouped heads, biases, a tied head, a sliding
window, experts, fused or transposed matrices, factors of long contexts. Weights are large enough that answers differ.
"""

from pathlib import Path
from typing import Any

from tiny_tokenizers import write_bytes_tokenizer, write_pieces_tokenizer

_LONG = {"short_factor": [1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7], "long_factor": [1.0, 2, 3, 4, 5, 6, 7, 8]}
_SIZE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
_OWN: dict[str, dict[str, Any]] = {
    "llama": {},
    "llama3": {
        "model_type": "llama",
        "tie_word_embeddings": True,
        "rope_parameters": {
            "rope_type": "llama3",
            "rope_theta": 10000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64,
        },
    },
    "mistral": {"sliding_window": 32, "head_dim": 16},
    "qwen2": {"tie_word_embeddings": True},
    "gemma2": {
        "head_dim": 32,
        "sliding_window": 32,
        "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
        "query_pre_attn_scalar": 32,
    },
    "phi": {"num_key_value_heads": 4, "partial_rotary_factor": 0.5},
    "phi3": {"sliding_window": 32, "original_max_position_embeddings": 256},
    "phi3.5": {
        "model_type": "phi3",
        "original_max_position_embeddings": 256,
        "max_position_embeddings": 1024,
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 10000.0, **_LONG},
    },
    "phimoe": {
        "num_local_experts": 4,
        "num_experts_per_tok": 2,
        "attention_bias": True,
        "lm_head_bias": True,
        "sliding_window": 64,
    },
    "granite": {
        "tie_word_embeddings": True,
        "logits_scaling": 3.0,
        "residual_multiplier": 0.5,
        "embedding_multiplier": 2.0,
        "attention_multiplier": 0.3,
    },
    "falcon": {"alibi": False, "multi_query": True, "parallel_attn": True, "tie_word_embeddings": True},
    "falcon-40b": {"model_type": "falcon", "alibi": False, "new_decoder_architecture": True, "num_kv_heads": 2},
    "gpt2": {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256},
    "opt": {"ffn_dim": 96, "word_embed_proj_dim": 64},
    "qwen3": {"head_dim": 32, "tie_word_embeddings": True},
    "gemma3_text": {
        "head_dim": 32,
        "query_pre_attn_scalar": 32,
        "sliding_window": 32,
        "num_hidden_layers": 3,
        "layer_types": None,
    },
    "smollm3": {"num_hidden_layers": 4, "tie_word_embeddings": True, "use_sliding_window": False},
}
FAMILIES = tuple(_OWN)
_PIECES = frozenset({"llama", "mistral", "gemma2", "phi3", "phi3.5", "phimoe", "gemma3_text"})  # SentencePiece


def write_family(name: str, folder: Path, *, seed: int = 0, **changes: Any) -> Path:
    """Write a model of the family `name` (one of `FAMILIES`); `changes` are fields of its config."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    folder.mkdir(parents=True, exist_ok=True)
    own = {"model_type": name, **_OWN[name], **changes}
    gemma = name.startswith("gemma")
    vocabulary = write_pieces_tokenizer(folder, gemma=gemma) if name in _PIECES else write_bytes_tokenizer(folder)
    if name == "gemma3_text":
        own["layer_types"] = ["sliding_attention", "sliding_attention", "full_attention"]
    vocabulary = -(-vocabulary // 32) * 32  # more rows than tokens, as in published models
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    family = own.pop("model_type")
    unused = {"gpt2": _SIZE, "opt": {"num_key_value_heads", "intermediate_size"}}.get(family, ())
    size = {key: value for key, value in _SIZE.items() if key not in unused}
    config = AutoConfig.for_model(family, **{"vocab_size": vocabulary, **ids, **size, **own})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for key, weight in model.named_parameters():
            _fill(key, weight)
    model.save_pretrained(folder)
    return folder


def _fill(name: str, weight: Any) -> None:
    """Random values of a size that keeps activations alive; norms and biases differ from their usual 1 and 0."""
    import torch

    if weight.dim() > 1:
        embeds = any(piece in name for piece in ("embed", "wte"))
        torch.nn.init.normal_(weight, std=1.0 if embeds else 0.2)
    elif name.endswith("bias"):
        torch.nn.init.normal_(weight, std=0.1)
    else:
        weight.copy_((weight + torch.randn_like(weight) * 0.1).bfloat16())  # 1 can be added and taken away without loss
