"""A copied GGUF differs from its source only where it was told to."""

import struct
from collections.abc import Iterator
from pathlib import Path

import gguf
import numpy as np
import pytest
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import DiskFull
from sizewise.core.events import Progress
from sizewise.load.gguf.file import GgufInfo, TensorInfo, read_gguf
from sizewise.load.gguf.types import BY_NAME, GgmlType
from sizewise.load.gguf.write import copy_gguf, packed_rows
from sizewise.load.store import atomic


def halved(info: GgufInfo) -> tuple[dict[str, GgmlType], list[str]]:
    """Half precision for the feed-forward; the second value fills with the tensors that were encoded."""
    return {
        tensor.name: BY_NAME["F16"] for tensor in info.tensors if "ffn_" in tensor.name and "norm" not in tensor.name
    }, []


def as_half(info: GgufInfo, tensor: TensorInfo) -> Iterator[bytes]:
    for rows in np.array_split(packed_rows(info, tensor).view(np.float32), 3):
        yield rows.astype(np.float16).tobytes()


def test_only_the_named_tensors_change(tmp_path: Path) -> None:
    source, target = write_tiny_llama(tmp_path / "a.gguf"), tmp_path / "b.gguf"
    info = read_gguf(source)
    types, encoded = halved(info)

    def encode(tensor: TensorInfo, kind: GgmlType) -> Iterator[bytes]:
        assert kind.name == "F16"
        encoded.append(tensor.name)
        return as_half(info, tensor)

    heard: list[Progress] = []
    digest, size = copy_gguf(info, target, types, encode, file_type="F16", listen=heard.append)
    assert digest.startswith("sha256:")
    assert size == target.stat().st_size == heard[-1].total == heard[-1].done
    assert sorted(encoded) == sorted(types)
    after = {tensor.name: tensor for tensor in gguf.GGUFReader(target).tensors}
    for tensor in gguf.GGUFReader(source).tensors:
        expected = tensor.data.astype(np.float16) if tensor.name in types else tensor.data
        assert after[tensor.name].data.tobytes() == expected.tobytes(), tensor.name
    assert [tensor.name for tensor in read_gguf(target).tensors] == [tensor.name for tensor in info.tensors]


def test_copying_without_changes_keeps_every_byte(tmp_path: Path) -> None:
    source = write_tiny_llama(tmp_path / "a.gguf")
    first, second = tmp_path / "b.gguf", tmp_path / "c.gguf"
    copy_gguf(read_gguf(source), first, {}, lambda tensor, kind: iter(()), file_type="F32")  # adds one key
    copy_gguf(read_gguf(first), second, {}, lambda tensor, kind: iter(()), file_type="F32")
    assert first.read_bytes() == second.read_bytes()
    old, new = read_gguf(source), read_gguf(first)
    assert new.metadata == old.metadata | {"general.quantization_version": 2} | {
        key: new.metadata[key] for key, value in old.metadata.items() if not isinstance(value, (int, float, str, list))
    }
    assert first.read_bytes()[new.data_start :] == source.read_bytes()[old.data_start :]


@pytest.mark.parametrize("alignment", [8, 64, 4096])
def test_other_alignments_are_kept(alignment: int, tmp_path: Path) -> None:
    head = b"GGUF" + struct.pack("<IQQ", 2, 2, 2)
    for key, body in (
        (b"general.architecture", struct.pack("<IQ", 8, 5) + b"llama"),
        (b"general.alignment", struct.pack("<II", 4, alignment)),
    ):
        head += struct.pack("<Q", len(key)) + key + body
    for name, offset in ((b"a.weight", 0), (b"b.weight", -(-12 // alignment) * alignment)):
        head += struct.pack("<Q", 8) + name + struct.pack("<IQIQ", 1, 3, 0, offset)
    path, target = tmp_path / "a.gguf", tmp_path / "b.gguf"
    head += bytes(-len(head) % alignment)
    path.write_bytes(head + (b"abcdabcdabcd" + bytes(-12 % alignment)) * 2)
    copy_gguf(read_gguf(path), target, {}, lambda tensor, kind: iter(()), file_type="F32")
    info = read_gguf(target)
    assert (info.version, info.alignment, info.quantization) == (3, alignment, "F32")
    assert [packed_rows(info, tensor).tobytes() for tensor in info.tensors] == [b"abcdabcdabcd"] * 2


def test_wrong_number_of_bytes_leaves_no_file(tmp_path: Path) -> None:
    info = read_gguf(write_tiny_llama(tmp_path / "a.gguf"))
    types, _ = halved(info)
    with pytest.raises(ValueError, match=r"ffn_gate.weight: 7 bytes were encoded, F16 takes 16384"):
        copy_gguf(info, tmp_path / "b.gguf", types, lambda tensor, kind: iter([b"x" * 7]), file_type="F16")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gguf"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    info = read_gguf(write_tiny_llama(tmp_path / "a.gguf"))
    target = tmp_path / "b.gguf"
    target.write_bytes(b"old")
    monkeypatch.setattr(atomic, "_passages", {})
    monkeypatch.setenv("SIZEWISE_FAULT", "write:4:enospc")
    with pytest.raises(DiskFull, match="disk is full"):
        copy_gguf(info, target, {}, lambda tensor, kind: iter(()), file_type="F32")
    assert target.read_bytes() == b"old"
    assert {path.name for path in tmp_path.iterdir()} == {"a.gguf", "b.gguf"}
