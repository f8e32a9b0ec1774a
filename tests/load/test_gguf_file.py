"""A GGUF header is read right, and whatever is wrong with one is said in one line."""

import os
import random
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tiny_gguf import TEMPLATE, tokens, write_tiny_llama

from sizewise.core.errors import BadModel, StorageError
from sizewise.load.gguf import types as gguf_types
from sizewise.load.gguf.file import ArrayRef, read_gguf

Key = tuple[str, int, bytes]
Tensor = tuple[str, tuple[int, ...], int, int]  # name, shape, type, offset


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(raw)) + raw


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


ARCHITECTURE: Key = ("general.architecture", 8, text("llama"))
MATRIX: Tensor = ("a.weight", (32, 4), 0, 0)


def build(
    keys: tuple[Key, ...] = (ARCHITECTURE,),
    tensors: tuple[Tensor, ...] = (MATRIX,),
    *,
    magic: bytes = b"GGUF",
    version: int = 3,
    tensor_count: int | None = None,
    key_count: int | None = None,
    data: bytes | None = None,
) -> bytes:
    """A GGUF made byte by byte, so that every field can be wrong."""
    head = magic + u32(version) + u64(len(tensors) if tensor_count is None else tensor_count)
    head += u64(len(keys) if key_count is None else key_count)
    head += b"".join(text(key) + u32(kind) + value for key, kind, value in keys)
    for name, shape, kind, offset in tensors:
        head += text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)
    head += bytes(-len(head) % 32)
    return head + (bytes(512) if data is None else data)


def key(name: str, kind: int, value: bytes) -> tuple[Key, ...]:
    return (ARCHITECTURE, (name, kind, value))


