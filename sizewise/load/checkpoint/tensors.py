"""Tensors of a checkpoint, read one by one and written shard by shard, so that memory never holds the model.

`TensorSource` reads with plain file reads: pages of a mapped file would count as this process's memory. `TensorSink`
gathers tensors up to a shard's size and writes each shard whole or not at all; until `finish`, shards have names that
no loader knows, so that a folder is a checkpoint only when all of it is there.
"""

import json
import math
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from sizewise.core.errors import BadModel, UsageError
from sizewise.load.checkpoint.folder import INDEX, WEIGHTS, Tensor, inspect_checkpoint, read_safetensors_header
from sizewise.load.store.atomic import read_chunks, require_space, storage_errors, sync_folder, write_atomic

if TYPE_CHECKING:
    from torch import Tensor as TorchTensor
    from torch import dtype as TorchType

SHARD_BYTES = 1 << 29
_PART = re.compile(r"part-(\d{5})\.safetensors")
NAMES = {"BOOL": "bool", "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64"}
NAMES |= {"F16": "float16", "BF16": "bfloat16", "F32": "float32", "F64": "float64"}
NAMES |= {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2", "U16": "uint16", "U32": "uint32"}


class TensorSource:
    """The tensors of a checkpoint folder by name; each call reads from the disk what it returns and no more."""

    def __init__(self, folder: Path | str) -> None:
        """Read the headers.

        Raises:
            BadModel: it is no checkpoint, or its files contradict each other.
        """
        self.folder = Path(folder)
        self.files = inspect_checkpoint(self.folder).files
        self._place: dict[str, tuple[Path, int, Tensor]] = {}
        for title, path in self.files.items():
            if title.endswith(".safetensors") and "/" not in title:
                begin = 8 + int.from_bytes(next(read_chunks(path))[:8], "little")
                for name, tensor in read_safetensors_header(path).items():
                    self._place[name] = (path, begin, tensor)

    def __contains__(self, name: object) -> bool:
        return name in self._place

    def __iter__(self) -> Iterator[str]:
        return iter(self._place)

    def __len__(self) -> int:
        return len(self._place)

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor."""
        return self._entry(name)[2].shape

    def dtype(self, name: str) -> "TorchType":
        """Element type of a tensor."""
        import torch

        kind = self._entry(name)[2].dtype
        if kind not in NAMES:
            raise BadModel(f"{self.folder.name}: {name} has the type {kind}, which cannot be read")
        found: TorchType = getattr(torch, NAMES[kind])
        return found

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor in its file."""
        tensor = self._entry(name)[2]
        return tensor.end - tensor.start

    def get(self, name: str) -> "TorchTensor":
        """A tensor, as stored.

        Raises:
            BadModel: there is none of that name.
        """
        shape = self.shape(name)
        return self.rows(name, 0, shape[0]) if shape else self._read(name, 0, self.bytes_of(name)).reshape(())

    def rows(self, name: str, first: int, last: int) -> "TorchTensor":
        """Rows `first` to `last` (exclusive) along the first dimension."""
        shape = self.shape(name)
        if not 0 <= first <= last <= shape[0]:
            raise UsageError(f"{name} has {shape[0]} rows; {first} to {last} were asked for")
        row = self.bytes_of(name) // shape[0] if shape[0] else 0
        return self._read(name, first * row, (last - first) * row).reshape(last - first, *shape[1:])

    def _entry(self, name: str) -> tuple[Path, int, Tensor]:
        if name not in self._place:
            raise BadModel(f"{self.folder.name}: there is no tensor {name}")
        return self._place[name]

    def _read(self, name: str, offset: int, size: int) -> "TorchTensor":
        import torch

        path, begin, tensor = self._entry(name)
        kind = self.dtype(name)
        if not size:
            return torch.empty(0, dtype=kind)
        data = bytearray(size)
        with storage_errors(path), path.open("rb", buffering=0) as file:
            file.seek(begin + tensor.start + offset)
            at = 0
            while at < size:
                count = file.readinto(memoryview(data)[at:])
                if not count:
                    raise BadModel(f"{path.name}: cut short within {name}; get it again")
                at += count
        return torch.frombuffer(data, dtype=kind)


class TensorSink:
    """Writes tensors into the safetensors files of a checkpoint folder.

    `put` keeps a tensor until a shard is full, `flush` writes what is kept (at the end of a block, so that a killed
    process can go on there), `finish` gives the shards their names. Left without `finish`, the finished shards stay for
    `resume=True`, under names that no loader looks for.
    """

    def __init__(self, folder: Path | str, *, shard_bytes: int = SHARD_BYTES, resume: bool = False) -> None:
        self.folder, self.shard_bytes = Path(folder), shard_bytes
        with storage_errors(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        self._waiting: dict[str, TorchTensor] = {}
        self._parts: list[Path] = []
        self.done: set[str] = set()  # names that are safely on disk
        for path in sorted(self.folder.iterdir()):
            if _PART.fullmatch(path.name):
                if resume:
                    self._parts.append(path)
                    self.done |= set(read_safetensors_header(path))
                else:
                    path.unlink()

    def put(self, name: str, tensor: "TorchTensor") -> None:
        """Add a tensor.

        Raises:
            DiskFull: there is no room for the shard that it completes.
            UsageError: the name is taken.
        """
        if name in self._waiting or name in self.done:
            raise UsageError(f"tensor {name} is written twice")
        self._waiting[name] = tensor.detach().to("cpu").contiguous()
        if self._bytes_waiting() >= self.shard_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is waiting as a shard of its own."""
        if not self._waiting:
            return
        require_space(self.folder, self._bytes_waiting())
        path = self.folder / f"part-{len(self._parts):05d}.safetensors"
        write_atomic(path, _safetensors(self._waiting))
        self._parts.append(path)
        self.done |= set(self._waiting)
        self._waiting = {}

    def finish(self) -> list[Path]:
        """Write what is waiting and name the files; small ones become one. Returns the weight files and the index."""
        self.flush()
        if not self._parts:
            raise UsageError(f"{self.folder.name}: a checkpoint without tensors cannot be written")
        total = sum(path.stat().st_size for path in self._parts)
        if len(self._parts) == 1:
            with storage_errors(self.folder):
                self._parts[0].rename(self.folder / WEIGHTS)
                sync_folder(self.folder)
            return [self.folder / WEIGHTS]
        if total <= self.shard_bytes:
            write_atomic(self.folder / WEIGHTS, _joined(self._parts))
            for path in self._parts:
                path.unlink()
            return [self.folder / WEIGHTS]
        return self._index()

    def _index(self) -> list[Path]:
        count, total = len(self._parts), 0
        places: dict[str, str] = {}
        paths = [self.folder / f"model-{place + 1:05d}-of-{count:05d}.safetensors" for place in range(count)]
        for part, path in zip(self._parts, paths, strict=True):
            header = read_safetensors_header(part)
            places |= dict.fromkeys(header, path.name)
            total += sum(tensor.end - tensor.start for tensor in header.values())
            with storage_errors(path):
                part.rename(path)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_atomic(self.folder / INDEX, [json.dumps(index, indent=1).encode()])
        return [*paths, self.folder / INDEX]

    def _bytes_waiting(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self._waiting.values())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waiting = {}


def save_tensors(folder: Path, tensors: Iterable[tuple[str, "TorchTensor"]]) -> list[Path]:
    """Write all tensors into a folder; returns the files. See `TensorSink`."""
    with TensorSink(folder) as sink:
        for name, tensor in tensors:
            sink.put(name, tensor)
        return sink.finish()


def _safetensors(tensors: dict[str, "TorchTensor"]) -> Iterator[Any]:
    """The bytes of a safetensors file: widest types first, so that each tensor lies where its type may."""
    import torch

    ordered = sorted(tensors.items(), key=lambda pair: (-pair[1].element_size(), pair[0]))
    codes = {name: code for code, name in NAMES.items()}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, tensor in ordered:
        end = at + tensor.numel() * tensor.element_size()
        code = codes[str(tensor.dtype).removeprefix("torch.")]
        header[name] = {"dtype": code, "shape": list(tensor.shape), "data_offsets": [at, end]}
        at = end
    yield _header(header)
    for _, tensor in ordered:
        if tensor.numel():
            yield tensor.reshape(-1).view(torch.uint8).numpy().data


def _joined(parts: list[Path]) -> Iterator[bytes]:
    """Several safetensors files as one."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for path in parts:
        found = read_safetensors_header(path)
        for name, tensor in sorted(found.items(), key=lambda pair: pair[1].start):
            place = [at + tensor.start, at + tensor.end]
            header[name] = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": place}
        at += max((tensor.end for tensor in found.values()), default=0)
    yield _header(header)
    for path in parts:
        skip = 8 + int.from_bytes(next(read_chunks(path))[:8], "little")
        for chunk in read_chunks(path):
            yield chunk[min(skip, len(chunk)) :]
            skip -= min(skip, len(chunk))


def _header(entries: dict[str, Any]) -> bytes:
    raw = json.dumps(entries, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)
    return len(raw).to_bytes(8, "little") + raw


def elements(source: TensorSource) -> int:
    """Number of values in all tensors."""
    return sum(math.prod(source.shape(name)) for name in source)
