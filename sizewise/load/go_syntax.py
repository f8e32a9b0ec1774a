"""Ollama's template language, Go's text/template, read into a tree. What it means is said in `go_template.py`.

text {{ action }} text {{- action trims the white space around it -}} text
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from sizewise.core.errors import Unsupported, UsageError

_SPACE = " \t\r\n"
_TOKEN = re.compile(
    r"""(?P<string>"(?:\\.|[^"\\\n])*")|(?P<raw>`[^`]*`)|(?P<number>-?\d+(?:\.\d+)?)"""
    r"""|(?P<path>\$\w*(?:\.\w+)*|(?:\.\w+)+|\.)|(?P<name>[A-Za-z_]\w*)|(?P<mark>:=|=|\||\(|\)|,)"""
)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", '"': '"', "\\": "\\", "'": "'"}
_MOST_DEPTH = 40


@dataclass(frozen=True, slots=True)
class Literal:
    """A text, number, truth value or nil."""

    value: str | int | float | bool | None


@dataclass(frozen=True, slots=True)
class Path:
    """`.A.B` (base "."), `$.A` (base "$") or `$x.A` (base "$x"); base None: of a value in parentheses."""

    base: str | None
    fields: tuple[str, ...]
    of: "Expr | None" = None


@dataclass(frozen=True, slots=True)
class Call:
    """A function with its arguments."""

    name: str
    arguments: tuple["Expr", ...]


Expr = Literal | Path | Call


@dataclass(slots=True)
class Text:
    """Text as it is."""

    text: str


@dataclass(slots=True)
class Emit:
    """The value of an expression, written out."""

    value: Expr


@dataclass(slots=True)
class Assign:
    """`$x := value`, or `$x = value` for one that exists."""

    name: str
    value: Expr
    declares: bool


@dataclass(slots=True)
class Jump:
    """`break` or `continue`."""

    word: str


@dataclass(slots=True)
class Block:
    """`if`, `with` or `range` over `value`, with what is done in it and otherwise. `names`: variables it declares."""

    word: str
    names: tuple[str, ...]
    value: Expr
    body: list["Node"] = field(default_factory=list)
    other: list["Node"] = field(default_factory=list)


Node = Text | Emit | Assign | Jump | Block


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str
    text: str
    touches: bool  # no white space before it


def parse(source: str) -> list[Node]:
    """The tree of a template.

    Raises:
        UsageError: it has an error; the message holds the line.
        Unsupported: it has an action that only Go's own library understands.
    """
    return _Parser(list(_pieces(source))).whole()


def fields_of(nodes: list[Node]) -> Iterator[Path]:
    """Every path in a tree, in the order of the text."""
    for node in nodes:
        if isinstance(node, Emit | Assign):
            yield from paths_in(node.value)
        elif isinstance(node, Block):
            yield from paths_in(node.value)
            yield from fields_of(node.body)
            yield from fields_of(node.other)


def paths_in(value: Expr) -> Iterator[Path]:
    """Every path in an expression."""
    if isinstance(value, Call):
        for argument in value.arguments:
            yield from paths_in(argument)
    elif isinstance(value, Path):
        yield value
        if value.of is not None:
            yield from paths_in(value.of)


def _pieces(source: str) -> Iterator[tuple[int, str | list[_Token]]]:
    """Texts (trimmed) and actions (as tokens), each with its line."""
    at, trim_next = 0, False
    while True:
        begin = source.find("{{", at)
        text = source[at:] if begin < 0 else source[at:begin]
        text = text.lstrip(_SPACE) if trim_next else text
        line = source.count("\n", 0, at) + 1
        if begin < 0:
            yield line, text
            return
        line = source.count("\n", 0, begin) + 1
        start = begin + 2
        if source[start : start + 1] == "-" and source[start + 1 : start + 2] in (*_SPACE,):
            text, start = text.rstrip(_SPACE), start + 1
        yield line, text
        tokens, at, trim_next = _action(source, start, line)
        if tokens:
            yield line, tokens


def _action(source: str, at: int, line: int) -> tuple[list[_Token], int, bool]:
    """The tokens of an action, where it ends, and whether it trims what follows."""
    comment = re.compile(r"\s*/\*.*?\*/(\s-)?\s*\}\}", re.DOTALL).match(source, at)
    if comment:
        return [], comment.end(), bool(comment.group(1))
    tokens: list[_Token] = []
    while True:
        before = at
        while at < len(source) and source[at] in _SPACE:
            at += 1
        if source.startswith("}}", at):
            return tokens, at + 2, False
        if source.startswith("-}}", at) and at > before:
            return tokens, at + 3, True
        match = _TOKEN.match(source, at)
        if not match:
            what = f"unexpected {source[at]!r}" if at < len(source) else "an action is not closed by }}"
            raise UsageError(f"template line {line}: {what}")
        tokens.append(_Token(str(match.lastgroup), match.group(), at == before))
        at = match.end()


