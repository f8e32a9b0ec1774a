"""A GGUF as a checkpoint: weights unpacked, renamed and put in transformers' order, settings and tokenizer translated.

Tensor by tensor, so that memory holds one at a time. Quantized weights are unpacked: the checkpoint has the numbers
that llama.cpp computes with, rounding errors and all, and its lineage says so.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel, Unsupported
from sizewise.core.events import Listener, Progress, silent
from sizewise.load.checkpoint.export_gguf import FLATTENED
from sizewise.load.checkpoint.tensors import TensorSink
from sizewise.load.gguf.file import GgufInfo, TensorInfo, read_gguf
from sizewise.load.gguf.names import Names
from sizewise.load.gguf.pack import unpack
from sizewise.load.gguf.settings import config_of, llama3_factors
from sizewise.load.gguf.tokenizer import write_tokenizer
from sizewise.load.gguf.write import packed_rows
from sizewise.load.store.atomic import require_space

Kept = Literal["auto", "float32", "bfloat16", "float16"]
_ROPE = ("rope_freqs.weight", "rope_factors_long.weight", "rope_factors_short.weight")
_NAMED = {"F16": "float16", "BF16": "bfloat16"}


@dataclass(frozen=True, slots=True)
class Imported:
    """A checkpoint that was written, and what its user must know."""

    folder: Path
    files: dict[str, Path]
    architecture: str  # model_type
    parameters: int
    dtype: str
    note: str


def import_gguf(path: Path, folder: Path, *, dtype: Kept = "auto", listen: Listener = silent) -> Imported:
    """Write the model in a GGUF file as a checkpoint that transformers loads.

    Args:
        path: the file, of any of the types that the gguf library can unpack.
        folder: where the checkpoint goes; made if it is not there.
        dtype: of the weights; "auto" is the file's own for F16 and BF16, and float32 for what is unpacked.
        listen: hears the tensors done.

    Raises:
        BadModel: the file is damaged, or holds values that are not finite.
        DiskFull: there is no room.
        Unsupported: an architecture, tokenizer or type that cannot be imported; the message names it.
    """
    import torch

    info = read_gguf(path)
    folder.mkdir(parents=True, exist_ok=True)
    settings = config_of(info)
    _add_rope_factors(info, settings)
    kept = _dtype(info, dtype)
    config = _config(settings, kept)
    names = Names(config, flattened=bool(info.metadata.get(FLATTENED)))
    require_space(folder, info.parameters * (4 if kept == "float32" else 2))
    kind: torch.dtype = getattr(torch, kept)
    parameters = 0
    with TensorSink(folder) as sink:
        chosen = [tensor for tensor in info.tensors if tensor.name not in _ROPE]
        for place, tensor in enumerate(chosen):
            for name, values in _checkpoint_tensors(info, names, tensor):
                parameters += values.size
                sink.put(name, torch.from_numpy(values).to(kind))
            listen(Progress("unpack", place + 1, len(chosen), "tensors"))
        weights = sink.finish()
    files = {path.name: path for path in weights} | write_tokenizer(info, folder) | _write_config(info, config, folder)
    return Imported(folder, files, settings["model_type"], parameters, kept, _note(info))


def _dtype(info: GgufInfo, wanted: Kept) -> str:
    if wanted != "auto":
        return wanted
    kinds = {tensor.type.name for tensor in info.tensors if len(tensor.shape) > 1}
    (only,) = kinds if len(kinds) == 1 else ("",)
    return _NAMED.get(only, "float32")


def _config(settings: dict[str, Any], dtype: str) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    fields = {key: value for key, value in settings.items() if key != "model_type"}
    config = AutoConfig.for_model(settings["model_type"], **fields)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[settings["model_type"]]]
    config.dtype = dtype
    return config


def _checkpoint_tensors(info: GgufInfo, names: Names, tensor: TensorInfo) -> Iterator[tuple[str, NDArray[np.float32]]]:
    """The tensors of the checkpoint that are in one of the file."""
    sources = names.sources(tensor.name, {one.name for one in info.tensors})
    rows, shape = packed_rows(info, tensor), tensor.shape[::-1]
    if len(sources) > 1 and len(sources) != shape[0]:
        raise BadModel(f"{info.path.name}: {tensor.name} holds {shape[0]} experts, not {len(sources)}")
    each = len(rows) // len(sources)
    for place, name in enumerate(sources):
        part = np.ascontiguousarray(rows[place * each : (place + 1) * each])
        values = unpack(part, tensor).reshape(shape if len(sources) == 1 else shape[1:])
        yield name, np.require(names.place(name).decode(values), requirements=["C", "W"])


def _add_rope_factors(info: GgufInfo, settings: dict[str, Any]) -> None:
    """What the rotation is stretched by stands in tensors of a GGUF, but in the settings of a checkpoint."""
    tensors = {tensor.name: tensor for tensor in info.tensors if tensor.name in _ROPE}
    if not tensors:
        return
    values = {name: unpack(packed_rows(info, tensor), tensor).reshape(-1) for name, tensor in tensors.items()}
    rope = settings["rope_parameters"]
    if "rope_freqs.weight" in values:
        rope |= _llama3_settings(info, rope["rope_theta"], values["rope_freqs.weight"])
    else:
        for kind in ("long", "short"):
            rope[f"{kind}_factor"] = [float(f"{value:.7g}") for value in values[f"rope_factors_{kind}.weight"]]


def _llama3_settings(info: GgufInfo, theta: float, factors: NDArray[np.float32]) -> dict[str, Any]:
    """The settings of Llama 3.1 whose factors these are.

    Raises:
        Unsupported: no such settings give them.
    """
    for original in (8192, *(1 << power for power in range(6, 20))):
        found = {
            "rope_type": "llama3",
            "rope_theta": theta,
            "factor": float(factors.max()),
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": original,
        }
        if np.allclose(llama3_factors(found, 2 * len(factors)), factors, rtol=1e-5):
            return found
    raise Unsupported(f"{info.path.name}: its rope_freqs are none that a config.json can express")


def _write_config(info: GgufInfo, config: Any, folder: Path) -> dict[str, Path]:
    config.to_json_file(folder / "config.json", use_diff=False)
    ends = [info.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot")]
    generation = {"bos_token_id": info.bos, "eos_token_id": [end for end in ends if end is not None] or None}
    body = {key: value for key, value in generation.items() if value is not None}
    (folder / "generation_config.json").write_text(json.dumps(body, indent=1), encoding="utf-8")
    return {name: folder / name for name in ("config.json", "generation_config.json")}


def _note(info: GgufInfo) -> str:
    if not any(tensor.type.quantized for tensor in info.tensors):
        return ""
    return f"dequantized from {info.quantization}: the rounding errors of {info.quantization} are still in the weights"
