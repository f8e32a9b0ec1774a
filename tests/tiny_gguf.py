"""A real GGUF of a few kilobytes: a random Llama with a byte vocabulary, written with the gguf library."""

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
    **extra: str,
) -> Path:
    """Write a random Llama to `path`. `quantization` packs the matrices with the gguf library's own code."""
    rng = np.random.default_rng(seed)
    texts, scores, types = tokens()
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("tiny")
    writer.add_block_count(layers)
    writer.add_context_length(256)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(hidden)
    writer.add_head_count(heads)
    writer.add_head_count_kv(kv_heads)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(texts))
    writer.add_rope_dimension_count(width // heads)
    if file_type is not None:
        writer.add_file_type(file_type)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(texts)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_chat_template(TEMPLATE)
    for key, value in extra.items():
        writer.add_string(key, value)

    def matrix(name: str, rows: int, columns: int) -> None:
        values = (rng.standard_normal((rows, columns)) / np.sqrt(columns)).astype(np.float32)
        if quantization is None:
            writer.add_tensor(name, values.astype(dtype))
        else:
            writer.add_tensor(name, gguf.quantize(values, quantization), raw_dtype=quantization)

    matrix("token_embd.weight", len(texts), width)
    key_width = width // heads * kv_heads
    for layer in range(layers):
        block = f"blk.{layer}."
        writer.add_tensor(block + "attn_norm.weight", np.ones(width, np.float32))
        matrix(block + "attn_q.weight", width, width)
        matrix(block + "attn_k.weight", key_width, width)
        matrix(block + "attn_v.weight", key_width, width)
        matrix(block + "attn_output.weight", width, width)
        writer.add_tensor(block + "ffn_norm.weight", np.ones(width, np.float32))
        matrix(block + "ffn_gate.weight", hidden, width)
        matrix(block + "ffn_up.weight", hidden, width)
        matrix(block + "ffn_down.weight", width, hidden)
    writer.add_tensor("output_norm.weight", np.ones(width, np.float32))
    if not tied:
        matrix("output.weight", len(texts), width)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
