"""What a GGUF file says of itself, checked before any native code sees it.

The file is hostile until proven otherwise: every count, length, offset and size is compared with the bytes that are
there before it is used, so that a cut or forged file ends in one line instead of a crash in the engine. Only the
header is read (mapped, not loaded): about 12 ms for a vocabulary of 49,152 tokens, whatever the size of the weights.
"""

from collections import Counter
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import Any

from sizewise.core.errors import BadModel, UnknownName
from sizewise.load.gguf import types as gt
from sizewise.load.gguf.raw import U32, U64, Cursor, guess_format, mapped

_MAX_KEYS = 1 << 16
_MAX_TENSORS = 1 << 17
_MAX_NAME = 63  # bytes: the engine keeps tensor names in 64
_MAX_DIMS = 4
_MAX_ELEMENTS = 2**63 - 1
_SMALL_ARRAY = 4096  # longer arrays stay in the file
_SMALL_TEXT_ARRAY = 64


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor. `shape` is as in the file: the row width first. `start` and `end` are bytes from the file's start."""

    name: str
    shape: tuple[int, ...]
    type: gt.GgmlType
    start: int
    end: int

    @property
    def elements(self) -> int:
        """Number of weights."""
        return prod(self.shape)

    @property
    def rows(self) -> int:
        """Number of rows of `shape[0]` weights."""
        return self.elements // self.shape[0]


@dataclass(frozen=True, slots=True)
class ArrayRef:
    """A long array that stays in the file: element type, how many, and the bytes that hold its elements."""

    type: int
    count: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class GgufInfo:
    """What the header says. Values that the file leaves out are None."""

    path: Path
    version: int
    architecture: str
    parameters: int  # number of weights
    quantization: str  # "F16", "Q4_1", "Q4_K_M", ...; "mixed" where the file does not say and no type prevails
    context_length: int | None
    embedding_length: int | None
    block_count: int | None
    template: str | None  # chat template, Jinja
    bos: int | None  # token ids
    eos: int | None
    tensors: tuple[TensorInfo, ...]
    metadata: dict[str, Any]  # scalars, texts, short arrays as lists, long arrays as ArrayRef
    size_bytes: int
    alignment: int
    data_start: int  # byte at which the weights begin
    kv_bytes_per_token: int | None  # keys and values of all layers in 16 bits: what each token of context costs
    spans: dict[str, tuple[int, int]] = field(repr=False)  # key -> bytes of its whole entry, for exact copies

    @property
    def bits_per_weight(self) -> float:
        """Bits of the whole file per weight."""
        return self.size_bytes * 8 / self.parameters

    def token_text(self, token: int | None) -> str:
        """The text of a token, "" where there is no such token."""
        tokens = self.metadata.get("tokenizer.ggml.tokens")
        if token is None or not isinstance(tokens, (list, ArrayRef)):
            return ""
        count = tokens.count if isinstance(tokens, ArrayRef) else len(tokens)
        if not 0 <= token < count:
            return ""
        if isinstance(tokens, list):
            return str(tokens[token])
        with mapped(self.path) as data:
            cursor = Cursor(data, self.path.name, tokens.start)
            cursor.skip_strings(token)
            return cursor.string("replace")


def read_gguf(path: Path | str) -> GgufInfo:
    """Read and check the header of a GGUF file.

    Args:
        path: the file; its weights are not read.

    Raises:
        BadModel: it is no GGUF, is cut short, contradicts itself or has an unknown architecture.
        StorageError: it cannot be opened.
    """
    path = Path(path)
    with mapped(path) as data:
        cursor = Cursor(data, path.name)
        version, tensor_count, key_count = _preamble(cursor)
        metadata, spans = _read_metadata(cursor, key_count)
        listed = [_read_tensor(cursor) for _ in range(tensor_count)]
        return _describe(path, version, metadata, spans, _place(cursor, listed, metadata), cursor.size)


def _preamble(cursor: Cursor) -> tuple[int, int, int]:
    head = cursor.data[: min(cursor.size, 512)]
    if head[:4] != gt.MAGIC:
        raise cursor.bad(f"not a GGUF: {guess_format(head)}")
    cursor.at = 4
    version = cursor.scalar(U32)
    if version not in gt.VERSIONS:
        swapped = int.from_bytes(version.to_bytes(4, "little"), "big") in gt.VERSIONS
        what = "it is big-endian" if swapped else f"GGUF version {version} (versions 2 and 3 are known)"
        raise cursor.bad(f"{what}; convert it")
    tensor_count, key_count = cursor.scalar(U64), cursor.scalar(U64)
    if not 0 < tensor_count <= _MAX_TENSORS:
        raise cursor.bad(f"says that it holds {tensor_count} tensors; a model has 1 to {_MAX_TENSORS}")
    if not 0 < key_count <= _MAX_KEYS:
        raise cursor.bad(f"says that it holds {key_count} metadata keys; a model has 1 to {_MAX_KEYS}")
    return version, tensor_count, key_count


