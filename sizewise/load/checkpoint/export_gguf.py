"""A checkpoint as a GGUF: weights renamed and reordered, settings translated, tokenizer and template inside.

Tensors are read, turned and written in pieces, so that memory holds some rows at a time. The file appears whole or not
at all. Whether it is still the same model is for `load.parity` to say.
"""

import contextlib
import io
import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel, Unsupported, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.load.checkpoint.folder import inspect_checkpoint
from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.child import Child
from sizewise.load.gguf.names import Names, Place
from sizewise.load.gguf.pack import pack
from sizewise.load.gguf.settings import metadata_of, rope_tensors
from sizewise.load.gguf.types import BY_NAME, FILE_TYPE_CODES, GgmlType
from sizewise.load.gguf.vocabulary import Vocabulary, load_tokenizer, vocabulary_of
from sizewise.load.layers import Layout, layout_of, read_config
from sizewise.load.parity import PROBES
from sizewise.load.store.atomic import publish, require_space, storage_errors, temporary

Precision = Literal["auto", "F32", "F16", "BF16"]
FLATTENED = "sizewise.flattened_router"  # see `load.gguf.names`
_PIECE = 1 << 22  # weights in memory at once
_EXACT = ("position_embd", "ffn_gate_inp")  # small and delicate: always in 32 bits


@dataclass(frozen=True, slots=True)
class Exported:
    """A GGUF that was written, and what its user must know."""

    path: Path
    architecture: str
    quantization: str  # "F32", "F16", "BF16"
    parameters: int
    notes: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Tensor:
    """One tensor of the file: its numpy shape, its type, and the tensors of the checkpoint that go into it."""

    name: str
    shape: tuple[int, ...]
    kind: GgmlType
    parts: tuple[tuple[str, Place], ...]

    @property
    def bytes(self) -> int:
        """In the file."""
        return self.kind.row_bytes(self.shape[-1]) * int(np.prod(self.shape[:-1]))


def export_gguf(
    folder: Path,
    target: Path,
    *,
    precision: Precision = "auto",
    name: str = "",
    dequantize: bool = False,
    listen: Listener = silent,
) -> Exported:
    """Write a checkpoint as a GGUF file that llama.cpp runs.

    Args:
        folder: the checkpoint.
        target: the file to write.
        precision: of the matrices; "auto" is the checkpoint's own. Norms and biases are always in 32 bits.
        name: what the file says that the model is called; "" = the folder's name.
        dequantize: write matrices in small forms as what they stand for, larger than they are; else they are refused.
        listen: hears the bytes written.

    Raises:
        BadModel: the checkpoint is damaged, or holds values that are not finite.
        DiskFull: there is no room; nothing is left behind.
        Unsupported: llama.cpp has no such architecture, setting or tokenizer; the message names it.
        UsageError: the checkpoint has matrices in small forms, and `dequantize` was not asked for.
    """
    config, layout, source = read_config(folder), layout_of(folder), DenseSource(folder)
    form = inspect_checkpoint(folder).dtype
    if source.matrices and not dequantize:
        raise UsageError(
            f"{name or folder.name} is packed as {form}: export the model that it was made from, or pass --dequantize"
        )
    names = Names(config, layout.prefix, flattened=True)
    quantization = _precision(precision, source, layout)
    metadata, notes = metadata_of(config, layout)
    vocabulary = vocabulary_of(folder, layout.vocabulary)
    metadata |= vocabulary.metadata(_choose_pre(folder, vocabulary))
    if source.matrices:
        notes.append(f"dequantized from {form}")
    template = _template(folder)
    if names.flattened:
        metadata[FLATTENED] = True
        notes.append(
            "llama.cpp gives both experts of a token the weight 1, where transformers gives less to experts that are "
            "nearly as good as others: log-probabilities differ at such tokens"
        )
    if template:
        metadata["tokenizer.chat_template"] = template
    head = {"general.name": _name(name or folder.name, vocabulary), "general.file_type": FILE_TYPE_CODES[quantization]}
    tensors = list(_plan(names, layout, source, BY_NAME[quantization]))
    extra = rope_tensors(config, layout)
    _write(target, names.architecture, head | metadata, tensors, extra, source, listen)
    parameters = sum(int(np.prod(tensor.shape)) for tensor in tensors)
    return Exported(target, names.architecture, quantization, parameters, tuple(notes))


