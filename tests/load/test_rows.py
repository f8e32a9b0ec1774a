"""Rows: every format gives the same rows, and whatever is wrong is said with file and line."""

import json
import os
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sizewise.core.errors import BadRow, SizewiseError, UsageError
from sizewise.load.tasks.rows import read_rows


def write(path: Path, data: bytes) -> Path:
    path.write_bytes(data)
    return path


GOOD = b'{"input": "a", "label": "x"}\n'


def test_every_format_gives_the_same_rows(tmp_path: Path) -> None:
    rows = [{"input": 'caf\u00e9, "quoted"', "label": "x"}, {"input": "two\nlines", "label": "y"}]
    jsonl = write(tmp_path / "a.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    text = 'input,label\n"caf\u00e9, ""quoted""",x\n"two\nlines",y\n'
    comma = write(tmp_path / "a.csv", text.encode())
    tab = write(tmp_path / "a.tsv", 'input\tlabel\n"caf\u00e9, ""quoted"""\tx\n"two\nlines"\ty\n'.encode())
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert list(read_rows(jsonl)) == [(1, rows[0]), (2, rows[1])]
    assert list(read_rows(tmp_path / "a.parquet")) == [(1, rows[0]), (2, rows[1])]
    for path in (comma, tab):
        assert list(read_rows(path)) == [(2, rows[0]), (3, rows[1])]


def test_a_row_that_follows_a_row_of_several_lines_is_counted_where_it_starts(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'input,label\n"one\ntwo\nthree",x\n\nfour,y\n')
    assert [line for line, _ in read_rows(path)] == [2, 6]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_byte_order_mark_windows_line_ends_and_blank_lines_are_accepted(tmp_path: Path, name: str) -> None:
    body = {"a.jsonl": b'{"input": "a"}\r\n\r\n{"input": "b"}', "a.csv": b"input\r\na\r\n\r\nb"}[name]
    path = write(tmp_path / name, b"\xef\xbb\xbf" + body)
    assert [row for _, row in read_rows(path)] == [{"input": "a"}, {"input": "b"}]


BAD_LINES = {
    "array": (b"[1, 2]\n", "a JSON array where one object"),
    "text": (b'"x"\n', "a JSON string where one object"),
    "number": (b"17\n", "a JSON number where one object"),
    "null": (b"null\n", "a JSON null where one object"),
    "cut in a text": (b'{"input": "a", "lab', "cut short"),
    "cut after a value": (b'{"input": "a"', "cut short"),
    "two objects": (b'{"a": 1} {"b": 2}\n', "not JSON: Extra data"),
    "single quotes": (b"{'input': 'a'}\n", "not JSON"),
    "trailing comma": (b'{"input": "a",}\n', "not JSON"),
    "NaN": (b'{"input": NaN}\n', "NaN is not JSON"),
    "Infinity": (b'{"input": -Infinity}\n', "-Infinity is not JSON"),
    "huge number": (b'{"input": ' + b"9" * 5000 + b"}\n", "not usable JSON"),
    "key twice": (b'{"input": "a", "input": "b"}\n', "'input' comes twice"),
    "deep": (b'{"a":' + b"[" * 100_000 + b"\n", "nested too deeply"),
    "NUL": (b'{"input": "a\0"}\n', "NUL byte"),
    "not UTF-8": (b'{"input": "caf\xe9"}\n', "not UTF-8 at byte 15"),
    "cut in a character": (b'{"input": "caf\xc3', "not UTF-8"),
    "half a surrogate pair": (b'{"input": "\\ud800"}\n', "surrogate"),
    "long": (b'{"input": "' + b"a" * 3000 + b'"}\n', "longer than 2,000 bytes"),
}


@pytest.mark.parametrize("kind", BAD_LINES)
def test_a_bad_line_is_named(tmp_path: Path, kind: str) -> None:
    line, problem = BAD_LINES[kind]
    path = write(tmp_path / "a.jsonl", GOOD * 6 + line)
    limit = 2_000 if kind == "long" else 1_000_000
    with pytest.raises(BadRow) as caught:
        list(read_rows(path, max_line_bytes=limit))
    assert str(caught.value).startswith(f"{path}:7: ")
    assert problem in str(caught.value)
    assert "\n" not in str(caught.value)
    assert (caught.value.line, caught.value.exit_code) == (7, 2)


def test_rows_before_a_bad_line_have_been_given(tmp_path: Path) -> None:
    rows = read_rows(write(tmp_path / "a.jsonl", GOOD + b"["))
    assert next(rows) == (1, {"input": "a", "label": "x"})
    with pytest.raises(BadRow, match=":2: "):
        next(rows)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["jsonl", "csv"])
