"""Adapters: low-rank corrections to some matrices of one model, as GGUF files.

Each corrected matrix W (rows x columns) has a pair `NAME.lora_a` (rank x columns) and `NAME.lora_b` (rows x rank); the
engine computes W x + alpha / rank * B (A x). GGUF writes shapes with the row width first. The correction of the token
embedding, whose rows are looked up instead of multiplied, lies the other way round.
"""

import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.checkpoint.folder import read_json, read_safetensors_header
from sizewise.load.gguf.file import GgufInfo

_CONFIG, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
_PEFT = re.compile(r"(?:base_model\.model\.)?(.+)\.lora_([AB])(?:\.default)?\.weight")
# Architectures whose matrices have the same rows in a checkpoint and in GGUF, or those of the one permutation below.
_SAME_ROWS = frozenset({"qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "starcoder2"})
_PERMUTED = {"llama": {"attn_q": "attention.head_count", "attn_k": "attention.head_count_kv"}}


def is_adapter(info: GgufInfo) -> bool:
    """True where the file says that it is an adapter."""
    return info.metadata.get("general.type") == "adapter"


def check_adapter(adapter: GgufInfo, base: GgufInfo, title: str) -> None:
    """Refuse an adapter that is not made for this model, before the engine meets it.

    Raises:
        BadModel: it is no LoRA, is made for another architecture, or its shapes are others.
    """
    if not is_adapter(adapter) or adapter.metadata.get("adapter.type") != "lora":
        raise BadModel(f"{title}: is no LoRA adapter; expected general.type 'adapter' and adapter.type 'lora'")
    if adapter.architecture != base.architecture:
        raise BadModel(f"{title}: is an adapter for {adapter.architecture} models, and the base is {base.architecture}")
    shapes = {tensor.name: tensor.shape for tensor in base.tensors}
    mine = {tensor.name: tensor.shape for tensor in adapter.tensors}
    for name in mine:
        stem = name.rpartition(".")[0]
        a, b, shape = mine.get(f"{stem}.lora_a", ()), mine.get(f"{stem}.lora_b", ()), shapes.get(stem, ())
        if not name.endswith((".lora_a", ".lora_b")) or not shape:
            raise BadModel(f"{title}: tensor {name} corrects nothing in the base; it belongs to another model")
        if stem.startswith("token_embd"):
            fits = len(a) == len(b) == 2 and (a[0], b[1], a[1]) == (b[0], *shape[:2])
        else:
            fits = len(a) == len(b) == len(shape) and (a[0], b[1], a[1]) == (*shape[:2], b[0])
        if not fits:
            raise BadModel(f"{title}: {stem} is corrected by {a or 'nothing'} and {b or 'nothing'}, but is {shape}")


def convert_adapter(folder: Path, base: GgufInfo, target: Path) -> Path:
    """A LoRA that peft saved, as a GGUF file for `base`.

    Raises:
        BadModel: the folder holds no adapter.
        Unsupported: an adapter of another kind, or for an architecture whose rows may lie otherwise in GGUF.
    """
    if not (folder / _CONFIG).is_file() or not (folder / _WEIGHTS).is_file():
        raise BadModel(f"{folder}: holds no adapter; expected {_CONFIG} and {_WEIGHTS}")
    config = read_json(folder / _CONFIG)
    kind = config.get("peft_type")
    if kind != "LORA" or config.get("use_dora") or config.get("rank_pattern") or config.get("alpha_pattern"):
        raise Unsupported(
            f"{folder.name}: only plain LoRA of one rank can be converted, this is {kind} with variations"
        )
    if base.architecture not in _SAME_ROWS and base.architecture not in _PERMUTED:
        known = ", ".join(sorted(_SAME_ROWS | _PERMUTED.keys()))
        raise Unsupported(
            f"{folder.name}: adapters for {base.architecture} are not converted (only those for {known}); convert it "
            "with llama.cpp's convert_lora_to_gguf.py and name the GGUF file"
        )
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or rank < 1:
        raise BadModel(f"{folder / _CONFIG}: r or lora_alpha is missing")
    if config.get("use_rslora"):
        alpha = alpha * math.sqrt(rank)  # its scale is alpha / sqrt(rank), the engine's alpha / rank
    _write(target, base, float(alpha), dict(_tensors(folder, base)))
    return target


def _tensors(folder: Path, base: GgufInfo) -> Iterator[tuple[str, NDArray[np.float32]]]:
    import gguf

    arch = next(code for code, name in gguf.MODEL_ARCH_NAMES.items() if name == base.architecture)
    names = gguf.get_tensor_name_map(arch, base.block_count or 0)
    path = folder / _WEIGHTS
    begin = 8 + int.from_bytes(path.open("rb").read(8), "little")
    for key, tensor in read_safetensors_header(path).items():
        match = _PEFT.fullmatch(key)
        name = names.get_name(f"{match.group(1)}.weight", try_suffixes=(".weight",)) if match else None
        if match is None or name is None or len(tensor.shape) != 2 or "embed" in key:
            raise Unsupported(f"{folder.name}: {key} is no low-rank correction of a matrix that GGUF has")
        raw = np.memmap(path, np.uint8, "r", begin + tensor.start, (tensor.end - tensor.start,))
        weights = _floats(raw, tensor.dtype, key).reshape(tensor.shape)
        heads = _PERMUTED.get(base.architecture, {}).get(name.split(".")[-2])
        if heads and match.group(2) == "B":
            weights = _permuted(weights, _heads(base, heads))
        yield f"{name}.lora_{match.group(2).lower()}", np.ascontiguousarray(weights)


def _floats(raw: NDArray[np.uint8], dtype: str, key: str) -> NDArray[np.float32]:
    if dtype == "BF16":
        return (raw.view("<u2").astype(np.uint32) << 16).view(np.float32)
    if dtype not in ("F32", "F16", "F64"):
        raise Unsupported(f"{key} has the type {dtype}; adapters of F16, BF16 and F32 are converted")
    return raw.view({"F32": "<f4", "F16": "<f2", "F64": "<f8"}[dtype]).astype(np.float32)


def _heads(base: GgufInfo, key: str) -> int:
    count: Any = base.metadata.get(f"{base.architecture}.{key}")
    count = count or base.metadata.get(f"{base.architecture}.attention.head_count")
    if not isinstance(count, int) or count < 1:
        raise Unsupported(f"{base.path.name}: has another number of heads in each layer; convert the adapter elsewhere")
    return count


def _permuted(rows: NDArray[np.float32], heads: int) -> NDArray[np.float32]:
    """Rows with the two halves of each head interleaved, as GGUF keeps queries and keys of this family."""
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)


def _write(target: Path, base: GgufInfo, alpha: float, tensors: dict[str, NDArray[np.float32]]) -> None:
    import gguf

    writer = gguf.GGUFWriter(target, base.architecture)
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_string("adapter.type", "lora")
    writer.add_float32("adapter.lora.alpha", alpha)
    for name, weights in tensors.items():
        writer.add_tensor(name, weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
