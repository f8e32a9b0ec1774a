"""A model and its tokenizer with torch, from files that are on this machine. Runs in the child of the torch runner.

Only safetensors and GGUF are read, no code of the model's own is run, and the network is never asked.
"""

import os
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from sizewise.core.errors import BadModel, DoesNotFit, MissingExtra, UnsafeModel, UsageError
from sizewise.core.units import format_bytes
from sizewise.load.checkpoint.encoder import pooling_of
from sizewise.load.checkpoint.folder import inspect_checkpoint, own_links, read_json
from sizewise.load.checkpoint.packed_model import load_packed
from sizewise.load.layers import FAMILIES

GGUF = "model.gguf"
_SMALL = 100_000_000  # below so many weights bfloat16 gains nothing on a CPU
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_DATA = frozenset({".safetensors", ".gguf", ".json", ".jinja", ".model", ".txt"})
_NO_LIMIT = 10**6  # tokenizers that know no limit say 10^30


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model ready to answer."""

    model: Any
    tokenizer: Any
    context_length: int
    pooling: str | None  # None: a causal language model


def load(
    what: str,
    kind: str,
    files: Mapping[str, str],
    *,
    dtype: str,
    device: str,
    context: int | None,
    parameters: int | None,
) -> Loaded:
    """Load the files of a model.

    Args:
        what: the model's name, for messages.
        kind: "checkpoint", "encoder" or "gguf".
        files: relative name -> path; a name that could hold a pickle or code is refused.
        dtype: "auto", "float32", "bfloat16". Only with "float32" are packed weights multiplied in full precision.
        device: "auto", "cpu", "cuda".
        context: tokens at most, None for what the model has.
        parameters: number of weights if known, to say beforehand that memory is too small.

    Raises:
        BadModel: the files hold no model that transformers can load.
        DoesNotFit: memory is too small.
        MissingExtra: the model needs an optional library.
        UnsafeModel: a file that is no plain data, or a name that leaves the folder.
    """
    place = _device(device)
    precision = _precision(dtype, place, parameters, kind)
    _check_memory(what, _bytes_loaded(files, parameters, precision), precision, place)
    with tempfile.TemporaryDirectory(prefix="sizewise-") as scratch:
        folder = Path(scratch)
        for name, path in files.items():
            _refuse_name(what, name)
            target = folder / name
            target.parent.mkdir(parents=True, exist_ok=True)
            target.symlink_to(os.path.abspath(path))
        try:
            with own_links(folder):
                return _load(folder, kind, precision, place, context, exact=dtype == "float32")
        except ImportError as error:
            raise MissingExtra(f"{what} ({str(error).strip().splitlines()[0]})", "torch") from error
        except torch.cuda.OutOfMemoryError as error:
            raise DoesNotFit(f"{what}: the GPU's memory is too small: {str(error).splitlines()[0]}") from error
        except (ValueError, KeyError, OSError, RuntimeError, TypeError, AttributeError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0].replace(f"{folder}/", "")
            raise BadModel(f"{what}: transformers cannot load it: {line[:400]}") from error


def _refuse_name(what: str, name: str) -> None:
    inside = all(part not in ("", ".", "..") for part in name.split("/")) and "\\" not in name
    # an adapter's settings make transformers fetch another model
    if not inside or Path(name).suffix not in _DATA | {""} or name == "adapter_config.json":
        raise UnsafeModel(f"{what}: file {name!r} is refused; a model is made of {', '.join(sorted(_DATA))} files")


def _load(folder: Path, kind: str, dtype: torch.dtype, device: str, context: int | None, *, exact: bool) -> Loaded:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

    safe: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    if kind == "gguf":
        safe["gguf_file"] = GGUF
    tokenizer = AutoTokenizer.from_pretrained(folder, **safe)
    config = AutoConfig.from_pretrained(folder, **safe)
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(f"{config.model_type} is an encoder-decoder; only causal models and encoders are run")
    pooling = pooling_of(folder) if kind == "encoder" else None
    if _is_packed(folder, config):
        model = load_packed(folder, config, dtype, exact=exact)
        model.eval().to(device)
        _forget_sampling(model, tokenizer)
        return Loaded(model, tokenizer, _limit(folder, config, tokenizer, context, encoder=False), None)
    loader = AutoModel if pooling else AutoModelForCausalLM
    model, report = loader.from_pretrained(
        folder, config=config, dtype=dtype, use_safetensors=True, output_loading_info=True, **safe
    )
    missing = sorted(name for name in report["missing_keys"] if "pooler" not in name)
    if missing:  # transformers would fill them with random numbers
        raise ValueError(f"{len(missing)} weights are missing, for example {missing[0]}")
    model.eval().to(device)
    if not pooling:
        _forget_sampling(model, tokenizer)
    return Loaded(model, tokenizer, _limit(folder, config, tokenizer, context, encoder=bool(pooling)), pooling)


def _is_packed(folder: Path, config: Any) -> bool:
    """True for small forms that are kept small; others are left to transformers."""
    if getattr(config, "quantization_config", None) is None or config.model_type not in FAMILIES:
        return False
    return bool(inspect_checkpoint(folder).packed)


def _forget_sampling(model: Any, tokenizer: Any) -> None:
    """Keep of the model's generation settings only which tokens end an answer: the rest is the request's to say."""
    from transformers import GenerationConfig

    ends: set[int] = set()
    for source in (model.generation_config.eos_token_id, tokenizer.eos_token_id):
        ends |= {source} if isinstance(source, int) else set(source or ())
    pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else min(ends, default=0)
    model.generation_config = GenerationConfig(eos_token_id=sorted(ends) or None, pad_token_id=pad)


def _limit(folder: Path, config: Any, tokenizer: Any, context: int | None, *, encoder: bool) -> int:
    """Tokens that fit into the model."""
    text = config.get_text_config()
    positions = getattr(text, "max_position_embeddings", None)
    if positions and text.model_type in ("roberta", "xlm-roberta", "camembert"):
        positions -= 2  # their positions begin after the padding's
    limits = [positions, context]
    if encoder:
        limits.append(tokenizer.model_max_length)
        trained = folder / "sentence_bert_config.json"
        limits.append(read_json(trained).get("max_seq_length") if trained.exists() else None)
    return min((limit for limit in limits if limit and limit < _NO_LIMIT), default=_NO_LIMIT)


def _device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise UsageError(f"device {device!r} is unknown; known: auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise UsageError("device cuda was asked for, but torch sees no GPU here; take device auto or cpu")
    return "cuda" if device != "cpu" and torch.cuda.is_available() else "cpu"


def _precision(dtype: str, device: str, parameters: int | None, kind: str) -> torch.dtype:
    if dtype in _DTYPES:
        return _DTYPES[dtype]
    if dtype != "auto":
        raise UsageError(f"dtype {dtype!r} is unknown; known: auto, {', '.join(_DTYPES)}")
    if kind == "encoder":
        return torch.float32  # small, and its vectors feed a classifier that sees every digit
    if device == "cuda":
        return torch.bfloat16
    # Without instructions for it, a CPU multiplies bfloat16 several times slower than float32.
    fast = torch.cpu._is_avx512_bf16_supported()
    return torch.bfloat16 if fast and (parameters or 0) >= _SMALL else torch.float32


def _bytes_loaded(files: Mapping[str, str], parameters: int | None, dtype: torch.dtype) -> int:
    """What weights take in memory, at least: those in small forms what their files take."""
    if "config.json" in files and "quantization_config" in read_json(Path(files["config.json"])):
        return sum(os.path.getsize(path) for path in files.values())
    return (parameters or 0) * dtype.itemsize


def _check_memory(what: str, need: int, dtype: torch.dtype, device: str) -> None:
    have = torch.cuda.mem_get_info()[0] if device == "cuda" else psutil.virtual_memory().available
    if need > have:
        raise DoesNotFit(
            f"{what}: needs {format_bytes(need)} of memory as {str(dtype).removeprefix('torch.')}, "
            f"{format_bytes(have)} are free; take a smaller or quantized model"
        )