def _precision(wanted: Precision, source: TensorSource, layout: Layout) -> str:
    if wanted != "auto":
        return wanted
    import torch

    kinds = {torch.float16: "F16", torch.bfloat16: "BF16"}
    return kinds.get(source.dtype(layout.linears[0].weight), "F32")


def _name(name: str, vocabulary: Vocabulary) -> str:
    """The model's name in the file: llama.cpp strips spaces after control tokens where it reads of a phi-3."""
    plain = re.sub(r"(?i)phi-?3", "Phi 3", name)
    return f"phi-3 {plain}" if vocabulary.strips else plain


def _template(folder: Path) -> str | None:
    return inspect_checkpoint(folder).template


def _plan(names: Names, layout: Layout, source: TensorSource, kind: GgmlType) -> Iterator[_Tensor]:
    """All tensors of the file in the order of their names in the checkpoint, experts stacked."""
    grouped: dict[str, list[tuple[str, Place]]] = {}
    for name in _wanted(layout, source):
        place = names.place(name)
        grouped.setdefault(place.gguf, []).append((name, place))
    for title, parts in grouped.items():
        parts.sort(key=lambda pair: pair[1].expert or 0)
        shape = source.shape(parts[0][0])
        shape = shape[::-1] if parts[0][1].transposed else shape
        stacked = (len(parts), *shape) if parts[0][1].expert is not None else shape
        exact = len(shape) == 1 or any(piece in title for piece in _EXACT)
        yield _Tensor(title, stacked, BY_NAME["F32"] if exact else kind, tuple(parts))


def _wanted(layout: Layout, source: TensorSource) -> list[str]:
    """Names in a sensible order: embedding first, block by block, what comes last last."""
    if layout.others:
        raise Unsupported(f"llama.cpp has no tensor for {layout.others[0]}")
    known: list[str] = []
    outside = [layout.embedding, layout.positions]
    inside = [part for block in layout.blocks for part in (*block.norms, *(linear.name for linear in block.linears))]
    for module in (*outside, *inside, layout.final_norm, layout.head):
        if module:
            known += [f"{module}.{kind}" for kind in ("weight", "bias") if f"{module}.{kind}" in source]
    return known


def _write(
    target: Path,
    architecture: str,
    metadata: Mapping[str, Any],
    tensors: list[_Tensor],
    extra: Mapping[str, NDArray[np.float32]],
    source: TensorSource,
    listen: Listener,
) -> None:
    import gguf

    total = sum(tensor.bytes for tensor in tensors)
    with storage_errors(target):
        target.parent.mkdir(parents=True, exist_ok=True)
        require_space(target.parent, total)
        temp = temporary(target.parent)
        writer = gguf.GGUFWriter(temp, architecture)
        try:
            _describe(writer, metadata)
            for name, values in extra.items():
                writer.add_tensor_info(name, values.shape, values.dtype, values.nbytes)
            for tensor in tensors:
                kind = gguf.GGMLQuantizationType(tensor.kind.code)
                writer.add_tensor_info(tensor.name, tensor.shape, np.dtype(np.float32), tensor.bytes, raw_dtype=kind)
            writer.write_header_to_file()
            writer.write_kv_data_to_file()
            writer.write_ti_data_to_file()
            file = writer.fout[0]
            _pad(file, writer.data_alignment)
            done = 0
            for values in extra.values():
                file.write(values.astype("<f4").tobytes())
                _pad(file, writer.data_alignment)
            for tensor in tensors:
                for piece in _pieces(tensor, source):
                    file.write(piece)
                    done += len(piece)
                _pad(file, writer.data_alignment)
                listen(Progress("write", done, total, "bytes"))
            file.flush()
            os.fsync(file.fileno())
            publish(temp, target)
        finally:
            writer.close()
            temp.unlink(missing_ok=True)


