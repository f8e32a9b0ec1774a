"""A GGUF file copied with some of its tensors packed another way.

Metadata is copied byte for byte (tokenizer, template and all), except for the two keys that say how weights are packed.
Weights pass through in pieces, so that a model larger than memory can be rewritten; the file appears whole or not at
all.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from struct import Struct

import numpy as np
from numpy.typing import NDArray

from sizewise.core.events import Listener, Progress, silent
from sizewise.load.gguf import types as gt
from sizewise.load.gguf.file import GgufInfo, TensorInfo
from sizewise.load.store.atomic import require_space, write_atomic

_U32, _U64 = Struct("<I"), Struct("<Q")
_FILE_TYPE, _VERSION_KEY = "general.file_type", "general.quantization_version"
_COPY_BYTES = 8 * 2**20

Encode = Callable[[TensorInfo, gt.GgmlType], Iterable[bytes]]


def packed_rows(info: GgufInfo, tensor: TensorInfo) -> NDArray[np.uint8]:
    """The bytes of a tensor as they are in the file, mapped: (rows, bytes of a row)."""
    shape = (tensor.rows, tensor.type.row_bytes(tensor.shape[0]))
    return np.memmap(info.path, dtype=np.uint8, mode="r", offset=tensor.start, shape=shape)


def copy_gguf(
    info: GgufInfo,
    target: Path,
    types: Mapping[str, gt.GgmlType],
    encode: Encode,
    *,
    file_type: str,
    listen: Listener = silent,
) -> tuple[str, int]:
    """Write `info`'s file to `target` with other tensor types.

    Args:
        info: the file to copy.
        target: where to write; replaced only when all is written.
        types: tensor name -> its new type; tensors that keep their type, or are not named, are copied as they are.
        encode: gives the bytes of one tensor in its new type, in pieces.
        file_type: name of the mix, for `general.file_type`.
        listen: hears the bytes written.

    Returns:
        Digest and size in bytes of the new file.

    Raises:
        DiskFull: there is no room; nothing is left behind.
    """
    kinds = {tensor.name: types.get(tensor.name, tensor.type) for tensor in info.tensors}
    header = _header(info, kinds, file_type)
    sizes = [_bytes_of(tensor, kinds[tensor.name]) for tensor in info.tensors]
    total = len(header) + sum(_padded(size, info.alignment) for size in sizes)
    require_space(target.parent, total)

    def pieces() -> Iterator[bytes]:
        yield header
        done = len(header)
        for tensor, size in zip(info.tensors, sizes, strict=True):
            kind = kinds[tensor.name]
            source = _copied(info, tensor) if kind == tensor.type else encode(tensor, kind)
            written = 0
            for piece in source:
                written += len(piece)
                yield piece
            if written != size:
                raise ValueError(f"{tensor.name}: {written} bytes were encoded, {kind.name} takes {size}")
            yield bytes(_padded(size, info.alignment) - size)
            done += _padded(size, info.alignment)
            listen(Progress("write", done, total, "bytes"))

    return write_atomic(target, pieces())


def _copied(info: GgufInfo, tensor: TensorInfo) -> Iterator[bytes]:
    flat = packed_rows(info, tensor).reshape(-1)
    for start in range(0, flat.size, _COPY_BYTES):
        yield flat[start : start + _COPY_BYTES].tobytes()


def _header(info: GgufInfo, kinds: Mapping[str, gt.GgmlType], file_type: str) -> bytes:
    changed = {
        _FILE_TYPE: _entry(_FILE_TYPE, gt.FILE_TYPE_CODES[file_type]),
        _VERSION_KEY: _entry(_VERSION_KEY, gt.QUANTIZATION_VERSION),
    }
    entries = []
    with info.path.open("rb") as file:
        old = file.read(info.data_start)
    for key, (start, end) in info.spans.items():
        entries.append(changed.pop(key) if key in changed else old[start:end])
    entries.extend(changed.values())
    head = [gt.MAGIC, _U32.pack(3), _U64.pack(len(info.tensors)), _U64.pack(len(entries)), *entries]
    offset = 0
    for tensor in info.tensors:
        kind = kinds[tensor.name]
        dims = b"".join(_U64.pack(size) for size in tensor.shape)
        head += [_text(tensor.name), _U32.pack(len(tensor.shape)), dims, _U32.pack(kind.code), _U64.pack(offset)]
        offset += _padded(_bytes_of(tensor, kind), info.alignment)
    joined = b"".join(head)
    return joined + bytes(_padded(len(joined), info.alignment) - len(joined))


def _entry(key: str, value: int) -> bytes:
    return _text(key) + _U32.pack(4) + _U32.pack(value)  # 4: an unsigned 32-bit number


def _text(text: str) -> bytes:
    raw = text.encode()
    return _U64.pack(len(raw)) + raw


def _bytes_of(tensor: TensorInfo, kind: gt.GgmlType) -> int:
    return kind.row_bytes(tensor.shape[0]) * tensor.rows


def _padded(size: int, alignment: int) -> int:
    return -(-size // alignment) * alignment