class _Parser:
    """Pieces become nodes."""

    def __init__(self, pieces: list[tuple[int, str | list[_Token]]]) -> None:
        self.pieces, self.at, self.line, self.depth = pieces, 0, 1, 0
        self.tokens: list[_Token] = []

    def whole(self) -> list[Node]:
        nodes, end = self.nodes()
        if end:
            raise self.wrong(f"{end!r} without a beginning")
        return nodes

    def nodes(self) -> tuple[list[Node], str]:
        """Nodes up to `end`, `else` or the end of the template; and which of them came."""
        found: list[Node] = []
        while self.at < len(self.pieces):
            self.line, piece = self.pieces[self.at]
            self.at += 1
            if isinstance(piece, str):
                found += [Text(piece)] if piece else []
                continue
            self.tokens = piece
            word = piece[0].text if piece[0].kind == "name" else ""
            if word in ("end", "else"):
                self.tokens = piece[1:]
                return found, word
            found.append(self.block(word) if word in ("if", "range", "with") else self.action(word))
        return found, ""

    def action(self, word: str) -> Node:
        if word in ("break", "continue") and len(self.tokens) == 1:
            return Jump(word)
        if word in ("define", "template", "block"):
            raise Unsupported(f"template line {self.line}: {word!r} of Ollama's template language is not translated")
        first, second = self.tokens[0], self.tokens[1] if len(self.tokens) > 1 else None
        if first.kind == "path" and second and second.text in (":=", "="):
            self.tokens = self.tokens[2:]
            return Assign(first.text, self.pipeline(), second.text == ":=")
        return Emit(self.pipeline())

    def block(self, word: str) -> Block:
        self.depth += 1
        if self.depth > _MOST_DEPTH:
            raise self.wrong(f"nested more than {_MOST_DEPTH} levels deep")
        line, self.tokens = self.line, self.tokens[1:]
        names = self.names()
        made = Block(word, names, self.pipeline())
        made.body, end = self.nodes()
        if end == "else":
            rest = self.tokens
            if rest and rest[0].text in ("if", "with"):
                made.other = [self.block(rest[0].text)]
                end = "end"
            else:
                made.other, end = self.nodes()
        if end != "end":
            raise UsageError(f"template line {line}: {word!r} is not closed by an end")
        self.depth -= 1
        return made

    def names(self) -> tuple[str, ...]:
        """Variables declared before `:=`, which is passed over."""
        marks = [place for place, token in enumerate(self.tokens) if token.text == ":="]
        if not marks:
            return ()
        names = tuple(token.text for token in self.tokens[: marks[0]] if token.text != ",")
        if not 1 <= len(names) <= 2 or not all(re.fullmatch(r"\$\w+", name) for name in names):
            raise self.wrong("':=' must follow one or two variables")
        self.tokens = self.tokens[marks[0] + 1 :]
        return names

    def pipeline(self) -> Expr:
        """The rest of the tokens, up to a closing parenthesis."""
        value = self.command(None)
        while self.tokens and self.tokens[0].text == "|":
            self.tokens = self.tokens[1:]
            value = self.command(value)
        if self.tokens and self.tokens[0].text != ")":
            raise self.wrong(f"unexpected {self.tokens[0].text!r}")
        return value

    def command(self, piped: Expr | None) -> Expr:
        """A function with its arguments, or one value. `piped` becomes the last argument."""
        if not self.tokens:
            raise self.wrong("a value is missing")
        last = (piped,) if piped is not None else ()
        if self.tokens[0].kind == "name" and self.tokens[0].text not in ("true", "false", "nil"):
            name, self.tokens = self.tokens[0].text, self.tokens[1:]
            arguments: list[Expr] = []
            while self.tokens and self.tokens[0].text not in ("|", ")"):
                arguments.append(self.operand())
            return Call(name, (*arguments, *last))
        value = self.operand()
        if piped is not None:
            raise self.wrong("a value cannot be piped into what is no function")
        return value

    def operand(self) -> Expr:
        token, self.tokens = self.tokens[0], self.tokens[1:]
        if token.text == "(":
            self.depth += 1
            if self.depth > _MOST_DEPTH:
                raise self.wrong(f"nested more than {_MOST_DEPTH} levels deep")
            value = self.pipeline()
            if not self.tokens:
                raise self.wrong("a parenthesis is not closed")
            self.tokens, self.depth = self.tokens[1:], self.depth - 1
            if self.tokens and self.tokens[0].kind == "path" and self.tokens[0].touches:
                chain, self.tokens = self.tokens[0].text, self.tokens[1:]
                return Path(None, tuple(chain.strip(".").split(".")), value)
            return value
        if token.kind == "path":
            base, *fields = token.text.split(".")
            return Path(base or ".", tuple(name for name in fields if name))
        if token.kind == "name" and token.text in ("true", "false", "nil"):
            return Literal({"true": True, "false": False, "nil": None}[token.text])
        if token.kind == "name":
            return Call(token.text, ())
        if token.kind == "number":
            return Literal(float(token.text) if "." in token.text else int(token.text))
        if token.kind == "raw":
            return Literal(token.text[1:-1])
        if token.kind == "string":
            return Literal(re.sub(r"\\(.)", lambda match: self.unescape(match.group(1)), token.text[1:-1]))
        raise self.wrong(f"unexpected {token.text!r}")

    def unescape(self, char: str) -> str:
        if char not in _ESCAPES:
            raise Unsupported(f"template line {self.line}: the escape \\{char} is not translated")
        return _ESCAPES[char]

    def wrong(self, what: str) -> UsageError:
        return UsageError(f"template line {self.line}: {what}")
