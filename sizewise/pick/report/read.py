"""From JSON back to results, strictly: a field of the wrong type is named, never guessed at."""

import dataclasses
import json
import math
import types
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from sizewise.core.errors import StorageError, UsageError
from sizewise.core.measurement import Measurement
from sizewise.core.results import Comparison, FitResult

Result = FitResult | Comparison
_KINDS: dict[str, type[FitResult] | type[Comparison]] = {"fit": FitResult, "comparison": Comparison}


def as_result(value: Result | dict[str, Any], where: str = "result") -> Result:
    """A fit or a comparison, from the object itself or from its JSON.

    Raises:
        UsageError: the JSON is not what `FitResult.as_json` or `Comparison.as_json` write; the field is named.
    """
    if isinstance(value, (FitResult, Comparison)):
        return value
    if not isinstance(value, dict):
        raise UsageError(f"{where}: expected the JSON of a fit or a comparison, not {_name(value)}")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in _KINDS:
        raise UsageError(f"{where}.kind: expected 'fit' or 'comparison', not {_short(kind)}")
    body = {key: item for key, item in value.items() if key != "kind"}
    result: Result = _decode(_KINDS[kind], body, where)
    return result


def read_results(path: Path) -> list[Result]:
    """The results in a JSON file: one result, a list of them, or what `write_report` wrote.

    Raises:
        StorageError: the file cannot be read.
        UsageError: it holds no results.
    """
    try:
        body = json.loads(path.read_text(encoding="utf-8-sig"))
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: no JSON: {error}; pass what --json of fit or compare printed") from error
    if isinstance(body, dict) and body.get("kind") == "report":
        body = body.get("results")
    entries = body if isinstance(body, list) else [body]
    if not entries:
        raise UsageError(f"{path}: holds no results")
    return [as_result(entry, f"{path}: result {place}") for place, entry in enumerate(entries, 1)]


def _decode(hint: Any, value: Any, where: str) -> Any:
    """`value` (from JSON) as an instance of `hint`."""
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint) and isinstance(hint, type):
        return _decode_dataclass(hint, value, where)
    origin, parts = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        (inner,) = (part for part in parts if part is not types.NoneType)
        return None if value is None else _decode(inner, value, where)
    if origin is Literal:
        if value not in parts:
            raise UsageError(f"{where}: expected one of {', '.join(map(repr, parts))}, not {_short(value)}")
        return value
    if origin is tuple:
        entries = _expect(list, value, where)
        return tuple(_decode(parts[0], entry, f"{where}[{place}]") for place, entry in enumerate(entries))
    if origin is dict:
        entries = _expect(dict, value, where)
        return {key: _decode(parts[1], entry, f"{where}.{key}") for key, entry in entries.items()}
    if hint is float:
        return _decode_float(value, where)
    return _expect(hint, value, where)


def _decode_dataclass(kind: type, value: Any, where: str) -> Any:
    entries = _expect(dict, value, where)
    if kind is Measurement:  # its as_json leaves out what says nothing, the unit of a plain count among it
        entries = {"unit": "", **entries}
    hints = get_type_hints(kind)
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in entries:
        if key not in fields:
            raise UsageError(f"{where}.{key}: no such field in a {kind.__name__}")
    for name, field in fields.items():
        no_default = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if no_default and name not in entries:
            raise UsageError(f"{where}.{name}: missing")
    try:
        return kind(**{key: _decode(hints[key], entry, f"{where}.{key}") for key, entry in entries.items()})
    except ValueError as error:  # what a dataclass itself refuses, such as a measurement with neither value nor reason
        raise UsageError(f"{where}: {error}") from error


def _decode_float(value: Any, where: str) -> float:
    number = value if isinstance(value, (int, float)) and not isinstance(value, bool) else None
    if number is None or not math.isfinite(number):
        raise UsageError(f"{where}: expected a finite number, not {_short(value)}")
    return float(number)


def _expect(kind: type, value: Any, where: str) -> Any:
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise UsageError(f"{where}: expected {_TYPE_NAMES.get(kind, kind.__name__)}, not {_short(value)}")
    return value


_TYPE_NAMES = {list: "a list", dict: "an object", str: "a text", int: "a whole number", bool: "true or false"}


def _name(value: Any) -> str:
    return _TYPE_NAMES.get(type(value), type(value).__name__)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
