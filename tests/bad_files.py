"""GGUF files that are wrong in every way we know of, made from one that is right."""

import random
import struct
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

from tiny_gguf import write_tiny_llama

U32, U64 = struct.Struct("<I"), struct.Struct("<Q")


@cache
def good() -> bytes:
    """A right one."""
    with tempfile.TemporaryDirectory() as folder:
        return write_tiny_llama(Path(folder) / "good.gguf", layers=1).read_bytes()


def _text(text: bytes) -> bytes:
    return U64.pack(len(text)) + text


def _pair(key: bytes, kind: int, value: bytes) -> bytes:
    return _text(key) + U32.pack(kind) + value


def _file(
    pairs: list[bytes] | None = None, tensors: list[bytes] | None = None, *, data: int = 4096, version: int = 3
) -> bytes:
    """A file of these raw entries; without any, one that is right."""
    pairs = [ARCHITECTURE] if pairs is None else pairs
    tensors = [_tensor()] if tensors is None else tensors
    head = b"GGUF" + U32.pack(version) + U64.pack(len(tensors)) + U64.pack(len(pairs)) + b"".join(pairs + tensors)
    return head + bytes(-len(head) % 32 + data)


ARCHITECTURE = _pair(b"general.architecture", 8, _text(b"llama"))


def _tensor(
    name: bytes = b"token_embd.weight", shape: tuple[int, ...] = (32, 4), kind: int = 0, offset: int = 0
) -> bytes:
    return _text(name) + U32.pack(len(shape)) + b"".join(map(U64.pack, shape)) + U32.pack(kind) + U64.pack(offset)


def _put(at: int, data: bytes) -> Callable[[bytes], bytes]:
    return lambda file: file[:at] + data + file[at + len(data) :]


def bad_ggufs() -> list[tuple[str, bytes]]:
    """Name and content of each kind."""
    whole = good()
    return [
        ("nothing", b""),
        ("four bytes", b"GGUF"),
        ("a page of HTML", b"<!DOCTYPE html><html><body>404</body></html>"),
        ("another magic", b"GGML" + whole[4:]),
        ("version 0", _put(4, U32.pack(0))(whole)),
        ("version 1", _put(4, U32.pack(1))(whole)),
        ("version 99", _put(4, U32.pack(99))(whole)),
        ("big-endian", _put(4, (3).to_bytes(4, "big"))(whole)),
        ("2^63 tensors", _put(8, U64.pack(2**63))(whole)),
        ("no tensors", _put(8, U64.pack(0))(whole)),
        ("2^63 keys", _put(16, U64.pack(2**63))(whole)),
        ("a key of 2^62 bytes", _file([U64.pack(2**62) + b"x"])),
        ("an empty key", _file([ARCHITECTURE, _pair(b"", 8, _text(b"x"))])),
        ("one key twice", _file([ARCHITECTURE, ARCHITECTURE])),
        ("a key that is not UTF-8", _file([ARCHITECTURE, _pair(b"\xff\xfe", 8, _text(b"x"))])),
        ("an unknown type of value", _file([ARCHITECTURE, _pair(b"k", 77, b"")])),
        ("a truth value of 2", _file([ARCHITECTURE, _pair(b"k", 7, b"\x02")])),
        ("an array of arrays", _file([ARCHITECTURE, _pair(b"k", 9, U32.pack(9) + U64.pack(1))])),
        ("an array of 2^62 numbers", _file([ARCHITECTURE, _pair(b"k", 9, U32.pack(4) + U64.pack(2**62))])),
        ("no architecture", _file([_pair(b"k", 8, _text(b"x"))])),
        ("an unknown architecture", _file([_pair(b"general.architecture", 8, _text(b"nonsense"))])),
        ("alignment 0", _file([ARCHITECTURE, _pair(b"general.alignment", 4, U32.pack(0))])),
        ("alignment 13", _file([ARCHITECTURE, _pair(b"general.alignment", 4, U32.pack(13))])),
        ("five dimensions", _file(tensors=[_tensor(shape=(32, 1, 1, 1, 1))])),
        ("no dimension", _file(tensors=[_tensor(shape=())])),
        ("2^63 elements", _file(tensors=[_tensor(shape=(2**32, 2**31))])),
        ("0 elements", _file(tensors=[_tensor(shape=(32, 0))])),
        ("rows that fit no block", _file(tensors=[_tensor(shape=(33, 4), kind=2)])),
        ("an unknown type of tensor", _file(tensors=[_tensor(kind=200)])),
        ("a name of 64 bytes", _file(tensors=[_tensor(name=b"n" * 64)])),
        ("one tensor twice", _file(tensors=[_tensor(), _tensor(offset=512)])),
        ("an offset outside", _file(tensors=[_tensor(offset=2**40)])),
        ("tensors that overlap", _file(tensors=[_tensor(), _tensor(name=b"b", offset=32)])),
        ("cut short", whole[:-64]),
        ("more tokens than rows", _more_tokens(whole)),
    ]


def _more_tokens(file: bytes) -> bytes:
    at = file.index(_text(b"token_embd.weight")) + 8 + len(b"token_embd.weight") + 4 + 8
    return file[:at] + U64.pack(U64.unpack_from(file, at)[0] - 1) + file[at + 8 :]


def mutations(file: bytes, count: int, *, seed: int) -> Iterator[bytes]:
    """Copies of a file whose header has some bytes changed, or that end early."""
    rng = random.Random(seed)
    begin = file.index(b"output_norm.weight") + 64
    for number in range(count):
        changed = bytearray(file)
        if number % 4 == 0:
            del changed[rng.randrange(len(file)) :]
        else:
            for _ in range(rng.randrange(1, 9)):
                changed[rng.randrange(begin)] = rng.randrange(256)
        yield bytes(changed)
