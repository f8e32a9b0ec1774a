"""Task files: what they mean, what they may not hold, and when two tasks are the same."""

import json
from pathlib import Path
from typing import Any

import pytest

from sizewise.core.errors import BadRow, SizewiseError, UnknownName, UsageError
from sizewise.core.task import Item, changed, fill_prompt, parse_number, placeholders
from sizewise.load.tasks.file import KEYS, load_task

EXAMPLES = Path(__file__).parents[2] / "examples"
ROWS: dict[str, dict[str, Any]] = {
    "classify": {"input": "good", "label": "yes"},
    "choose": {"input": "2 + 2?", "choices": ["3", "4"], "label": 1},
    "generate": {"input": "cat", "target": "chat"},
    "number": {"input": "2 + 2?", "label": "4"},
    "code": {"input": "def f():\n    '''One.\n\n    >>> f()\n    1\n    '''\n", "target": "    return 1\n"},
    "perplexity": {"input": "It was a dark and stormy night."},
}


def write_task(folder: Path, rows: list[dict[str, Any]] | None = None, **keys: Any) -> Path:
    """A task file with its test rows beside it. A key that is None is left out."""
    keys = {"kind": "classify", "test": "test.jsonl"} | keys
    if rows is None:
        rows = [ROWS.get(keys["kind"], ROWS["classify"])]
        rows += [rows[0] | {"input": "bad", "label": "no"}] if rows[0] == ROWS["classify"] else []
    (folder / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    lines = (f"{key} = {json.dumps(value)}" for key, value in keys.items() if value is not None)
    path = folder / "task.toml"
    path.write_text("\n".join(lines))
    return path


def test_the_task_of_the_readme(tmp_path: Path) -> None:
    task = load_task(EXAMPLES / "sentiment.toml")
    assert (task.name, task.kind, task.metric, task.labels) == (
        "sentiment", "classify", "accuracy", ("negative", "positive"),
    )  # fmt: skip
    assert (len(task.splits["train"]), len(task.splits["test"])) == (3000, 2418)
    assert task.splits["test"][16].id == "test:17"
    assert (task.format, task.shots, task.separator, task.answer_prefix) == ("text", 0, "\n\n", " ")


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.toml")), ids=lambda path: path.stem)
def test_every_example_loads(path: Path) -> None:
    assert load_task(path).splits["test"]


@pytest.mark.parametrize(
    ("kind", "metric", "form", "expected"),
    [
        ("classify", "accuracy", "text", "yes"),
        ("choose", "accuracy", "text", "4"),
        ("generate", "chrf", "chat", "chat"),
        ("number", "number-match", "chat", "4"),
        ("code", "pass-at-1", "chat", None),
        ("perplexity", "bits-per-byte", "text", None),
    ],
)
def test_each_kind_has_its_defaults(tmp_path: Path, kind: str, metric: str, form: str, expected: str | None) -> None:
    task = load_task(write_task(tmp_path, kind=kind))
    assert (task.metric, task.format, task.splits["test"][0].expected) == (metric, form, expected)
    assert "{input}" in task.prompt
    assert task.name == "task"


@pytest.mark.parametrize("kind", KEYS)
def test_every_key_of_every_kind_is_accepted(tmp_path: Path, kind: str) -> None:
    row = ROWS[kind] | {"target": ROWS[kind].get("target", "4"), "keep": True, "test": "assert f() == 1", "f": "f"}
    rows = [row, row | {"label": "no"}] if kind == "classify" else [row]
    values = {
        "name": "n", "train": "test.jsonl", "dev": "test.jsonl", "input": "input", "prompt": "{input}?",
        "format": "text", "metric": "m", "where": "keep", "shots": 1, "seed": 3, "separator": "--",
        "answer_prefix": "", "max_tokens": 5, "stop": ["."], "label": "label", "labels": ["yes", "no"],
        "choices": "choices", "target": "target", "tests": "test", "entry_point": "f",
    }  # fmt: skip
    keys = {key: value for key, value in values.items() if key in KEYS[kind]}  # type: ignore[index]
    assert set(KEYS[kind]) - set(keys) <= {"kind", "test", "system"}  # type: ignore[index]
    task = load_task(write_task(tmp_path, rows, **({"kind": kind} | keys)))
    assert set(task.splits) == {"train", "dev", "test"}
    assert task.splits["dev"][0].id == "dev:1"


@pytest.mark.parametrize(
    ("keys", "error", "problem"),
    [
        ({"metrik": "accuracy"}, UnknownName, "no key named 'metrik': did you mean 'metric'"),
        ({"kind": "clasify"}, UnknownName, "did you mean 'classify'"),
        ({"kind": None}, UsageError, "no kind; add one of kind ="),
        ({"test": None}, UsageError, "no test split"),
        ({"test": "tset.jsonl"}, UnknownName, r"did you mean '.*test\.jsonl'"),
        ({"test": "."}, UsageError, "no known format"),
        ({"choices": "choices"}, UsageError, "'choices' has no meaning for kind 'classify' .only for choose"),
        ({"shots": -1}, UsageError, "shots must be a whole number of at least 0, not -1"),
        ({"shots": "3"}, UsageError, "shots must be a whole number"),
        ({"shots": True}, UsageError, "shots must be a whole number"),
        ({"max_tokens": 0}, UsageError, "at least 1"),
        ({"labels": "yes"}, UsageError, "labels must be a list of texts"),
        ({"labels": ["yes", "yes ", "no"]}, UsageError, "one label twice"),
        ({"prompt": 3}, UsageError, "prompt must be a text"),
        ({"format": "chatty"}, UnknownName, "did you mean 'chat'"),
        ({"system": "Be brief."}, UsageError, 'system has no effect with format = "text"'),
        ({"format": "chat", "separator": "\n"}, UsageError, 'separator has no effect with format = "chat"'),
        ({"prompt": "{inptu}"}, UsageError, "names {inptu}, which line 1 of the test rows lacks; its fields are input"),
        ({"prompt": "{input} {label}"}, UsageError, "holds {label}, which is the answer"),
        ({"prompt": "Is it good?"}, UsageError, "names no field"),
        ({"shots": 3}, UsageError, "needs a train split of at least 3 rows"),
        ({"shots": 3, "train": "test.jsonl"}, UsageError, "at least 3 rows"),
        ({"labels": ["yes", "maybe"]}, BadRow, r"test\.jsonl:2: the label 'no' is not in the list of labels: maybe, y"),
        ({"label": "lable"}, BadRow, r"test\.jsonl:1: the field 'lable' is missing; this row has input, label"),
        ({"input": "text"}, BadRow, r"test\.jsonl:1: the field 'text' is missing"),
        ({"where": "keep"}, BadRow, r"test\.jsonl:1: the field 'keep' is missing"),
    ],
)
def test_a_wrong_key_is_named(tmp_path: Path, keys: dict[str, Any], error: type[SizewiseError], problem: str) -> None:
    with pytest.raises(error, match=problem) as caught:
        load_task(write_task(tmp_path, **keys))
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("kind", "row", "problem"),
    [
        ("classify", {"label": ""}, "the field 'label' is empty"),
        ("classify", {"label": None}, "the field 'label' is null"),
        ("classify", {"label": 0.5}, "a text or a whole number, not 0.5"),
        ("classify", {"input": " "}, "a text that is not empty"),
        ("classify", {"input": 3}, "a text that is not empty, not 3"),
        ("choose", {"label": 2}, "no choice 2 .*the 2 choices are counted from 0"),
        ("choose", {"label": -1}, "no choice -1"),
        ("choose", {"label": "5"}, "no choice 5"),
        ("choose", {"label": "five"}, "one of the choices or its index"),
        ("choose", {"label": True}, "one of the choices or its index"),
        ("choose", {"choices": ["a"], "label": 0}, "at least two choices"),
        ("choose", {"choices": ["a", "a"], "label": 0}, "all different"),
        ("choose", {"choices": "a, b"}, "must be a list of texts, not 'a, b'"),
        ("choose", {"choices": [1, 2]}, "must be a list of texts"),
        ("generate", {"target": ""}, "a text that is not empty"),
        ("number", {"label": "four"}, "must be a number, not 'four'"),
        ("number", {"label": True}, "must be a number"),
        ("code", {"input": "def f(): ..."}, "nothing to judge an answer by"),
        ("code", {"test": 3}, "must be Python code, not 3"),
        ("perplexity", {"input": None}, "the field 'input' is null"),
    ],
)
def test_a_row_that_does_not_fit_its_kind_is_named(
    tmp_path: Path, kind: str, row: dict[str, Any], problem: str
) -> None:
    path = write_task(tmp_path, [ROWS[kind], ROWS[kind] | row], kind=kind)
    with pytest.raises(BadRow, match=problem) as caught:
        load_task(path)
    assert str(caught.value).startswith(f"{tmp_path / 'test.jsonl'}:2: ")


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b'kind = "classify"\ntest = ', r"task\.toml:2: not TOML"),
        (b'kind = "classify"\nkind = "choose"\n', r"task\.toml:2: not TOML: Cannot overwrite"),
        ('kind = "classify"'.encode("utf-16"), "not UTF-8"),
        (b"[task]\nkind = 3\n", "no key named 'task'"),
        (b"", "no kind"),
    ],
)
def test_a_file_that_is_no_task(tmp_path: Path, data: bytes, problem: str) -> None:
    path = tmp_path / "task.toml"
    path.write_bytes(data)
    with pytest.raises(UsageError, match=problem):
        load_task(path)


