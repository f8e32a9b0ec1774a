"""Strict reading of request bodies: what is not understood is refused or named in a warning, never passed over.

Answers to a bad body say which field is wrong and what was expected, with status 400.
"""

import difflib
import json
import math
from collections.abc import Collection, Iterable
from typing import Any

from sizewise.core.errors import UsageError

MOST_DEPTH = 64
_MISSING = object()


class BadField(UsageError):
    """A field of a body is missing, unknown or holds what it cannot; `field` names it."""

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


def parse_json(data: bytes) -> dict[str, Any]:
    """A JSON object: UTF-8, no duplicate keys, no NaN, no lone surrogates, at most `MOST_DEPTH` levels deep.

    Raises:
        UsageError: the body is empty, is no JSON, or is not an object.
    """
    if not data.strip():
        raise UsageError("missing request body")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UsageError(f"invalid JSON: byte {error.start} is not UTF-8") from error
    if _depth(text) > MOST_DEPTH:
        raise UsageError(f"invalid JSON: nested more than {MOST_DEPTH} levels deep")
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
    except json.JSONDecodeError as error:
        raise UsageError(f"invalid JSON: {error.msg} at line {error.lineno}, column {error.colno}") from error
    if not isinstance(value, dict):
        raise UsageError("invalid request: the body must be a JSON object")
    if "\\u" in text:  # a lone surrogate can come only from an escape
        try:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        except UnicodeEncodeError as error:
            raise UsageError("invalid JSON: a lone surrogate is no text") from error
    return value


def _depth(text: str) -> int:
    """How deep brackets nest, strings left out; counted before parsing, because the parser recurses."""
    depth = deepest = 0
    inside = escaped = False
    for char in text if text.count("[") + text.count("{") > MOST_DEPTH else "":
        if inside:
            if escaped:
                escaped = False
            elif char == "\\":
                escaped = True
            elif char == '"':
                inside = False
        elif char == '"':
            inside = True
        elif char in "[{":
            depth += 1
            deepest = max(deepest, depth)
        elif char in "]}":
            depth -= 1
    return deepest


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise UsageError(f"invalid JSON: the key {twice!r} occurs twice")
    return made


def _constant(name: str) -> float:
    raise UsageError(f"invalid JSON: {name} is no JSON number")