def test_other_encodings_are_refused(tmp_path: Path, encoding: str, ending: str) -> None:
    path = write(tmp_path / f"a.{ending}", '{"input": "a"}\n'.encode(encoding))
    with pytest.raises(BadRow, match=r":1: .*UTF-8"):
        list(read_rows(path))


@pytest.mark.parametrize("data", [b"", b"\n \n", b"\xef\xbb\xbf"])
def test_an_empty_file_has_no_rows(tmp_path: Path, data: bytes) -> None:
    path = write(tmp_path / "a.jsonl", data)
    with pytest.raises(BadRow, match=r"a\.jsonl: no rows"):
        list(read_rows(path))


def test_csv_with_names_only_has_no_rows(tmp_path: Path) -> None:
    with pytest.raises(BadRow, match="no rows"):
        list(read_rows(write(tmp_path / "a.csv", b"input,label\n")))


@pytest.mark.parametrize(
    ("data", "line", "problem"),
    [
        (b"input,label\na,x\nb\n", 3, "1 fields where the first line names 2"),
        (b"input,label\na,x,y\n", 2, "3 fields"),
        (b"input,input\na,x\n", 1, "each once"),
        (b"input,\na,x\n", 1, "name every field"),
        (b'input,label\na,x\n"b,y\nc,z\n', 3, "quotation mark"),
        (b'input,label\n"a"b,x\n', 2, "not CSV"),
        (b"input,label\na,\xff\n", 2, "not UTF-8"),
        (b"input,label\na,\0\n", 2, "NUL"),
    ],
)
def test_a_bad_line_of_csv_is_named(tmp_path: Path, data: bytes, line: int, problem: str) -> None:
    path = write(tmp_path / "a.csv", data)
    with pytest.raises(BadRow, match=problem) as caught:
        list(read_rows(path))
    assert str(caught.value).startswith(f"{path}:{line}: ")


def test_a_line_of_50_megabytes_is_refused_in_bounded_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", GOOD + b'{"input": "' + b"a" * 50_000_000 + b'"}\n')
    tracemalloc.start()
    try:
        with pytest.raises(BadRow, match=r"a\.jsonl:2: longer than 16,000,000 bytes"):
            list(read_rows(path))
        assert tracemalloc.get_traced_memory()[1] < 40_000_000
    finally:
        tracemalloc.stop()


def test_a_quotation_mark_left_open_does_not_swallow_a_large_file(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", b'input\n"open\n' + b"a line of text\n" * 1_000_000)
    tracemalloc.start()
    try:
        with pytest.raises(BadRow, match=":2: not CSV"):
            list(read_rows(path))
        assert tracemalloc.get_traced_memory()[1] < 5_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("keep", [0, 4, 50, -4])
def test_parquet_cut_short(tmp_path: Path, keep: int) -> None:
    whole = tmp_path / "whole.parquet"
    pq.write_table(pa.table({"input": ["a"] * 100}), whole)
    path = write(tmp_path / "a.parquet", whole.read_bytes()[:keep])
    with pytest.raises(BadRow, match="not a whole Parquet file") as caught:
        list(read_rows(path))
    assert "\n" not in str(caught.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    write(tmp_path / "train.jsonl", GOOD)
    with pytest.raises(UsageError, match=r"did you mean '.*train\.jsonl'"):
        list(read_rows(tmp_path / "trian.jsonl"))
    with pytest.raises(UsageError, match="no known format"):
        list(read_rows(tmp_path / "train.xlsx"))
    (tmp_path / "folder.jsonl").mkdir()
    os.mkfifo(tmp_path / "pipe.jsonl")
    for name in ("folder.jsonl", "pipe.jsonl"):
        with pytest.raises(UsageError, match="not a regular file"):
            list(read_rows(tmp_path / name))
    with pytest.raises(SizewiseError):
        list(read_rows(str(tmp_path / "a\0b.jsonl")))
