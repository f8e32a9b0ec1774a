"""The signature is the schema: a method's keyword-only parameters become flags, recipe keys, checks and help.

Name, type, default, bounds and search values are written once, in the signature; help comes from the docstring's
`Args:` section. Supported types: bool, int, float, str, `Literal[...]` of strings, and any of them `| None`.
"""

import inspect
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from sizewise.core.errors import UnknownName, UsageError


@dataclass(frozen=True, slots=True)
class Range:
    """Bounds of a number, both inclusive; None = no bound."""

    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True, init=False)
class Search:
    """The values that `fit` tries."""

    values: tuple[Any, ...]

    def __init__(self, *values: Any) -> None:
        object.__setattr__(self, "values", values)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One option of a method."""

    name: str
    type: type
    default: Any
    optional: bool = False  # None is allowed
    choices: tuple[str, ...] = ()
    range: Range = Range()
    search: tuple[Any, ...] = ()
    help: str = ""

    @property
    def required(self) -> bool:
        """True where the signature gives no default."""
        return self.default is inspect.Parameter.empty

    def check(self, value: Any, where: str) -> Any:
        """The value in this parameter's type, or a UsageError that names the bounds."""
        if value is None and self.optional:
            return None
        if self.type is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if not isinstance(value, self.type) or (isinstance(value, bool) and self.type is not bool):
            raise UsageError(f"{where}: {self.name} must be {self.type.__name__}, not {value!r}")
        if self.choices and value not in self.choices:
            raise UnknownName(f"{self.name} for {where}", str(value), self.choices)
        low, high = self.range.low, self.range.high
        outside = isinstance(value, (int, float)) and not (
            (low is None or value >= low) and (high is None or value <= high)
        )
        if outside:
            raise UsageError(f"{where}: {self.name} must be {self._bounds()}, not {value!r}")
        return value

    def _bounds(self) -> str:
        low, high = self.range.low, self.range.high
        if low is not None and high is not None:
            return f"between {low:g} and {high:g}"
        return f"at least {low:g}" if low is not None else f"at most {high:g}"


def schema_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """The keyword-only parameters of `function`, in the order written.

    Types of other parameters are not looked at: they may name what only a type checker has imported.
    """
    texts = _argument_help(inspect.getdoc(function) or "")
    options = {
        name: parameter
        for name, parameter in inspect.signature(function).parameters.items()
        if parameter.kind is inspect.Parameter.KEYWORD_ONLY
    }
    written = types.SimpleNamespace(__annotations__={name: option.annotation for name, option in options.items()})
    hints = get_type_hints(written, globalns=getattr(function, "__globals__", {}), include_extras=True)
    return tuple(_parameter(name, hints[name], option.default, texts.get(name, "")) for name, option in options.items())


def validate(function: Callable[..., Any], given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """All options of `function`, defaults filled in, each checked.

    Raises:
        UnknownName: a key in `given` is no option.
        UsageError: a value has the wrong type or lies outside its bounds, or a required one is missing.
    """
    schema = {parameter.name: parameter for parameter in schema_of(function)}
    for name in given:
        if name not in schema:
            raise UnknownName(f"option of {where}", name, schema)
    checked = {}
    for name, parameter in schema.items():
        if name not in given and parameter.required:
            raise UsageError(f"{where}: {name} is required")
        checked[name] = parameter.check(given[name], where) if name in given else parameter.default
    return checked


def _parameter(name: str, hint: Any, default: Any, text: str) -> Parameter:
    marks: tuple[Any, ...] = ()
    if get_origin(hint) is Annotated:
        hint, *rest = get_args(hint)
        marks = tuple(rest)
    optional = get_origin(hint) in (Union, types.UnionType) and type(None) in get_args(hint)
    if optional:
        (hint,) = (part for part in get_args(hint) if part is not type(None))
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    kind = str if choices else hint
    if kind not in (bool, int, float, str):
        raise TypeError(f"parameter {name}: unsupported type {hint!r}")
    bounds = next((mark for mark in marks if isinstance(mark, Range)), Range())
    search = next((mark.values for mark in marks if isinstance(mark, Search)), ())
    return Parameter(name, kind, default, optional, choices, bounds, search, text)


def _argument_help(doc: str) -> dict[str, str]:
    """`Args:` entries of a Google-style docstring: {name: text}."""
    match = re.search(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", doc, re.MULTILINE)
    if not match:
        return {}
    texts: dict[str, str] = {}
    current = ""
    for line in match.group(1).splitlines():
        entry = re.match(r"^ {4}(\w+): (.*)", line)
        if entry:
            current = entry.group(1)
            texts[current] = entry.group(2)
        elif current and line.strip():
            texts[current] += " " + line.strip()
    return texts