def _float(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise UsageError(f"invalid JSON: {text[:20]} is too large a number")
    return value


def _int(text: str) -> int:
    if len(text) > 20:
        raise UsageError(f"invalid JSON: {text[:20]}... is too large a number")
    return int(text)


class Fields:
    """The fields of one object. Read every known one, then call `finish`: what is left is unknown.

    A field that is absent or null gives the default. `warnings` collects fields that are known but have no effect.
    """

    def __init__(self, body: dict[str, Any], where: str = "") -> None:
        self.body, self.where = body, where
        self.warnings: list[str] = []
        self._known: set[str] = set()

    def name(self, key: str) -> str:
        """The field's full name, as error messages say it."""
        return f"{self.where}.{key}" if self.where else key

    def raw(self, key: str, default: Any = None) -> Any:
        """The value as it came; the default where it is absent or null."""
        self._known.add(key)
        value = self.body.get(key)
        return default if value is None else value

    def text(self, key: str, default: Any = _MISSING, *, most: int | None = None) -> Any:
        """A string of at most `most` characters."""
        value = self.raw(key, _MISSING)
        if value is _MISSING:
            return self._absent(key, default)
        if not isinstance(value, str):
            raise BadField(self.name(key), f"must be a string, not {_kind(value)}")
        if most is not None and len(value) > most:
            raise BadField(self.name(key), f"has {len(value)} characters; at most {most} are allowed")
        return value

    def boolean(self, key: str, default: Any = _MISSING) -> Any:
        """True or false."""
        value = self.raw(key, _MISSING)
        if value is _MISSING:
            return self._absent(key, default)
        if not isinstance(value, bool):
            raise BadField(self.name(key), f"must be true or false, not {_kind(value)}")
        return value

    def number(
        self, key: str, default: Any = _MISSING, *, low: float = -math.inf, high: float = math.inf, above: bool = False
    ) -> Any:
        """A number from `low` to `high`; `above`: `low` itself is excluded."""
        value = self.raw(key, _MISSING)
        if value is _MISSING:
            return self._absent(key, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise BadField(self.name(key), f"must be a number, not {_kind(value)}")
        if not low <= value <= high or (above and value == low):
            raise BadField(self.name(key), f"is {value}; {_range(low, high, above)}")
        return float(value)

    def integer(self, key: str, default: Any = _MISSING, *, low: int = -(2**63), high: int = 2**63 - 1) -> Any:
        """A whole number from `low` to `high`; 5.0 counts as 5, since some clients send that."""
        value = self.raw(key, _MISSING)
        if value is _MISSING:
            return self._absent(key, default)
        whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
        if isinstance(value, bool) or not whole:
            raise BadField(self.name(key), f"must be a whole number, not {value!r:.40}")
        if not low <= value <= high:
            raise BadField(self.name(key), f"is {int(value)}; {_range(low, high, False)}")
        return int(value)

    def choice(self, key: str, choices: Collection[str], default: Any = _MISSING) -> Any:
        """One of some strings."""
        value = self.text(key, default)
        if isinstance(value, str) and value not in choices and value != default:
            raise BadField(self.name(key), f"is {value!r:.60}; expected one of {', '.join(sorted(choices))}")
        return value

    def items(self, key: str, default: Any = _MISSING, *, most: int | None = None) -> Any:
        """A list of at most `most` values."""
        value = self.raw(key, _MISSING)
        if value is _MISSING:
            return self._absent(key, default)
        if not isinstance(value, list):
            raise BadField(self.name(key), f"must be a list, not {_kind(value)}")
        if most is not None and len(value) > most:
            raise BadField(self.name(key), f"has {len(value)} items; at most {most} are allowed")
        return value

    def strings(self, key: str, default: Any = _MISSING, *, most: int | None = None) -> Any:
        """A list of strings; one string alone counts as a list of one."""
        if isinstance(self.body.get(key), str):
            self._known.add(key)
            return [self.body[key]]
        value = self.items(key, default, most=most)
        for place, item in enumerate(value if isinstance(value, list) else ()):
            if not isinstance(item, str):
                raise BadField(f"{self.name(key)}[{place}]", f"must be a string, not {_kind(item)}")
        return value

    def mapping(self, key: str, default: Any = _MISSING) -> Any:
        """An object, as a dictionary."""
        value = self.raw(key, _MISSING)
        if value is _MISSING:
            return self._absent(key, default)
        if not isinstance(value, dict):
            raise BadField(self.name(key), f"must be an object, not {_kind(value)}")
        return value

    def without_effect(self, keys: Iterable[str]) -> None:
        """Known fields that change nothing here: each that is set is named in a warning."""
        for key in keys:
            if self.raw(key) is not None:
                self.warn(f"{self.name(key)} has no effect here")

    def warn(self, text: str) -> None:
        """Add a warning to the answer."""
        if text not in self.warnings:
            self.warnings.append(text)

    def finish(self, *, refuse: bool = True) -> None:
        """Refuse fields that nobody read (or only warn of them); a null says nothing and passes."""
        for key in self.body:
            if key in self._known or self.body[key] is None:
                continue
            close = difflib.get_close_matches(key, self._known, n=1, cutoff=0.6)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            if refuse:
                raise BadField(self.name(key)[:80], f"unknown field{hint}")
            self.warn(f"{self.name(key)[:80]}: unknown, without effect{hint}")

    def _absent(self, key: str, default: Any) -> Any:
        if default is _MISSING:
            raise BadField(self.name(key), "is required")
        return default


def _kind(value: Any) -> str:
    names = {bool: "true or false", str: "a string", int: "a number", float: "a number", list: "a list"}
    return names.get(type(value), "an object")


def _range(low: float, high: float, above: bool) -> str:
    if math.isinf(high) or high >= 2**63 - 1:
        return f"expected {'more than' if above else 'at least'} {low:g}"
    return f"expected {'more than ' if above else ''}{low:g} to {high:g}"
