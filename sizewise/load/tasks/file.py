"""A task file becomes a task: flat TOML beside its data, or a Python file for what TOML cannot say.

The TOML is data only: no expressions, no nesting, no key that is quietly ignored. docs/measuring.md explains each key.

A `.py` file is the user's own program, run with the user's rights like `python file.py`; only naming one does that. Its
`task()` returns a `Task`, or a dictionary of the keys of a task file in which train, dev and test may be rows:

    def task():
        rows = [{"input": str(n), "label": "odd" if n % 2 else "even"} for n in range(100)]
        return {"kind": "classify", "prompt": "{input} is", "test": rows}
"""

import runpy
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from sizewise.core.errors import BadRow, SizewiseError, UnknownName, UsageError
from sizewise.core.task import Format, Item, Kind, Split, Task, changed, placeholders
from sizewise.load.tasks.items import Roles, items_of
from sizewise.load.tasks.rows import Row, open_file, read_rows

_EVERY = ("name", "kind", "train", "dev", "test", "input", "prompt", "format", "metric", "system", "where")
_SHOTS = ("shots", "seed", "separator", "answer_prefix")
_WRITES = ("max_tokens", "stop")
KEYS: dict[Kind, tuple[str, ...]] = {
    "classify": (*_EVERY, *_SHOTS, *_WRITES, "label", "labels"),
    "choose": (*_EVERY, *_SHOTS, *_WRITES, "label", "choices"),
    "generate": (*_EVERY, *_SHOTS, *_WRITES, "target"),
    "number": (*_EVERY, *_SHOTS, *_WRITES, "label", "target"),
    "code": (*_EVERY, *_SHOTS, *_WRITES, "target", "tests", "entry_point"),
    "perplexity": tuple(key for key in _EVERY if key not in ("prompt", "format", "system")),
}
_ALL_KEYS = frozenset(key for keys in KEYS.values() for key in keys)
_NUMBERS = {"shots": 0, "seed": 0, "max_tokens": 1}  # each with its least value
_LISTS = ("labels", "stop")


@dataclass(frozen=True, slots=True)
class _Defaults:
    """What a kind of task means where the file says nothing."""

    metric: str
    format: Format
    prompt: str
    max_tokens: int
    stop: tuple[str, ...] = ()


_CODE_PROMPT = "Complete this Python function. Answer with the whole function in one code block.\n\n{input}"
_DEFAULTS: dict[Kind, _Defaults] = {
    "classify": _Defaults("accuracy", "text", "{input}\nAnswer:", 16),
    "choose": _Defaults("accuracy", "text", "Question: {input}\nAnswer:", 64),
    "generate": _Defaults("chrf", "chat", "{input}", 256),
    "number": _Defaults("number-match", "chat", "{input}\nEnd with '#### ' and the number.", 512),
    "code": _Defaults("pass-at-1", "chat", _CODE_PROMPT, 512),
    # bits per byte, because perplexities of models with different tokens cannot be compared
    "perplexity": _Defaults("bits-per-byte", "text", "{input}", 1),
}
# A function that is continued as plain text is over where the next thing at the margin begins.
_CODE_STOP = ("\nclass ", "\ndef ", "\n#", "\nif ", "\nprint(")


def load_task(path: Path | str) -> Task:
    """Read a task and all its items.

    Args:
        path: a .toml file; or a .py file of the user's own, which is run and whose `task()` gives the task.

    Returns:
        The task. The ids of its items are `split:line`, with the line (Parquet: the row) at which each starts.

    Raises:
        UnknownName: a key, a kind or a file that there is not; the nearest one is offered.
        BadRow: a line of the task file or of the data is wrong; the message begins with file:line.
        UsageError: the keys contradict one another.
    """
    path = Path(path)
    if path.suffix.lower() == ".py":
        return _run_task_file(path)
    if path.suffix.lower() != ".toml":
        raise UsageError(f"{path}: a task is a .toml or a .py file")
    return _build(path, _read_toml(path))