def _read_metadata(cursor: Cursor, count: int) -> tuple[dict[str, Any], dict[str, tuple[int, int]]]:
    metadata: dict[str, Any] = {}
    spans: dict[str, tuple[int, int]] = {}
    for _ in range(count):
        start = cursor.at
        key = cursor.string(limit=65535)
        if not key or key in metadata:
            raise cursor.bad(f"metadata key {key!r} is {'given twice' if key else 'empty'}")
        metadata[key] = _read_value(cursor, key)
        spans[key] = (start, cursor.at)
    return metadata, spans


def _read_value(cursor: Cursor, key: str) -> Any:
    kind = cursor.scalar(U32)
    if kind == gt.STRING:
        return cursor.string("replace")
    if kind == gt.ARRAY:
        return _read_array(cursor, key)
    if kind not in gt.SCALARS:
        raise cursor.bad(f"{key} has the unknown value type {kind}")
    if kind == gt.BOOL and cursor.at < cursor.size and cursor.data[cursor.at] > 1:
        raise cursor.bad(f"{key} is neither true nor false")
    return cursor.scalar(gt.SCALARS[kind])


def _read_array(cursor: Cursor, key: str) -> Any:
    kind, count = cursor.scalar(U32), cursor.scalar(U64)
    start = cursor.at
    if kind == gt.STRING:
        if count <= _SMALL_TEXT_ARRAY:
            return [cursor.string("replace") for _ in range(count)]
        cursor.need(8 * count)  # each text has at least its length
        cursor.skip_strings(count)
    elif kind in gt.SCALARS:
        layout = gt.SCALARS[kind]
        cursor.need(layout.size * count)
        cursor.at += layout.size * count
        if count <= _SMALL_ARRAY:
            return [value for (value,) in layout.iter_unpack(cursor.data[start : cursor.at])]
    else:
        raise cursor.bad(f"{key} is an array of the unknown value type {kind}")
    return ArrayRef(kind, count, start, cursor.at)


def _read_tensor(cursor: Cursor) -> tuple[str, tuple[int, ...], gt.GgmlType, int]:
    name = cursor.string(limit=_MAX_NAME)
    dims = cursor.scalar(U32)
    if not 1 <= dims <= _MAX_DIMS:
        raise cursor.bad(f"tensor {name} has {dims} dimensions; 1 to {_MAX_DIMS} are possible")
    shape = tuple(cursor.scalar(U64) for _ in range(dims))
    code, offset = cursor.scalar(U32), cursor.scalar(U64)
    kind = gt.BY_CODE.get(code)
    if kind is None:
        raise cursor.bad(f"tensor {name} has the unknown type {code}")
    if 0 in shape or prod(shape) > _MAX_ELEMENTS:
        raise cursor.bad(f"tensor {name} has the impossible shape {' x '.join(map(str, shape))}")
    if shape[0] % kind.block:
        raise cursor.bad(f"tensor {name}: rows of {shape[0]} weights do not fit blocks of {kind.block} ({kind.name})")
    return name, shape, kind, offset


