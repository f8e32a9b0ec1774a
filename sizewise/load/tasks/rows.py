"""Rows of a data file, one at a time: JSON lines, CSV, TSV or Parquet, each as (line number, fields).

A data file is read once, from front to back, in bounded memory. Whatever is wrong with it is said with file and line:
a person who has 100,000 rows cannot look for the one that is cut short.
"""

import csv
import itertools
import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from sizewise.core.errors import BadRow, StorageError, UnknownName, UsageError

Row = dict[str, Any]

MAX_LINE_BYTES = 16_000_000  # one row; longer ones are mistakes (a whole file without line ends), not questions
_BOM = b"\xef\xbb\xbf"
_WIDE_BOMS = (b"\xff\xfe", b"\xfe\xff", b"\x00\x00\xfe\xff")  # UTF-16 and UTF-32, both byte orders


def read_rows(path: Path | str, *, max_line_bytes: int = MAX_LINE_BYTES) -> Iterator[tuple[int, Row]]:
    """Yield the rows of a file; the ending of its name says its format.

    A byte order mark, Windows line ends and blank lines are accepted. The text must be UTF-8.

    Args:
        path: a .jsonl, .ndjson, .json (one object per line), .csv, .tsv or .parquet file.
        max_line_bytes: the longest line that is accepted.

    Yields:
        (line, fields): the 1-based line at which the row starts (Parquet: its 1-based number), and its fields.

    Raises:
        BadRow: a row is not what its format says; the message begins with file:line.
        UsageError: no such file, or of no known format.
        StorageError: the file cannot be read.
    """
    path = Path(path)
    reader = _FORMATS.get(path.suffix.lower())
    if reader is None:
        raise UsageError(f"{path}: no known format; give a file that ends in " + ", ".join(sorted(_FORMATS)))
    empty = True
    for row in reader(path, max_line_bytes):
        empty = False
        yield row
    if empty:
        raise BadRow(path, None, "no rows")


def open_file(path: Path) -> BinaryIO:
    """Open a user's file for reading.

    Raises:
        UsageError: there is no such file (the nearest name in its folder is offered), or it is no regular file.
        StorageError: it cannot be read.
    """
    try:
        if not path.exists():
            siblings = [entry.name for entry in path.parent.iterdir()] if path.parent.is_dir() else []
            raise UnknownName("file", str(path), [str(path.parent / name) for name in siblings])
        if not path.is_file():  # a FIFO or a device would block for ever
            raise UsageError(f"{path}: not a regular file")
        return path.open("rb")
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise StorageError(f"{path}: {reason}; check the path and its permissions") from error


def _text_lines(path: Path, limit: int) -> Iterator[tuple[int, str]]:
    """The lines of a UTF-8 file with their numbers and without their ends. At most `limit` bytes are held."""
    with open_file(path) as file:
        for number in itertools.count(1):
            line = file.readline(limit + 1)
            if not line:
                return
            if number == 1:
                if line.startswith(_WIDE_BOMS):
                    raise BadRow(path, 1, "UTF-16 or UTF-32 text; save the file as UTF-8")
                line = line.removeprefix(_BOM)
            if len(line) > limit:
                raise BadRow(path, number, f"longer than {limit:,} bytes; one row per line is expected")
            if b"\0" in line:
                raise BadRow(path, number, "holds a NUL byte; the file is damaged or not UTF-8 text")
            try:
                yield number, line.decode()
            except UnicodeDecodeError as error:
                raise BadRow(path, number, f"not UTF-8 at byte {error.start + 1} of the line") from None


def _object(pairs: list[tuple[str, Any]]) -> Row:
    """A JSON object, in which no key may come twice: which of the two was meant cannot be known."""
    fields = dict(pairs)
    if len(fields) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} comes twice")
    return fields


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON; write null or a number")


_DECODER = json.JSONDecoder(object_pairs_hook=_object, parse_constant=_no_constant)


def _json_rows(path: Path, limit: int) -> Iterator[tuple[int, Row]]:
    """One JSON object per line."""
    for number, line in _text_lines(path, limit):
        text = line.strip()
        if not text:
            continue
        try:
            fields = _DECODER.decode(text)
        except json.JSONDecodeError as error:
            cut = "Unterminated" in error.msg or (error.pos >= len(text) - 1 and not line.endswith("\n"))
            hint = "; the line is cut short" if cut else ""
            raise BadRow(path, number, f"not JSON: {error.msg} at column {error.colno}{hint}") from None
        except (ValueError, RecursionError) as error:
            problem = "nested too deeply" if isinstance(error, RecursionError) else str(error)
            raise BadRow(path, number, f"not usable JSON: {problem}") from None
        if not isinstance(fields, dict):
            raise BadRow(path, number, f"a JSON {_json_type(fields)} where one object per line is expected")
        if "\\u" in text and not _encodable(fields):
            raise BadRow(path, number, "holds half of a surrogate pair (\\ud800 to \\udfff), which is no text")
        yield number, fields


def _json_type(value: Any) -> str:
    """What JSON calls a value that is no object."""
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _encodable(fields: Row) -> bool:
    """Whether every string of the row can be written as UTF-8."""
    try:
        json.dumps(fields, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _separated_rows(delimiter: str) -> Callable[[Path, int], Iterator[tuple[int, Row]]]:
    """A reader of text with one row per line (or more, inside quotes) and the names of the fields in the first."""

    def rows(path: Path, limit: int) -> Iterator[tuple[int, Row]]:
        lines = (line for _, line in _text_lines(path, limit))
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
        names: list[str] | None = None
        start = 1
        while True:
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise BadRow(path, start, f"not CSV: {error}; is a quotation mark left open?") from None
            if names is None and cells:
                names = _header(path, start, cells)
            elif names is not None and cells:
                if len(cells) != len(names):
                    raise BadRow(path, start, f"{len(cells)} fields where the first line names {len(names)}")
                yield start, dict(zip(names, cells, strict=True))
            start = reader.line_num + 1

    return rows


def _header(path: Path, line: int, cells: list[str]) -> list[str]:
    """The names of the fields, checked."""
    names = [cell.strip() for cell in cells]
    if "" in names or len(set(names)) != len(names):
        raise BadRow(path, line, "the first line must name every field, each once")
    return names


def _parquet_rows(path: Path, limit: int) -> Iterator[tuple[int, Row]]:
    """The rows of a Parquet file, a batch of row groups at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    with open_file(path) as file:
        number = 0
        try:
            for batch in pq.ParquetFile(file).iter_batches(batch_size=1024):
                for number, row in enumerate(batch.to_pylist(), start=number + 1):  # noqa: B020
                    yield number, row
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise BadRow(path, number + 1 if number else None, f"not a whole Parquet file: {reason}") from None


_FORMATS: dict[str, Callable[[Path, int], Iterable[tuple[int, Row]]]] = {
    ".jsonl": _json_rows,
    ".ndjson": _json_rows,
    ".json": _json_rows,
    ".csv": _separated_rows(","),
    ".tsv": _separated_rows("\t"),
    ".parquet": _parquet_rows,
}
