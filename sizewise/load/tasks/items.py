"""Rows become items: the question, the known answer and, for `choose`, the choices, each from its own field."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from sizewise.core.errors import BadRow
from sizewise.core.task import Item, Kind, Split, parse_number
from sizewise.load.tasks.rows import Row


@dataclass(frozen=True, slots=True)
class Roles:
    """Which field of a row plays which part. An empty name: that part is not there."""

    input: str = "input"
    label: str = ""
    target: str = ""
    choices: str = ""
    tests: str = ""
    entry_point: str = ""
    where: str = ""  # a field of true and false; only rows that hold true are items

    @classmethod
    def of(cls, kind: Kind, keys: Mapping[str, Any]) -> Self:
        """The parts that a kind of task has; `keys` may give their fields other names than the usual ones."""
        usual: dict[Kind, dict[str, str]] = {
            "classify": {"label": "label"},
            "choose": {"label": "label", "choices": "choices"},
            "generate": {"target": "target"},
            "number": {"label": "label"},
            "code": {"target": "target", "tests": "test", "entry_point": "entry_point"},
            "perplexity": {},
        }
        names = {"input": "input"} | usual[kind]
        given = {role: keys[role] for role in cls.__dataclass_fields__ if role in keys}
        if kind == "number" and "target" in given and "label" not in given:
            names["label"] = ""  # the number is the last one of the target
        return cls(**names | given)

    def as_dict(self) -> dict[str, str]:
        """Role to field name, of the roles that there are."""
        return {role: getattr(self, role) for role in self.__dataclass_fields__ if getattr(self, role)}

    def answers(self) -> tuple[str, ...]:
        """The fields that hold answers, which no prompt may show."""
        return tuple(name for name in (self.label, self.target, self.tests) if name)


def items_of(
    rows: Iterable[tuple[int, Row]],
    path: Path,
    split: Split,
    kind: Kind,
    roles: Roles,
    labels: frozenset[str] | None = None,
) -> tuple[Item, ...]:
    """The items that rows hold.

    Args:
        rows: (line, fields), as `read_rows` gives them.
        path: where they come from, for messages.
        split: the first part of the ids.
        kind: what an answer is.
        roles: which fields to read.
        labels: the labels that may occur; None: any.

    Raises:
        BadRow: a row lacks a field, or holds something that is no answer of this kind.
    """
    items = []
    for line, row in rows:
        try:
            if not roles.where or _is_true(row, roles.where):
                items.append(_item(f"{split}:{line}", row, kind, roles, labels))
        except _Wrong as problem:
            raise BadRow(path, line, str(problem)) from None
    if not items:
        raise BadRow(path, None, f"no rows in which {roles.where!r} is true" if roles.where else "no rows")
    return tuple(items)


class _Wrong(Exception):
    """What is wrong with a row; the caller knows file and line."""


def _item(identity: str, row: Row, kind: Kind, roles: Roles, labels: frozenset[str] | None) -> Item:
    """One item."""
    question = _text(row, roles.input)
    if kind == "classify":
        return Item(identity, question, _label(row, roles.label, labels), fields=row)
    if kind == "choose":
        choices = _choices(row, roles.choices)
        return Item(identity, question, _chosen(row, roles.label, choices), choices, fields=row)
    if kind == "number":
        return _number_item(identity, question, row, roles)
    if kind == "generate":
        return Item(identity, question, _text(row, roles.target), fields=row)
    if kind == "code":
        return _code_item(identity, question, row, roles)
    return Item(identity, question, None, fields=row)


def _value(row: Row, name: str) -> Any:
    """The value of a field that must be there."""
    value = row.get(name)
    if value is None:
        held = "is null" if name in row else "is missing"
        raise _Wrong(f"the field {name!r} {held}; this row has " + (", ".join(row) or "no fields"))
    return value


def _text(row: Row, name: str) -> str:
    """A field that must be a text with something in it."""
    value = _value(row, name)
    if not isinstance(value, str) or not value.strip():
        raise _Wrong(f"the field {name!r} must be a text that is not empty, not {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _is_true(row: Row, name: str) -> bool:
    """A field of true and false; CSV writes them as words."""
    value = _value(row, name)
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in ("true", "false", "1", "0"):
        return value.strip().lower() in ("true", "1")
    raise _Wrong(f"the field {name!r} must be true or false, not {_shown(value)}")


def _label(row: Row, name: str, allowed: frozenset[str] | None) -> str:
    """A class. Numbers and truth values are classes too, under the names that JSON gives them."""
    value = _value(row, name)
    if isinstance(value, bool):
        label = "true" if value else "false"
    elif isinstance(value, (str, int)):
        label = str(value).strip()
    else:
        raise _Wrong(f"the field {name!r} must be a text or a whole number, not {_shown(value)}")
    if not label:
        raise _Wrong(f"the field {name!r} is empty")
    if allowed is not None and label not in allowed:
        raise _Wrong(f"the label {label!r} is not in the list of labels: " + ", ".join(sorted(allowed)))
    return label


def _choices(row: Row, name: str) -> tuple[str, ...]:
    """The choices: a list of texts; in CSV, a JSON list within the cell."""
    value = _value(row, name)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            raise _Wrong(f"the field {name!r} must be a list of texts, not {_shown(value)}") from None
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise _Wrong(f"the field {name!r} must be a list of texts, not {_shown(value)}")
    if len(value) < 2 or len(set(value)) != len(value):
        raise _Wrong(f"the field {name!r} must hold at least two choices, all different")
    return tuple(value)


def _chosen(row: Row, name: str, choices: tuple[str, ...]) -> str:
    """The text of the right choice; the row may give the text, or the index, counted from 0."""
    value = _value(row, name)
    if isinstance(value, str) and value in choices:
        return value
    index = int(value) if isinstance(value, str) and value.isascii() and value.isdigit() else value
    if isinstance(index, bool) or not isinstance(index, int):
        raise _Wrong(f"the field {name!r} must be one of the choices or its index from 0, not {_shown(value)}")
    if not 0 <= index < len(choices):
        raise _Wrong(f"there is no choice {index} (in {name!r}); the {len(choices)} choices are counted from 0")
    return choices[index]


def _number_item(identity: str, question: str, row: Row, roles: Roles) -> Item:
    """A question with a number for an answer, and the steps to it where the rows have them."""
    worked = _text(row, roles.target) if roles.target else ""
    value = _value(row, roles.label) if roles.label else worked.split()[-1]
    number = None if isinstance(value, bool) else parse_number(str(value))
    if number is None or not number.is_finite():
        source = f"the field {roles.label!r}" if roles.label else f"the end of {roles.target!r}"
        raise _Wrong(f"{source} must be a number, not {_shown(value)}")
    return Item(identity, question, str(value).strip(), fields=row, worked=worked)


def _code_item(identity: str, question: str, row: Row, roles: Roles) -> Item:
    """A function to write. What judges it: the field of tests, else the examples (`>>> `) in the question."""
    tests = row.get(roles.tests)
    if tests is not None and (not isinstance(tests, str) or not tests.strip()):
        raise _Wrong(f"the field {roles.tests!r} must be Python code, not {_shown(tests)}")
    if tests is None and ">>> " not in question:
        raise _Wrong(f"nothing to judge an answer by: no field {roles.tests!r} and no example (>>> ) in the input")
    if roles.target in row:
        return Item(identity, question, None, fields=row, worked=_text(row, roles.target))
    return Item(identity, question, None, fields=row)