def _read_toml(path: Path) -> dict[str, Any]:
    """The keys of a task file, checked for name and type."""
    with open_file(path) as file:
        try:
            text = file.read(1_000_000).decode("utf-8-sig")
            keys = tomllib.loads(text.replace("\r\n", "\n"))
        except UnicodeDecodeError:
            raise BadRow(path, 1, "not UTF-8 text; save the file as UTF-8") from None
        except tomllib.TOMLDecodeError as error:
            problem, _, place = str(error).partition(" (at ")
            digits = place.removeprefix("line ").partition(",")[0]
            line = int(digits) if digits.isdigit() else text.rstrip().count("\n") + 1  # else: "end of document"
            raise BadRow(path, line, f"not TOML: {problem}") from None
    for key, value in keys.items():
        _check_type(path, key, value)
    return keys


def _run_task_file(path: Path) -> Task:
    """The task that the user's own program makes."""
    with open_file(path):  # so that a missing file is said as for any other
        pass
    try:
        program = runpy.run_path(str(path))
        if "task" not in program:
            raise UsageError(f"{path}: defines no function task()")
        answer = program["task"]()
    except SizewiseError:
        raise
    except Exception as error:  # whatever a user's program raises is theirs to see, in one line
        reason = (str(error).splitlines() or [""])[0]
        raise UsageError(f"{path}: the program failed with {type(error).__name__}: {reason}") from error
    if isinstance(answer, Task):
        return changed(answer, metric=answer.metric.replace("_", "-"))
    if not isinstance(answer, dict):
        raise UsageError(f"{path}: task() must return a Task or a dictionary of keys, not {type(answer).__name__}")
    for key, value in answer.items():
        if key not in get_args(Split) or isinstance(value, str):
            _check_type(path, key, value)
    return _build(path, answer)


def _check_type(path: Path, key: str, value: Any) -> None:
    """Each key is known and has one type."""
    if key not in _ALL_KEYS:
        raise UnknownName("key", key, _ALL_KEYS, remedy=f"in {path}")
    if key in _NUMBERS:
        if isinstance(value, bool) or not isinstance(value, int) or value < _NUMBERS[key]:
            raise UsageError(f"{path}: {key} must be a whole number of at least {_NUMBERS[key]}, not {value!r}")
    elif key in _LISTS:
        if not isinstance(value, list) or not all(isinstance(entry, str) and entry for entry in value):
            raise UsageError(f"{path}: {key} must be a list of texts, not {value!r}")
    elif not isinstance(value, str):
        raise UsageError(f"{path}: {key} must be a text, not {value!r}")


def _build(path: Path, keys: dict[str, Any]) -> Task:
    """The task that the keys describe, with its items."""
    kind = _kind(path, keys)
    defaults = _DEFAULTS[kind]
    form = _format(path, keys, defaults)
    roles = Roles.of(kind, keys)
    splits = _splits(path, keys, kind, roles)
    prompt = keys.get("prompt", defaults.prompt)
    _check_prompt(path, prompt, roles, splits)
    labels = _labels(path, keys, kind, splits)
    shots = keys.get("shots", 0)
    if shots and len(splits.get("train", ())) < shots:
        raise UsageError(f"{path}: shots = {shots} needs a train split of at least {shots} rows to draw them from")
    separator = keys.get("separator", "\n\n")
    stop = tuple(keys["stop"]) if "stop" in keys else _stop(kind, form, shots, separator)
    task = Task(
        name=keys.get("name", path.stem),
        kind=kind,
        metric=keys.get("metric", defaults.metric).replace("_", "-"),
        prompt=prompt,
        labels=labels,
        shots=shots,
        format=form,
        max_tokens=keys.get("max_tokens", defaults.max_tokens),
        stop=stop,
        system=keys.get("system", ""),
        separator=separator,
        answer_prefix=keys.get("answer_prefix", " " if form == "text" and kind != "code" else ""),
        seed=keys.get("seed", 0),
        splits=splits,
        source=str(path),
        digest="",
        fields=roles.as_dict(),
    )
    return changed(task)