def test_a_task_file_may_have_a_byte_order_mark_and_windows_line_ends(tmp_path: Path) -> None:
    path = write_task(tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    assert load_task(path).kind == "classify"


def test_files_that_are_no_task(tmp_path: Path) -> None:
    write_task(tmp_path)
    with pytest.raises(UsageError, match=r"did you mean '.*task\.toml'"):
        load_task(tmp_path / "tsak.toml")
    with pytest.raises(UsageError, match=r"a task is a \.toml or a \.py file"):
        load_task(tmp_path / "test.jsonl")


def test_labels_and_choices_come_in_every_form_people_write(tmp_path: Path) -> None:
    rows: list[dict[str, Any]]
    rows = [{"input": "a", "label": label} for label in (1, "0", True, " spam ")]
    task = load_task(write_task(tmp_path, rows))
    assert [item.expected for item in task.splits["test"]] == ["1", "0", "true", "spam"]
    assert task.labels == ("0", "1", "spam", "true")
    rows = [{"input": "a", "choices": ["3", "0"], "label": label} for label in (1, "1", "0", "3")]
    task = load_task(write_task(tmp_path, rows, kind="choose"))
    assert [item.expected for item in task.splits["test"]] == ["0", "0", "0", "3"]
    (tmp_path / "c.csv").write_text('input,choices,label\na,"[""x"", ""y""]",1\n')
    task = load_task(write_task(tmp_path, kind="choose", test="c.csv"))
    assert (task.splits["test"][0].choices, task.splits["test"][0].expected) == (("x", "y"), "y")


def test_a_number_may_be_shown_with_its_steps_or_be_the_end_of_them(tmp_path: Path) -> None:
    row = {"input": "2 + 2?", "label": 4, "target": "Two and two.\n#### 4"}
    item = load_task(write_task(tmp_path, [row], kind="number", target="target", label="label")).splits["test"][0]
    assert (item.expected, item.worked) == ("4", row["target"])
    item = load_task(write_task(tmp_path, [row], kind="number", target="target")).splits["test"][0]
    assert (item.expected, item.worked) == ("4", row["target"])


def test_only_rows_that_hold_true_are_items(tmp_path: Path) -> None:
    rows = [ROWS["generate"] | {"keep": keep} for keep in (True, False, True)]
    task = load_task(write_task(tmp_path, rows, kind="generate", where="keep"))
    assert [item.id for item in task.splits["test"]] == ["test:1", "test:3"]
    with pytest.raises(BadRow, match="no rows in which 'keep' is true"):
        load_task(write_task(tmp_path, rows[1:2], kind="generate", where="keep"))
    with pytest.raises(BadRow, match=":1: the field 'keep' must be true or false, not 3"):
        load_task(write_task(tmp_path, [rows[0] | {"keep": 3}], kind="generate", where="keep"))


def test_the_digest_is_that_of_the_content_not_of_the_place(tmp_path: Path) -> None:
    (tmp_path / "b").mkdir()
    first = load_task(write_task(tmp_path))
    moved = load_task(write_task(tmp_path / "b", name="another"))
    assert first.digest == moved.digest
    assert first.digest.startswith("sha256:")


@pytest.mark.parametrize(
    "change",
    [
        {"prompt": "{input}:"}, {"metric": "macro-f1"}, {"seed": 1}, {"max_tokens": 3}, {"stop": ["."]},
        {"answer_prefix": ""}, {"separator": " "}, {"format": "chat"}, {"labels": ["yes", "no", "maybe"]},
        {"dev": "test.jsonl"}, {"train": "test.jsonl"}, {"shots": 1, "train": "test.jsonl"},
    ],
    ids=str,
)  # fmt: skip
def test_whatever_can_change_a_score_changes_the_digest(tmp_path: Path, change: dict[str, Any]) -> None:
    assert load_task(write_task(tmp_path)).digest != load_task(write_task(tmp_path, **change)).digest


def test_a_changed_row_changes_the_digest(tmp_path: Path) -> None:
    rows = [ROWS["classify"], {"input": "bad", "label": "no"}]
    digests = {load_task(write_task(tmp_path, rows)).digest}
    for changed_rows in (
        rows[::-1],
        [*rows, rows[0]],
        [rows[0], rows[1] | {"input": "Bad"}],
        [rows[0] | {"x": 1}, rows[1]],
    ):
        digests.add(load_task(write_task(tmp_path, changed_rows)).digest)
    assert len(digests) == 5


def test_a_changed_task_has_another_digest() -> None:
    task = load_task(EXAMPLES / "boolq.toml")
    more = changed(task, shots=4)
    assert (more.shots, more.digest != task.digest) == (4, True)
    assert changed(more, shots=0) == task


def test_a_program_may_make_the_task(tmp_path: Path) -> None:
    path = tmp_path / "parity.py"
    path.write_text(
        "def task():\n"
        "    rows = [{'input': str(n), 'label': 'odd' if n % 2 else 'even'} for n in range(10)]\n"
        "    return {'kind': 'classify', 'prompt': '{input} is', 'train': iter(rows), 'test': rows}\n"
    )
    task = load_task(path)
    assert (task.name, task.labels, len(task.splits["train"])) == ("parity", ("even", "odd"), 10)
    assert load_task(path).digest == task.digest
    path.write_text(
        "from sizewise.load.tasks.file import load_task\n"
        f"def task():\n    return load_task({str(EXAMPLES / 'boolq.toml')!r})\n"
    )
    assert load_task(path) == load_task(EXAMPLES / "boolq.toml")


@pytest.mark.parametrize(
    ("program", "problem"),
    [
        ("x = 1", "defines no function task"),
        ("def task(): return 3", "must return a Task or a dictionary of keys, not int"),
        ("def task(): return {'kind': 'classify', 'tests': []}", "tests must be a text"),
        ("def task(): return {'kind': 'classify', 'test': [3]}", "row 1 is a int, not a dictionary"),
        ("def task(): return {'kind': 'classify', 'test': []}", "no rows"),
        ("def task(): return {'kind': 'classify', 'test': [{'input': 'a'}]}", "1: the field 'label' is missing"),
        ("def task(): return 1 / 0", "the program failed with ZeroDivisionError: division by zero"),
        ("def task(:", "the program failed with SyntaxError"),
        ("import nothing_of_this_name", "ModuleNotFoundError"),
    ],
)
def test_a_program_that_makes_no_task(tmp_path: Path, program: str, problem: str) -> None:
    path = tmp_path / "task.py"
    path.write_text(program)
    with pytest.raises(UsageError, match=problem) as caught:
        load_task(path)
    assert "\n" not in str(caught.value)


def test_prompts_are_filled_once() -> None:
    item = Item("test:1", "a {b} c", "x", fields={"text": "a {b} c", "b": "B"})
    assert fill_prompt('{input}|{b}|{{b}}|{"json": 1}|{ b }', item) == 'a {b} c|B|{b}|{"json": 1}|{ b }'
    assert placeholders('{input}|{b}|{{c}}|{"json": 1}|{ d }') == ("input", "b")


@pytest.mark.parametrize(
    ("text", "number"),
    [("1,234.50", "1234.5"), ("$12", "12"), ("-3", "-3"), ("25%", "25"), ("1e3", "1000"), ("4.", "4"),
     ("\u22125", "-5"), ("- $7", "-7"), ("", None), ("four", None), ("1 2", None), ("--1", None), ("nan", None),
     ("1e9999", None)],
)  # fmt: skip
def test_numbers_are_read_as_people_write_them(text: str, number: str | None) -> None:
    from decimal import Decimal

    assert parse_number(text) == (None if number is None else Decimal(number))