def array(kind: int, count: int, body: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + body


def vocabulary(count: int) -> Key:
    return ("tokenizer.ggml.tokens", 9, array(8, count, b"".join(text(f"t{place}") for place in range(count))))


def tensor(
    name: str = "a.weight", shape: tuple[int, ...] = (32, 4), kind: int = 0, offset: int = 0
) -> tuple[Tensor, ...]:
    return ((name, shape, kind, offset),)


EMBEDDING = tensor("token_embd.weight")
HEADS: tuple[Key, ...] = (
    ("llama.attention.head_count", 4, u32(4)),
    ("llama.attention.head_count_kv", 4, u32(9)),
)
SECOND: Tensor = ("b.weight", (32,), 0, 512)

BAD: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "0 bytes"),
    "magic only": (b"GGUF", "cut short"),
    "three bytes": (b"GGU", "not a GGUF"),
    "web page": (b"<!DOCTYPE html><html>", "HTML page"),
    "web page after a blank line": (b"\n<html><body>404</body></html>", "HTML page"),
    "lfs pointer": (b"version https://git-lfs.github.com/spec/v1\noid sha256:0", "LFS pointer"),
    "zip": (b"PK\x03\x04" + bytes(60), "zip archive"),
    "pickle": (b"\x80\x02}q\x00." + bytes(60), "pickle"),
    "safetensors": (u64(20) + b'{"a":{"dtype":"F32"}}', "safetensors"),
    "old format": (b"lmgg" + bytes(60), "old GGML"),
    "version 1": (build(version=1), "version 1"),
    "version 4": (build(version=4), "version 4"),
    "big-endian": (build(version=3 << 24), "big-endian"),
    "no tensors": (build(tensors=()), "0 tensors"),
    "2^63 tensors": (build(tensor_count=2**63), "9223372036854775808 tensors"),
    "no keys": (build(keys=()), "0 metadata keys"),
    "2^64-1 keys": (build(key_count=2**64 - 1), "metadata keys"),
    "more keys than there are": (build(key_count=2), ""),
    "no architecture": (build((("general.name", 8, text("x")),)), "general.architecture is missing"),
    "architecture is a number": (build((("general.architecture", 4, u32(1)),)), "is not a text"),
    "unknown architecture": (build((("general.architecture", 8, text("lama")),)), "did you mean 'llama'"),
    "strange architecture": (build((("general.architecture", 8, text("foo-9000")),)), "'foo-9000'"),
    "key given twice": (build((ARCHITECTURE, ARCHITECTURE)), "given twice"),
    "empty key": (build(key("", 4, u32(1))), "empty"),
    "key that is not UTF-8": (build().replace(b"general.arch", b"general.\xff\xfech"), "not UTF-8"),
    "endless text": (build(key("a", 8, u64(2**63))), "the limit is"),
    "17 MiB text": (build(key("a", 8, u64(17 * 2**20))), "the limit is"),
    "text beyond the end": (build(key("a", 8, u64(100_000))), "cut short"),
    "unknown value type": (build(key("a", 13, u32(1))), "unknown value type 13"),
    "truth value 2": (build(key("a", 7, b"\x02")), "neither true nor false"),
    "endless array": (build(key("a", 9, array(4, 2**62))), "cut short"),
    "array of arrays": (build(key("a", 9, array(9, 1))), "array of the unknown value type 9"),
    "endless array of texts": (build(key("a", 9, array(8, 2**61))), "cut short"),
    "array with an endless text": (build(key("a", 9, array(8, 1, u64(2**60)))), "the limit is"),
    "long array with an endless text": (build(key("a", 9, array(8, 70, u64(2**60) * 70))), "the limit is"),
    "long array that leaves the file": (build(key("a", 9, array(8, 70, u64(900) * 70))), "cut short"),
    "alignment 0": (build(key("general.alignment", 4, u32(0))), "power of two"),
    "alignment 13": (build(key("general.alignment", 4, u32(13))), "power of two"),
    "alignment 2^31": (build(key("general.alignment", 4, u32(2**31))), "power of two"),
    "alignment is a text": (build(key("general.alignment", 8, text("32"))), "power of two"),
    "context length is a text": (build(key("llama.context_length", 8, text("2048"))), "not a whole number"),
    "template is a number": (build(key("tokenizer.chat_template", 4, u32(3))), "not a text"),
    "no dimensions": (build(tensors=tensor(shape=())), "0 dimensions"),
    "5 dimensions": (build(tensors=tensor(shape=(1, 1, 1, 1, 1))), "5 dimensions"),
    "2^32-1 dimensions": (build().replace(text("a.weight") + u32(2), text("a.weight") + u32(2**32 - 1)), "4294967295"),
    "empty dimension": (build(tensors=tensor(shape=(32, 0))), "impossible shape"),
    "2^63 weights": (build(tensors=tensor(shape=(2**32, 2**31))), "impossible shape"),
    "product that overflows to 0": (build(tensors=tensor(shape=(2**32, 2**32))), "impossible shape"),
    "unknown tensor type": (build(tensors=tensor(kind=4)), "unknown type 4"),
    "width that its blocks do not divide": (build(tensors=tensor(shape=(33, 4), kind=8)), "blocks of 32"),
    "offset beyond the file": (build(tensors=tensor(offset=2**62)), "offset"),
    "offset that wraps": (build(tensors=tensor(offset=2**64 - 32)), "offset"),
    "overlapping tensors": (build(tensors=(MATRIX, ("b.weight", (32,), 0, 256))), "512 was expected"),
    "hole between tensors": (build(tensors=(MATRIX, ("b.weight", (32,), 0, 1024))), "512 was expected"),
    "tensor listed twice": (build(tensors=(MATRIX, MATRIX)), "listed twice"),
    "tensor name of 64 bytes": (build(tensors=tensor("x" * 64)), "the limit is 63"),
    "tensor name with line ends": (build(tensors=tensor("a\nb\x1b[2J", kind=4)), "a\\nb\\x1b[2J"),
    "last tensor cut": (build(tensors=(MATRIX, SECOND)), "b.weight ends at byte 800, the file has 672"),
    "no weights at all": (build(data=b""), "cut short: tensor a.weight"),
    "vocabulary of another size": (build((ARCHITECTURE, vocabulary(5)), EMBEDDING), "5 tokens"),
    "large vocabulary of another size": (build((ARCHITECTURE, vocabulary(99)), EMBEDDING), "99 tokens"),
    "more heads for keys than heads": (build((ARCHITECTURE, *HEADS)), "9 heads for keys and values, but 4 in all"),
    "other embedding length": (build(key("llama.embedding_length", 4, u32(64)), EMBEDDING), "embedding_length is 64"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_file_is_refused_in_one_line(case: str, tmp_path: Path) -> None:
    content, says = BAD[case]
    path = tmp_path / "x.gguf"
    path.write_bytes(content)
    with pytest.raises(BadModel) as caught:
        read_gguf(path)
    message = str(caught.value)
    assert says in message
    assert message.startswith("x.gguf")
    assert "\n" not in message


def test_the_files_above_are_bad_for_their_fault_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(build((ARCHITECTURE, vocabulary(4)), EMBEDDING))
    assert read_gguf(path).parameters == 128


def test_places_that_hold_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.gguf")
    for place, says in (
        (tmp_path / "none.gguf", "no such file"),
        (tmp_path, "folder"),
        (tmp_path / "pipe.gguf", "regular"),
    ):
        with pytest.raises(BadModel, match=says):
            read_gguf(place)
    with pytest.raises(StorageError, match="cannot be read"):
        read_gguf(tmp_path / ("x" * 300 + ".gguf"))


def test_says_what_the_gguf_library_says(tmp_path: Path) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", dtype=np.float16, file_type=1)
    info, reader = read_gguf(path), gguf.GGUFReader(path)
    assert [(item.name, item.shape, item.type.code, item.start, item.end) for item in info.tensors] == [
        (item.name, tuple(item.shape), item.tensor_type, item.data_offset, item.data_offset + item.n_bytes)
        for item in reader.tensors
    ]
    for name, value in info.metadata.items():
        if not isinstance(value, ArrayRef):
            assert value == reader.fields[name].contents(), name
    assert set(info.metadata) | {"GGUF.version", "GGUF.tensor_count", "GGUF.kv_count"} == set(reader.fields)
    assert info.parameters == sum(item.n_elements for item in reader.tensors)
    assert (info.data_start, info.size_bytes) == (reader.data_offset, path.stat().st_size)


def test_what_it_says(tmp_path: Path) -> None:
    info = read_gguf(write_tiny_llama(tmp_path / "tiny.gguf"))
    assert (info.architecture, info.quantization, info.context_length) == ("llama", "F32", 256)
    assert (info.embedding_length, info.block_count, info.bos, info.eos) == (64, 2, 1, 2)
    assert info.template == TEMPLATE
    assert [info.token_text(token) for token in (1, 2, 259, -1, 286, None)] == ["<s>", "</s>", "▁", "", "", ""]
    assert info.kv_bytes_per_token == 2 * 2 * 2 * (16 + 16)  # 16 bits, 2 layers, 2 heads, keys and values of 16
    assert info.bits_per_weight == pytest.approx(info.size_bytes * 8 / info.parameters)
    tokens_kept = info.metadata["tokenizer.ggml.tokens"]
    assert isinstance(tokens_kept, ArrayRef)
    assert tokens_kept.count == len(tokens()[0])


@pytest.mark.parametrize(
    ("stated", "quantization", "name"),
    [
        (3, None, "Q4_1"),  # what the file says counts
        (None, None, "F32"),
        (None, gguf.GGMLQuantizationType.Q8_0, "Q8_0"),
        (999, gguf.GGMLQuantizationType.Q4_0, "Q4_0"),
    ],
)
def test_quantization_is_stated_or_counted(
    stated: int | None, quantization: gguf.GGMLQuantizationType | None, name: str, tmp_path: Path
) -> None:
    path = write_tiny_llama(tmp_path / "tiny.gguf", file_type=stated, quantization=quantization)
    assert read_gguf(path).quantization == name


def test_no_prevailing_type_is_mixed(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(build(tensors=(MATRIX, ("b.weight", (32, 4), 1, 512)), data=bytes(768)))
    assert read_gguf(path).quantization == "mixed"


def test_heads_that_differ_by_layer(tmp_path: Path) -> None:
    def entry(name: str, kind: int, value: bytes) -> Key:
        return (f"llama.{name}", kind, value)

    keys = (
        ARCHITECTURE,
        entry("block_count", 4, u32(3)),
        entry("embedding_length", 4, u32(64)),
        entry("attention.head_count", 4, u32(4)),
        entry("attention.head_count_kv", 9, array(5, 3, struct.pack("<3i", 4, 2, 0))),
    )
    path = tmp_path / "x.gguf"
    path.write_bytes(build(keys))
    assert read_gguf(path).kv_bytes_per_token == 2 * (4 + 2) * (16 + 16)


def test_version_2_and_other_alignments_are_read(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(build(key("general.alignment", 4, u32(8)), version=2))
    info = read_gguf(path)
    assert (info.version, info.alignment, info.data_start % 8) == (2, 8, 0)


def readable(path: Path) -> bool:
    """True where the file was read and makes sense, False where it was refused; any other error fails the test."""
    try:
        info = read_gguf(path)
    except BadModel as error:
        message = str(error)
    else:
        assert all(item.end <= info.size_bytes for item in info.tensors)
        assert info.token_text(3) is not None
        return True
    assert "\n" not in message
    return False


def test_cut_anywhere_it_is_bad(tmp_path: Path) -> None:
    whole = write_tiny_llama(tmp_path / "tiny.gguf", layers=1).read_bytes()
    info = read_gguf(tmp_path / "tiny.gguf")
    path = tmp_path / "cut.gguf"
    rng = random.Random(1)
    for size in {*range(400), *rng.sample(range(info.data_start), 300), info.data_start, info.tensors[-1].end - 1}:
        path.write_bytes(whole[:size])
        assert not readable(path), size
    path.write_bytes(whole[: info.tensors[-1].end])
    assert readable(path)


Mutation = Callable[[bytearray, random.Random, int], None]


def _flip(data: bytearray, rng: random.Random, header: int) -> None:
    data[rng.randrange(header)] ^= 1 << rng.randrange(8)


def _number(data: bytearray, rng: random.Random, header: int) -> None:
    place = rng.randrange(4, header - 8)
    data[place : place + 8] = u64(rng.choice([0, 1, 2**31, 2**32 - 1, 2**63 - 1, 2**63, 2**64 - 1, 13, 10**6]))


def _move(data: bytearray, rng: random.Random, header: int) -> None:
    place, length = rng.randrange(header), rng.randrange(1, 64)
    if rng.random() < 0.5:
        del data[place : place + length]
    else:
        data[place:place] = rng.randbytes(length)


@pytest.mark.parametrize("mutate", [_flip, _number, _move])
def test_random_damage_is_bad_or_readable(mutate: Mutation, tmp_path: Path) -> None:
    whole = write_tiny_llama(tmp_path / "tiny.gguf", layers=1, width=32, heads=1, kv_heads=1, hidden=32).read_bytes()
    header = read_gguf(tmp_path / "tiny.gguf").data_start
    path = tmp_path / "damaged.gguf"
    rng = random.Random(7)
    refused = 0
    for _ in range(400):
        data = bytearray(whole)
        for _ in range(rng.choice([1, 1, 3])):
            mutate(data, rng, header)
        path.write_bytes(data)
        refused += not readable(path)
    assert refused > 20


def test_tables_agree_with_the_gguf_library() -> None:
    ours = {kind.code: (kind.name, kind.block, kind.bytes) for kind in gguf_types.BY_CODE.values()}
    theirs: dict[int, tuple[Any, ...]] = {
        int(kind): (kind.name, *sizes) for kind, sizes in gguf.GGML_QUANT_SIZES.items()
    }
    assert ours == theirs
    named = {int(kind): kind.name.removeprefix("MOSTLY_").removeprefix("ALL_") for kind in gguf.LlamaFileType}
    assert gguf_types.FILE_TYPES.items() <= named.items()
    assert gguf_types.known_architectures() >= gguf_types.COMMON_ARCHITECTURES


@pytest.mark.model
def test_a_real_model(smollm2: Path) -> None:
    info = read_gguf(smollm2)
    assert (info.parameters, info.quantization, info.context_length) == (134_515_008, "Q4_1", 8192)
    assert info.kv_bytes_per_token == 23_040
    assert (info.token_text(info.bos), info.token_text(info.eos)) == ("<|im_start|>", "<|im_end|>")
    assert info.bits_per_weight == pytest.approx(5.85, abs=0.01)