def _kind(path: Path, keys: Mapping[str, Any]) -> Kind:
    """The kind of the task; it must be one that we know and make use of every key given."""
    if "kind" not in keys:
        raise UsageError(f"{path}: no kind; add one of " + ", ".join(f'kind = "{kind}"' for kind in get_args(Kind)))
    kind: Kind = keys["kind"]
    if kind not in KEYS:
        raise UnknownName("kind of task", kind, KEYS, remedy=f"in {path}")
    for key in keys:
        if key not in KEYS[kind]:
            users = ", ".join(other for other in KEYS if key in KEYS[other])
            raise UsageError(f"{path}: the key {key!r} has no meaning for kind {kind!r} (only for {users})")
    return kind


def _format(path: Path, keys: Mapping[str, Any], defaults: _Defaults) -> Format:
    """How prompts are put: as text to continue, or as a conversation through the model's chat template."""
    form: Format = keys.get("format", defaults.format)
    if form not in get_args(Format):
        raise UnknownName("format", form, get_args(Format), remedy=f"in {path}")
    idle = ("system",) if form == "text" else ("separator", "answer_prefix")
    for key in idle:
        if key in keys:
            raise UsageError(f'{path}: {key} has no effect with format = "{form}"; remove it or change the format')
    return form


def _stop(kind: Kind, form: Format, shots: int, separator: str) -> tuple[str, ...]:
    """Where an answer ends when the file does not say: plain text has no end of its own."""
    if form == "chat" or kind == "perplexity":
        return ()
    if kind == "code":
        return _CODE_STOP
    return (separator,) if shots and separator else ()


def _splits(path: Path, keys: Mapping[str, Any], kind: Kind, roles: Roles) -> dict[Split, tuple[Item, ...]]:
    """The items of each split that the file names. Paths are relative to the task file."""
    if "test" not in keys:
        raise UsageError(f'{path}: no test split; add test = "a file of rows"')
    allowed = frozenset(map(_bare, keys["labels"])) if "labels" in keys else None
    splits: dict[Split, tuple[Item, ...]] = {}
    for split in get_args(Split):
        if split in keys:
            place = path.parent / keys[split] if isinstance(keys[split], str) else path
            rows = read_rows(place) if isinstance(keys[split], str) else _given_rows(path, keys[split])
            splits[split] = items_of(rows, place, split, kind, roles, allowed)
    return splits


def _given_rows(path: Path, rows: Iterable[Any]) -> Iterator[tuple[int, Row]]:
    """The rows that a program made, counted from 1."""
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise BadRow(path, None, f"row {number} is a {type(row).__name__}, not a dictionary of fields")
        yield number, row


def _bare(label: str) -> str:
    return label.strip()


def _check_prompt(path: Path, prompt: str, roles: Roles, splits: Mapping[Split, tuple[Item, ...]]) -> None:
    """Every field that the prompt names must be in every row, and must not give the answer away."""
    names = [name for name in placeholders(prompt) if name != "input"]
    for name in names:
        if name in roles.answers():
            raise UsageError(f"{path}: the prompt holds {{{name}}}, which is the answer; remove it")
        for split, items in splits.items():
            for item in items:
                if item.fields.get(name) is None:
                    line = item.id.partition(":")[2]
                    known = ", ".join(sorted(item.fields))
                    raise UsageError(
                        f"{path}: the prompt names {{{name}}}, which line {line} of the {split} rows "
                        f"lacks; its fields are {known}"
                    )
    if "input" not in placeholders(prompt) and not names:
        raise UsageError(f"{path}: the prompt names no field, so every item would get the same; add {{input}}")


def _labels(
    path: Path, keys: Mapping[str, Any], kind: Kind, splits: Mapping[Split, tuple[Item, ...]]
) -> tuple[str, ...]:
    """All classes, sorted: those that the file lists, else those that the rows hold."""
    if kind != "classify":
        return ()
    if "labels" in keys:
        labels = {_bare(label) for label in keys["labels"]}
        if len(labels) != len(keys["labels"]):
            raise UsageError(f"{path}: labels holds one label twice")
    else:
        labels = {item.expected for items in splits.values() for item in items if item.expected is not None}
    if len(labels) < 2:
        raise UsageError(f"{path}: a task of kind classify needs at least two labels; found {sorted(labels)}")
    return tuple(sorted(labels))
