"""Modelfiles: how a model is made from another one, in Ollama's small line language.

    # a comment
    FROM smollm2                     (or a .gguf file, or a checkpoint folder)
    PARAMETER temperature 0.2
    SYSTEM \"\"\"You are
    brief.\"\"\"

Each instruction begins a line, in upper or lower case. Its value is the rest of the line; a value that begins with one
quotation mark, or with three, goes on until a line that ends with as many. There are no escapes.
"""

import re
from dataclasses import dataclass, field
from typing import Any, NoReturn

from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.core.requests import Message, Role
from sizewise.load.parameters import DEPRECATED, parameter_from_text

_ONCE = ("template", "system", "requires", "renderer", "parser", "draft")
_MANY = {"from": "sources", "adapter": "adapters", "license": "licenses"}
_PLAIN = (*_ONCE, *_MANY)
_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
VERSION = re.compile(r"v?\d+\.\d+\.\d+(-[0-9A-Za-z.-]+)?")
_MOST_BYTES = 4_000_000


@dataclass(slots=True)
class Modelfile:
    """What a Modelfile says. Fields that it leaves out are empty."""

    sources: list[str] = field(default_factory=list)  # FROM; at least one after `parse`
    adapters: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    template: str = ""
    system: str = ""
    licenses: list[str] = field(default_factory=list)
    messages: list[Message] = field(default_factory=list)
    requires: str = ""  # the oldest Ollama that can run it
    renderer: str = ""
    parser: str = ""
    draft: str = ""
    warnings: list[str] = field(default_factory=list)


def parse(text: str, where: str = "Modelfile") -> Modelfile:
    """Read a Modelfile.

    Args:
        text: its content.
        where: what messages call it.

    Raises:
        UsageError: a line says nothing that is known; the message holds its number.
    """
    if len(text) > _MOST_BYTES:
        raise UsageError(f"{where}: has {len(text)} characters; at most {_MOST_BYTES} are read")
    made, lines = Modelfile(), text.lstrip("\ufeff").replace("\r\n", "\n").split("\n")
    reader = _Reader(lines, where)
    while (found := reader.instruction()) is not None:
        word, rest = found
        try:
            _add(made, word, rest, reader)
        except UsageError as error:
            reader.wrong(str(error))
    if not made.sources:
        raise UsageError(f"{where}:{len(lines)}: no FROM line says what the model is made from")
    return made


def _add(made: Modelfile, word: str, rest: str, reader: "_Reader") -> None:
    if word == "parameter":
        name, value = reader.pair(rest, "PARAMETER needs a name and a value")
        _parameter(made, name.lower(), reader.value(value), reader)
    elif word == "message":
        role, value = reader.pair(rest, "MESSAGE needs a role and a text")
        if role not in _ROLES:
            reader.wrong(f"bad role {role[:40]!r}; expected {', '.join(_ROLES)}")
        made.messages.append(Message(role, reader.value(value)))
    elif word in _PLAIN:
        value = reader.value(rest)
        if not value and word not in ("template", "system", "license"):
            reader.wrong(f"{word.upper()} needs a value")
        if word == "requires" and not VERSION.fullmatch(value):
            reader.wrong(f"REQUIRES needs a version such as 0.14.0, not {value[:40]!r}")
        if word in _MANY:
            getattr(made, _MANY[word]).append(value)
        else:
            setattr(made, word, value)
    else:
        known = ("from", "parameter", "template", "system", "adapter", "license", "message", *_ONCE[2:])
        reader.wrong(f"unknown instruction {word.upper()[:40]!r}; known: {', '.join(known).upper()}")


def _parameter(made: Modelfile, name: str, text: str, reader: "_Reader") -> None:
    if name in DEPRECATED:
        made.warnings.append(f"{reader.place()}: parameter {name} has no effect any more")
        return
    value = parameter_from_text(name, text)
    if name == "stop":
        made.parameters.setdefault("stop", []).extend(value)
    else:
        made.parameters[name] = value


class _Reader:
    """Lines, and where in them we are."""

    def __init__(self, lines: list[str], where: str) -> None:
        self.lines, self.where, self.at = lines, where, 0
        self.begun = 0  # line on which the instruction begins, from 1

    def instruction(self) -> tuple[str, str] | None:
        """The next line's first word and the rest of it, comments and empty lines passed over."""
        while self.at < len(self.lines):
            line = self.lines[self.at].lstrip()
            self.at += 1
            if line and not line.startswith("#"):
                self.begun = self.at
                word, *rest = line.split(maxsplit=1)
                return word.lower(), rest[0] if rest else ""
        return None

    def pair(self, rest: str, otherwise: str) -> tuple[str, str]:
        """The first word of the rest of a line, and what follows."""
        parts = rest.split(maxsplit=1)
        if len(parts) < 2:
            self.wrong(otherwise)
        return parts[0], parts[1]

    def value(self, text: str) -> str:
        """The value that begins with `text`, taking in further lines while its quotation is open."""
        quote = next((mark for mark in ('"""', '"') if text.startswith(mark)), "")
        if not quote:
            return text.rstrip()
        inner = text[len(quote) :]
        while not inner.rstrip().endswith(quote):
            if self.at >= len(self.lines):
                self.wrong(f"the quotation that begins here with {quote} is not closed")
            inner += "\n" + self.lines[self.at]
            self.at += 1
        return inner.rstrip()[: -len(quote)]

    def place(self) -> str:
        return f"{self.where}:{self.begun}"

    def wrong(self, problem: str) -> NoReturn:
        raise UsageError(problem if problem.startswith(self.where + ":") else f"{self.place()}: {problem}")


def write(model: Model, source: str = "") -> str:
    """A model as a Modelfile.

    Args:
        model: the model.
        source: what the FROM line names; "" = the model itself.
    """
    lines = ["# Modelfile made by `sizewise show --modelfile`", f"FROM {source or model.name}"]
    lines += [_line("TEMPLATE", model.template)] if model.template else []
    lines += [_line("SYSTEM", model.system)] if model.system else []
    lines += [_line(f"PARAMETER {name}", value) for name, value in parameter_pairs(model.defaults)]
    lines += [_line(f"MESSAGE {turn.role}", turn.content) for turn in model.messages]
    lines += [_line("LICENSE", model.license)] if model.license else []
    return "\n".join(lines) + "\n"


def parameter_pairs(values: dict[str, Any]) -> list[tuple[str, Any]]:
    """Parameters with their values, a list as several of one name."""
    return [(name, item) for name, value in values.items() for item in (value if isinstance(value, list) else [value])]


def _line(word: str, value: Any) -> str:
    text = _quoted(value) if isinstance(value, str) else str(value).lower()
    # a text in which lines end with both kinds of quotation cannot be said in this language
    return f"{word} {text}" if text else f"# {word} cannot be written here: its text holds the quotation marks"


def _quoted(text: str) -> str:
    """The text between quotation marks that it does not close too early; "" where there are none such."""
    for mark in ('"', '"""') if "\n" not in text else ('"""', '"'):
        first, *more = (mark + text + mark).split("\n")
        reader = _Reader(more, "")
        try:
            if reader.value(first) == text and reader.at == len(more):
                return mark + text + mark
        except UsageError:
            continue
    return ""
