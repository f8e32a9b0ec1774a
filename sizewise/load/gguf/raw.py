"""Reading the bytes of a GGUF header: a mapped file and a place in it that never moves past the end."""

import mmap
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from struct import Struct, error
from typing import Any

from sizewise.core.errors import BadModel, StorageError

U32, U64 = Struct("<I"), Struct("<Q")
_MAX_STRING = 16 * 2**20
_NOT_GGUF = {
    b"PK\x03\x04": "a zip archive",
    b"ggml": "an old GGML file",
    b"lmgg": "an old GGML file",
    b"\x80\x02": "a pickle",
}


class Cursor:
    """A place in the mapped file that never moves past its end."""

    def __init__(self, data: mmap.mmap, name: str, at: int = 0) -> None:
        self.data, self.name, self.at, self.size = data, name, at, len(data)

    def bad(self, problem: str) -> BadModel:
        """The error that says `problem` of this file."""
        return BadModel(one_line(f"{self.name}: {problem}"))

    def cut_short(self, problem: str) -> BadModel:
        """The error that says that the file ends too early."""
        return BadModel(one_line(f"{self.name} is cut short: {problem}, the file has {self.size}; get it again"))

    def need(self, count: int) -> None:
        """Check that `count` more bytes are there."""
        if self.at + count > self.size:
            raise self.cut_short(f"its header goes on to byte {self.at + count}")

    def scalar(self, layout: Struct) -> Any:
        """Read one number or boolean."""
        self.need(layout.size)
        (value,) = layout.unpack_from(self.data, self.at)
        self.at += layout.size
        return value

    def string(self, errors: str = "strict", limit: int = _MAX_STRING) -> str:
        """Read one text; `errors` says what becomes of bytes that are not UTF-8."""
        length = self.scalar(U64)
        if length > limit:
            raise self.bad(f"a text of {length} bytes at byte {self.at - 8}; the limit is {limit}")
        self.need(length)
        raw = self.data[self.at : self.at + length]
        self.at += length
        try:
            return raw.decode("utf-8", errors)
        except UnicodeDecodeError:
            raise self.bad(f"a name that is not UTF-8 at byte {self.at - length}") from None

    def skip_strings(self, count: int) -> None:
        """Step over `count` texts. The loop is the cost of a header: nothing else is done in it."""
        data, at, unpack = self.data, self.at, U64.unpack_from
        try:
            for _ in range(count):
                (length,) = unpack(data, at)
                if length > _MAX_STRING:
                    raise self.bad(f"a text of {length} bytes at byte {at}; the limit is {_MAX_STRING}")
                at += 8 + length
        except error:
            self.at = at
            self.need(8)
            raise
        self.at = at
        self.need(0)


def one_line(text: str) -> str:
    """The text with line ends and control characters written as escapes: names in a file may hold anything."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


@contextmanager
def mapped(path: Path) -> Iterator[mmap.mmap]:
    """The bytes of a file, read as they are touched.

    Raises:
        BadModel: there is no such file, it is empty, or it is a folder, pipe or device.
        StorageError: it cannot be opened.
    """
    with _map(path) as data:
        yield data


def _map(path: Path) -> mmap.mmap:
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise BadModel(f"{path.name} is a folder, not a GGUF file")
        if not stat.S_ISREG(status.st_mode):  # opening a pipe or a device could wait for ever
            raise BadModel(f"{path.name} is not a regular file")
        if not status.st_size:
            raise BadModel(f"{path.name} is not a GGUF: it has 0 bytes; get it again")
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise BadModel(f"{path}: there is no such file") from None
    except (OSError, ValueError) as problem:
        raise StorageError(f"{path} cannot be read: {problem}") from problem


def guess_format(head: bytes) -> str:
    """What a file that is no GGUF seems to be, from its first bytes."""
    start = head.lstrip().lower()
    if start.startswith((b"<!doctype", b"<html", b"<head", b"<?xml")):
        return "it is an HTML page, so the download went wrong"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself"
    for magic, what in _NOT_GGUF.items():
        if head.startswith(magic):
            return f"it is {what}"
    if head[8:9] == b"{":
        return "it looks like a safetensors file"
    return f"it begins with {head[:4]!r}"
