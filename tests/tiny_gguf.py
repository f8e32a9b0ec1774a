"""A real GGUF of a few kilobytes: a random Llama with a byte vocabulary, written with the gguf library."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def tokens() -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and types: three control tokens, all bytes, the letters."""
    letters = ["▁", *"abcdefghijklmnopqrstuvwxyz"]
    texts = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters]
    scores = [0.0] * 259 + [-float(place + 1) for place in range(len(letters))]
    return texts, scores, [2, 3, 3, *[6] * 256, *[1] * len(letters)]


def write_tiny_llama(
    path: Path,
    *,
    width: int = 64,
    layers: int = 2,
    heads: int = 4,
    kv_heads: int = 2,
    hidden: int = 128,
    tied: bool = True,
    seed: int = 0,
    dtype: Any = np.float32,
    quantization: gguf.GGMLQuantizationType | None = None,
    file_type: int | None = 0,
    context: int = 256,
    template: str = TEMPLATE,
    **extra: str | int,
) -> Path:
    """Write a random Llama to `path`. `quantization` packs the matrices with the gguf library's own code."""
    writer = gguf.GGUFWriter(path, "llama")
    _describe(writer, width, layers, heads, kv_heads, hidden)
    writer.add_context_length(context)
    writer.add_chat_template(template)
    if file_type is not None:
        writer.add_file_type(file_type)
    for key, value in extra.items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_string(key, value)
    rng = np.random.default_rng(seed)
    for name, rows, columns in _matrices(width, layers, width // heads * kv_heads, hidden, tied):
        if not columns:
            writer.add_tensor(name, np.ones(rows, np.float32))
            continue
        values = (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        if quantization is None:
            writer.add_tensor(name, values.astype(dtype))
        else:
            writer.add_tensor(name, gguf.quantize(values, quantization), raw_dtype=quantization)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _describe(writer: gguf.GGUFWriter, width: int, layers: int, heads: int, kv_heads: int, hidden: int) -> None:
    texts, scores, types = tokens()
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(texts))
    writer.add_rope_dimension_count(width // heads)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def _matrices(width: int, layers: int, key_width: int, hidden: int, tied: bool) -> Iterator[tuple[str, int, int]]:
    """Name, rows and columns of each tensor; 0 columns: a norm."""
    vocabulary = len(tokens()[0])
    yield "token_embd.weight", vocabulary, width
    for layer in range(layers):
        for name, rows, columns in (
            ("attn_norm", width, 0),
            ("attn_q", width, width),
            ("attn_k", key_width, width),
            ("attn_v", key_width, width),
            ("attn_output", width, width),
            ("ffn_norm", width, 0),
            ("ffn_gate", hidden, width),
            ("ffn_up", hidden, width),
            ("ffn_down", width, hidden),
        ):
            yield f"blk.{layer}.{name}.weight", rows, columns
    yield "output_norm.weight", width, 0
    if not tied:
        yield "output.weight", vocabulary, width


def write_tiny_lora(
    path: Path, *, width: int = 64, layers: int = 2, seed: int = 0, strength: float = 1.0, architecture: str = "llama"
) -> Path:
    """A GGUF LoRA of rank 4 for the queries of `write_tiny_llama`; `strength` 0 changes nothing."""
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_type("adapter")
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", 4.0)
    rng = np.random.default_rng(seed)
    for layer in range(layers):
        name = f"blk.{layer}.attn_q.weight"
        writer.add_tensor(f"{name}.lora_a", rng.standard_normal((4, width)).astype(np.float32))
        writer.add_tensor(f"{name}.lora_b", (strength * rng.standard_normal((width, 4))).astype(np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
