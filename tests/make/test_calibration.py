"""Calibration text: the same windows for the same text, and one line for each way in which a text is none."""

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from sizewise.core.errors import BadRow, SizewiseError, StorageError, UsageError
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.calibration import load_calibration, read_texts

Family = Callable[[str], Path]
WORDS = "\n\n".join(f"Document {number} says what {number * 7} documents said before it." for number in range(60))


def text(tmp_path: Path, body: str | bytes, name: str = "mine.txt") -> Path:
    path = tmp_path / name
    path.write_bytes(body if isinstance(body, bytes) else body.encode())
    return path


def test_windows_are_those_of_the_shuffled_text(family: Family, tmp_path: Path) -> None:
    made = load_calibration(text(tmp_path, WORDS), family("llama"), tokens=205, window=40, seed=1)
    assert made.windows.shape == (5, 40)
    tokenizer = AutoTokenizer.from_pretrained(family("llama"))
    order = WORDS.split("\n\n")
    random.Random(1).shuffle(order)
    parts = (tokenizer(each + "\n\n", add_special_tokens=False)["input_ids"] for each in order)
    whole = [token for part in parts for token in part]
    assert set(made.windows[:, 0].tolist()) == {tokenizer.bos_token_id}
    assert made.windows[:, 1:].flatten().tolist() == whole[: 5 * 39]
    assert made.texts == tuple(WORDS.split("\n\n"))


def test_the_digest_follows_the_windows(family: Family, tmp_path: Path) -> None:
    def digest(seed: int, **more: int) -> str:
        sizes = {"tokens": 200, "window": 40} | more
        return load_calibration(text(tmp_path, WORDS), family("llama"), seed=seed, **sizes).digest

    assert digest(1) == digest(1)
    assert len({digest(1), digest(2), digest(1, tokens=240), digest(1, window=50)}) == 4


def test_rows_and_paragraphs_are_documents(tmp_path: Path) -> None:
    rows = "".join(json.dumps({key: f"row {key}"}) + "\n" for key in ("text", "input"))
    assert read_texts(text(tmp_path, rows + "\n", "mine.jsonl")) == ["row text", "row input"]
    assert read_texts(text(tmp_path, "one\nline\n\n\n\ntwo\n")) == ["one\nline", "two\n"]


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    assert read_texts(text(tmp_path, b"\xef\xbb\xbfone\n\ntwo")) == ["one", "two"]
    row = json.dumps({"text": "one"}).encode()
    assert read_texts(text(tmp_path, b"\xef\xbb\xbf" + row, "mine.jsonl")) == ["one"]
    assert read_texts(text(tmp_path, b"one\r\n\r\ntwo")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "body", "error", "says"),
    [
        ("mine.txt", b"", UsageError, r"mine.txt: holds no text to calibrate on"),
        ("mine.txt", b" \n\n \t\n", UsageError, r"mine.txt: holds no text to calibrate on"),
        ("mine.txt", "é".encode("latin-1"), UsageError, r"mine.txt: is no UTF-8 text"),
        ("mine.txt", b"PK\x03\x04\xff\xfe", UsageError, r"mine.txt: is no UTF-8 text"),
        ("mine.jsonl", b'{"text": "a"}\n{"text": ', BadRow, r"mine.jsonl:2: no JSON"),
        ("mine.jsonl", b'{"text": "a"}\n\n{"txt": "b"}', BadRow, r"mine.jsonl:3: expected an object with a string"),
        ("mine.jsonl", b'{"text": 3}', BadRow, r'mine.jsonl:1: expected an object with a string "text"'),
        ("mine.jsonl", b"[1]", BadRow, r"mine.jsonl:1: expected an object"),
        ("mine.txt", b"Too short.", UsageError, r"mine.txt: \d+ tokens of text, 6 windows of 40 need 2\d\d: give more"),
        (None, b"", StorageError, r"none.txt: cannot be read: No such file"),
    ],
)  # fmt: skip
def test_what_is_no_text_is_refused_in_one_line_and_leaves_nothing(
    name: str | None, body: bytes, error: type[SizewiseError], says: str, family: Family, tmp_path: Path
) -> None:
    path = text(tmp_path, body, name) if name else tmp_path / "none.txt"
    store = Store(tmp_path / "store")
    options = {"calibration": str(path), "tokens": 240, "window": 40}
    with pytest.raises(error, match=says) as caught:
        make("wanda", str(family("llama")), name="x", options=options, store=store)
    assert "\n" not in str(caught.value)
    assert not store.list()
    incoming = store.layout.incoming
    assert not incoming.exists() or not list(incoming.iterdir())
    options["calibration"] = str(text(tmp_path, WORDS, "good.txt"))
    assert make("wanda", str(family("llama")), name="x", options=options, store=store).name == "x"


def test_a_folder_is_no_text(family: Family, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="cannot be read: Is a directory"):
        load_calibration(tmp_path, family("llama"), tokens=240, window=40)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tokens": 30, "window": 40}, "30 calibration tokens make no window of 40"),
        ({"tokens": 600, "window": 300}, "windows of 300 tokens exceed the model's context of 256"),
        ({"tokens": 0, "window": 40}, "tokens must be at least 1"),
        ({"tokens": 40, "window": 1}, "window must be at least 2"),
    ],
)
def test_numbers_that_make_no_window(options: dict[str, int], says: str, family: Family, tmp_path: Path) -> None:
    given = {"calibration": str(text(tmp_path, WORDS * 4)), **options}
    with pytest.raises(UsageError, match=says):
        make("wanda", str(family("llama")), name="x", options=given, store=Store(tmp_path / "store"))


def test_a_method_that_uses_no_text_says_so(family: Family, tmp_path: Path) -> None:
    given = {"calibration": str(text(tmp_path, WORDS))}
    with pytest.raises(UsageError, match="magnitude uses no calibration text"):
        make("magnitude", str(family("llama")), name="x", options=given, store=Store(tmp_path / "store"))