def _place(
    cursor: Cursor, listed: list[tuple[str, tuple[int, ...], gt.GgmlType, int]], metadata: dict[str, Any]
) -> tuple[int, int, tuple[TensorInfo, ...]]:
    """Alignment, where the weights begin, and each tensor's place in the file, checked against its size.

    Tensors must follow one another with padding only, as the engine demands: nothing overlaps, nothing is hidden.
    """
    alignment = metadata.get("general.alignment", gt.DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or not 0 < alignment <= 2**20 or alignment & (alignment - 1):
        raise cursor.bad(f"general.alignment is {alignment!r}, not a power of two")
    begin = _padded(cursor.at, alignment)
    tensors: dict[str, TensorInfo] = {}
    expected = 0
    for name, shape, kind, offset in listed:
        if name in tensors:
            raise cursor.bad(f"tensor {name} is listed twice")
        if offset != expected:
            raise cursor.bad(f"tensor {name} lies at offset {offset}, where {expected} was expected")
        size = kind.row_bytes(shape[0]) * prod(shape[1:])
        end = begin + offset + size
        if end > cursor.size:
            raise cursor.cut_short(f"tensor {name} ends at byte {end}")
        tensors[name] = TensorInfo(name, shape, kind, begin + offset, end)
        expected = _padded(offset + size, alignment)
    return alignment, begin, tuple(tensors.values())


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment


def _describe(
    path: Path,
    version: int,
    metadata: dict[str, Any],
    spans: dict[str, tuple[int, int]],
    placed: tuple[int, int, tuple[TensorInfo, ...]],
    size: int,
) -> GgufInfo:
    alignment, begin, tensors = placed
    architecture = _value(path, metadata, "general.architecture", str)
    _check_architecture(path, architecture)
    info = GgufInfo(
        path=path,
        version=version,
        architecture=architecture,
        parameters=sum(tensor.elements for tensor in tensors),
        quantization=_quantization(metadata, tensors),
        context_length=_value(path, metadata, f"{architecture}.context_length", int),
        embedding_length=_value(path, metadata, f"{architecture}.embedding_length", int),
        block_count=_value(path, metadata, f"{architecture}.block_count", int),
        template=_value(path, metadata, "tokenizer.chat_template", str),
        bos=_value(path, metadata, "tokenizer.ggml.bos_token_id", int),
        eos=_value(path, metadata, "tokenizer.ggml.eos_token_id", int),
        tensors=tensors,
        metadata=metadata,
        size_bytes=size,
        alignment=alignment,
        data_start=begin,
        kv_bytes_per_token=_kv_bytes(architecture, metadata),
        spans=spans,
    )
    _check_vocabulary(info)
    _check_heads(info)
    return info


def _value(path: Path, metadata: dict[str, Any], key: str, kind: type) -> Any:
    value = metadata.get(key)
    if value is not None and (not isinstance(value, kind) or isinstance(value, bool)):
        raise BadModel(f"{path.name}: {key} is not a {'text' if kind is str else 'whole number'}")
    return value


def _check_architecture(path: Path, architecture: str | None) -> None:
    if not architecture:
        raise BadModel(f"{path.name}: general.architecture is missing, so nothing says what model this is")
    if architecture in gt.COMMON_ARCHITECTURES:
        return
    known = _known_architectures()
    if architecture not in known:
        nearest = UnknownName("architecture", architecture, known).nearest
        hint = f"did you mean {nearest!r}?" if nearest else f"{len(known)} are known, such as llama, qwen2 and gemma2"
        raise BadModel(f"{path.name}: unknown architecture {architecture!r}; {hint}")


_known_architectures = lru_cache(maxsize=1)(gt.known_architectures)


def _check_vocabulary(info: GgufInfo) -> None:
    """The engine indexes the embedding by token: fewer rows than tokens would read outside it."""
    tokens = info.metadata.get("tokenizer.ggml.tokens")
    count = tokens.count if isinstance(tokens, ArrayRef) else len(tokens) if isinstance(tokens, list) else None
    embedding = next((tensor for tensor in info.tensors if tensor.name == "token_embd.weight"), None)
    if embedding is None:
        return
    if count is not None and embedding.rows != count:
        raise BadModel(f"{info.path.name}: {count} tokens, but token_embd.weight has {embedding.rows} rows")
    if info.embedding_length is not None and embedding.shape[0] != info.embedding_length:
        raise BadModel(
            f"{info.path.name}: embedding_length is {info.embedding_length}, but rows of token_embd.weight "
            f"have {embedding.shape[0]} weights"
        )


def _check_heads(info: GgufInfo) -> None:
    """The engine multiplies these counts without looking, and ends its process where they make no sense."""
    heads, groups = (
        info.metadata.get(f"{info.architecture}.attention.{key}") for key in ("head_count", "head_count_kv")
    )
    if isinstance(heads, int) and isinstance(groups, int) and groups > heads:
        raise BadModel(f"{info.path.name}: {groups} heads for keys and values, but {heads} in all")


def _quantization(metadata: dict[str, Any], tensors: tuple[TensorInfo, ...]) -> str:
    stated = metadata.get("general.file_type")
    if isinstance(stated, int) and stated in gt.FILE_TYPES:
        return gt.FILE_TYPES[stated]
    weights: Counter[str] = Counter()
    for tensor in tensors:
        if len(tensor.shape) > 1:  # norms and biases stay in F32 whatever the file is called
            weights[tensor.type.name] += tensor.elements
    if not weights:
        return tensors[0].type.name
    name, most = weights.most_common(1)[0]
    return name if most >= 0.6 * sum(weights.values()) else "mixed"


def _kv_bytes(architecture: str, metadata: dict[str, Any]) -> int | None:
    """Bytes of keys and values per token of context, at 16 bits each; an upper bound for sliding windows."""

    def get(key: str) -> Any:
        return metadata.get(f"{architecture}.{key}")

    layers, width, heads = get("block_count"), get("embedding_length"), get("attention.head_count")
    groups = get("attention.head_count_kv") or heads
    heads = max(heads, default=0) if isinstance(heads, list) else heads
    if not (isinstance(layers, int) and isinstance(heads, int) and heads > 0 and isinstance(width, int)):
        return None
    total = sum(groups) if isinstance(groups, list) else layers * groups if isinstance(groups, int) else None
    keys, values = get("attention.key_length") or width // heads, get("attention.value_length") or width // heads
    if total is None or not isinstance(keys, int) or not isinstance(values, int):
        return None
    return int(2 * total * (keys + values))