def _pad(file: io.BufferedWriter, alignment: int) -> None:
    file.write(bytes(-file.tell() % alignment))


def _describe(writer: Any, metadata: Mapping[str, Any]) -> None:
    writer.add_quantization_version(2)
    for key, value in metadata.items():
        if isinstance(value, bool):
            writer.add_bool(key, value)
        elif isinstance(value, int):
            writer.add_uint32(key, value)
        elif isinstance(value, float):
            writer.add_float32(key, value)
        elif isinstance(value, str):
            writer.add_string(key, value)
        elif key.endswith("charsmap"):
            writer.add_array(key, bytes(value))
        elif value:
            writer.add_array(key, value)


def _pieces(tensor: _Tensor, source: TensorSource) -> Iterator[bytes]:
    """The tensor's bytes in its type; rows that stay where they are pass through some at a time."""
    for name, place in tensor.parts:
        shape = source.shape(name)
        step = shape[0] if place.whole or len(shape) == 1 else max(1, _PIECE // max(1, int(np.prod(shape[1:]))))
        for first in range(0, shape[0], step):
            values = source.rows(name, first, min(first + step, shape[0])).float().numpy()
            if not np.isfinite(values).all():
                raise BadModel(f"{name} holds values that are not finite numbers; get the checkpoint again")
            turned = np.ascontiguousarray(place.encode(values))
            yield pack(turned.reshape(-1, turned.shape[-1]), tensor.kind, name)


def _choose_pre(folder: Path, vocabulary: Vocabulary) -> str | None:
    """The name of the pre-tokenizer with which llama.cpp makes the same tokens; None where the kind has none.

    Raises:
        Unsupported: no name does.
    """
    if len(vocabulary.pre) < 2:
        return vocabulary.pre[0] if vocabulary.pre else None
    tokenizer = load_tokenizer(folder)
    expected = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in PROBES]
    with contextlib.ExitStack() as stack:
        child = Child("sizewise.load._parity_child", folder.name)
        stack.callback(child.close)
        path = temporary(folder if os.access(folder, os.W_OK) else Path("/tmp"))
        stack.callback(lambda: path.unlink(missing_ok=True))
        nearest, most = "", -1
        for pre in vocabulary.pre:
            _write_vocabulary(path, vocabulary, pre)
            child.call("open", what=folder.name, kind="gguf", files={"": str(path)}, threads=1, vocab_only=True)
            found = child.call("encode", texts=list(PROBES))[0]
            same = sum(left == right for left, right in zip(found, expected, strict=True))
            if same == len(PROBES):
                return pre
            nearest, most = (pre, same) if same > most else (nearest, most)
    raise Unsupported(
        f"{folder.name}: llama.cpp has no pre-tokenizer that cuts text as this one does; the nearest, {nearest}, "
        f"gives the same tokens for {most} of {len(PROBES)} texts"
    )


def _write_vocabulary(path: Path, vocabulary: Vocabulary, pre: str) -> None:
    """A GGUF with a vocabulary and next to nothing else."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    for key in ("block_count", "context_length", "embedding_length", "feed_forward_length", "attention.head_count"):
        writer.add_uint32(f"llama.{key}", 32)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    bare = Vocabulary(**{key: getattr(vocabulary, key) for key in ("model", "tokens", "types", "scores", "merges")})
    bare.flags = vocabulary.flags | {"add_bos_token": False, "add_eos_token": False}
    _describe(writer, bare.metadata(pre))
    writer.add_tensor("token_embd.weight", np.zeros((len(vocabulary.tokens), 32), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
