"""Ollama's chat templates (Go's text/template) translated to Jinja, so that one sandbox renders all templates.

Ollama knows two shapes. A template that names `.Messages` is run once over the whole conversation. Any other is run
once for each exchange with `.System`, `.Prompt` and `.Response`; for the last one, all that stands behind the response
is left out, since the model is to write it. Neighbouring turns of one role are joined by an empty line in both.

What Go writes out for lists and objects is JSON here as there. Variables become attributes of one namespace, since
Jinja's own do not survive the end of a loop.
"""

import functools
import re
from dataclasses import replace

from sizewise.core.errors import Unsupported
from sizewise.load.go_syntax import (
    Assign,
    Block,
    Call,
    Emit,
    Expr,
    Jump,
    Literal,
    Node,
    Path,
    Text,
    fields_of,
    parse,
    paths_in,
)

_ROOT = {
    "Messages": "go.messages",
    "Tools": "(tools or [])",
    "Suffix": "(suffix | default(''))",
    "Think": "(enable_thinking | default(false))",
    "IsThinkSet": "(enable_thinking is defined)",
    "ThinkLevel": "(reasoning_effort | default(''))",
}
_EXCHANGE = ("System", "Prompt", "Response")
_TEXTS = frozenset(("content", "role", "thinking", "name", "tool_name", "tool_call_id", "description"))
_MAPS = frozenset(("properties", "arguments"))
_COMPARISONS = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}
_GO_WORDS = frozenset(("if", "else", "end", "range", "with", "define", "template", "block", "break", "continue"))
_GO_NAMES = _GO_WORDS | _COMPARISONS.keys() | {"and", "or", "not", "len", "slice", "index", "json", "currentDate"}

_GATHER = """\
{%- set go = namespace(system='', messages=[]) -%}
{%- for m in messages -%}
{%- set text = m.content or '' -%}
{%- if m.role == 'system' -%}
{%- set go.system = go.system + '\\n\\n' + text if go.system else text -%}
{%- endif -%}
{%- set last = go.messages[-1] if go.messages else {'role': ''} -%}
{%- if m.role == last.role and m.role != 'tool' and not (m.tool_calls or last.tool_calls) -%}
{%- set joined = {'role': m.role, 'content': (last.content or '') + '\\n\\n' + text} -%}
{%- set go.messages = go.messages[:-1] + [joined] -%}
{%- elif m.tool_calls or m.role == 'tool' or m.thinking -%}
{%- set go.messages = go.messages + [m] -%}
{%- else -%}
{%- set go.messages = go.messages + [{'role': m.role, 'content': text}] -%}
{%- endif -%}
{%- endfor -%}
"""
_EXCHANGES = """\
{%- set go.turns = [] -%}
{%- set go.system = '' -%}
{%- set go.prompt = '' -%}
{%- set go.response = '' -%}
{%- for m in go.messages -%}
{%- set ends = go.response or (m.role == 'system' and go.prompt) -%}
{%- if m.role in ('system', 'user') and ends -%}
{%- set go.turns = go.turns + [{'system': go.system, 'prompt': go.prompt, 'response': go.response}] -%}
{%- set go.system = '' -%}
{%- set go.prompt = '' -%}
{%- set go.response = '' -%}
{%- endif -%}
{%- if m.role == 'system' -%}
{%- set go.system = m.content -%}
{%- elif m.role == 'user' -%}
{%- set go.prompt = m.content -%}
{%- elif m.role == 'assistant' -%}
{%- set go.response = m.content -%}
{%- endif -%}
{%- endfor -%}
"""


def is_jinja(template: str) -> bool:
    """True for a template in Jinja, False for one in Go's language (or plain text, which both would write as it is)."""
    if "{%" in template or "{#" in template:
        return True
    names = re.findall(r"\{\{-?\s*([A-Za-z_]\w*)", template)
    return any(name not in _GO_NAMES for name in names)


@functools.lru_cache(maxsize=64)
def translate(template: str) -> str:
    """A Go template as Jinja.

    Raises:
        UsageError: the template has an error; the message holds the line.
        Unsupported: it uses what has no translation.
    """
    nodes = parse(template)
    named = {path.fields[0] for path in fields_of(nodes) if path.fields}
    if "Messages" in named:
        whole = _Writer({**_ROOT, "System": "go.system", "Prompt": "''", "Response": "''"})
        return _GATHER + whole.lines(nodes)
    if "Response" not in named:
        nodes = [*nodes, Emit(Path(".", ("Response",)))]
    each = _Writer({**_ROOT, **{name: f"turn.{name.lower()}" for name in _EXCHANGE}})
    last = _Writer({**_ROOT, **{name: f"go.{name.lower()}" for name in _EXCHANGE}})
    cut, _ = _until_response(nodes)
    loop = "{%- for turn in go.turns -%}\n" + each.lines(nodes) + "{%- endfor -%}\n"
    return _GATHER + _EXCHANGES + loop + last.lines(cut)


def _until_response(nodes: list[Node]) -> tuple[list[Node], bool]:
    """The nodes without all that stands behind the first mention of the response; and whether it was met."""
    kept: list[Node] = []
    for node in nodes:
        if isinstance(node, Block):
            met = any("Response" in path.fields for path in paths_in(node.value))
            body, in_body = ([], True) if met else _until_response(node.body)
            other, in_other = ([], True) if met or in_body else _until_response(node.other)
            kept.append(replace(node, body=body, other=other))
            if met or in_body or in_other:
                return kept, True
            continue
        kept.append(node)
        if isinstance(node, Emit | Assign) and any("Response" in path.fields for path in paths_in(node.value)):
            return kept, True
    return kept, False


class _Writer:
    """Nodes become lines of Jinja. Every tag trims the white space around it, so that only quoted text is written."""

    def __init__(self, root: dict[str, str]) -> None:
        self.root, self.dots, self.scopes, self.count = root, [""], [dict[str, str]()], 0

    def lines(self, nodes: list[Node]) -> str:
        return "".join(self.node(node) for node in nodes)

    def node(self, node: Node) -> str:
        if isinstance(node, Text):
            return "{{- " + _quoted(node.text) + " -}}\n"
        if isinstance(node, Emit):
            return "{{- " + self.written(node.value) + " -}}\n"
        if isinstance(node, Jump):
            return "{%- " + node.word + " -%}\n"
        if isinstance(node, Assign):
            value = self.value(node.value)
            return _set(self.declare(node.name) if node.declares else self.variable(node.name), value)
        return self.loop(node) if node.word == "range" else self.condition(node)

    def condition(self, node: Block) -> str:
        """`if` and `with`; in `with` the dot is the value."""
        value, before = self.value(node.value), ""
        self.scopes.append({})
        if node.names or node.word == "with":
            name = self.declare(node.names[0] if node.names else "$")
            before, value = _set(name, value), name
        body = self.inside(node.body, value if node.word == "with" else self.dots[-1])
        other = self.lines(node.other)
        self.scopes.pop()
        other = "{%- else -%}\n" + other if other else ""
        return before + "{%- if " + value + " -%}\n" + body + other + "{%- endif -%}\n"

    def loop(self, node: Block) -> str:
        value = self.value(node.value)
        self.count += 1
        item, key = f"item{self.count}", f"key{self.count}"
        self.scopes.append({})
        source = node.value
        mapping = isinstance(source, Path) and bool(source.fields) and _snake(source.fields[-1]) in _MAPS
        head = f"{key}, {item} in ({value} or {{}}).items()" if mapping else f"{item} in ({value} or [])"
        sets = [item] if len(node.names) == 1 else [key if mapping else "loop.index0", item]
        before = "".join(_set(self.declare(name), what) for name, what in zip(node.names, sets, strict=False))
        body = before + self.inside(node.body, item)
        self.scopes.pop()
        other = self.lines(node.other)
        other = "{%- else -%}\n" + other if other else ""
        return "{%- for " + head + " -%}\n" + body + other + "{%- endfor -%}\n"

    def inside(self, nodes: list[Node], dot: str) -> str:
        self.dots.append(dot)
        try:
            return self.lines(nodes)
        finally:
            self.dots.pop()

    def declare(self, name: str) -> str:
        self.count += 1
        self.scopes[-1][name] = f"go.v{self.count}"
        return self.scopes[-1][name]

    def variable(self, name: str) -> str:
        for scope in reversed(self.scopes):
            if name in scope:
                return scope[name]
        raise Unsupported(f"the template uses the variable {name}, which it does not declare")

    def written(self, value: Expr) -> str:
        """An expression as it is written out: texts as they are, everything else as JSON."""
        made = self.value(value)
        root = isinstance(value, Path) and (value.base == "$" or (value.base == "." and not self.dots[-1]))
        if isinstance(value, Path) and root and value.fields and value.fields[0] in _EXCHANGE:
            return made
        if isinstance(value, Literal) or (isinstance(value, Call) and value.name in ("json", "currentDate", "len")):
            return made
        if isinstance(value, Path) and value.fields and _snake(value.fields[-1]) in _TEXTS:
            return f"({made} or '')"
        return f"({made} if {made} is string else '' if {made} is undefined or {made} is none else {made} | tojson)"

    def value(self, value: Expr) -> str:
        if isinstance(value, Literal):
            if isinstance(value.value, str):
                return _quoted(value.value)
            return {True: "true", False: "false", None: "none"}.get(value.value, str(value.value))  # type: ignore[arg-type]
        return self.call(value) if isinstance(value, Call) else self.path(value)

    def path(self, path: Path) -> str:
        fields = path.fields
        if path.base is None:
            base = self.value(path.of) if path.of else ""
        elif path.base == "$" or (path.base == "." and not self.dots[-1]):
            if not fields or fields[0] not in self.root:
                raise Unsupported(f"the template uses .{'.'.join(fields)}, which has no translation")
            base, fields = self.root[fields[0]], fields[1:]
        else:
            base = self.dots[-1] if path.base == "." else self.variable(path.base)
        return ".".join((base, *map(_snake, fields)))

    def call(self, call: Call) -> str:
        name, some = call.name, [self.value(argument) for argument in call.arguments]
        if name in ("and", "or") and some:
            return "(" + f" {name} ".join(some) + ")"
        if name in _COMPARISONS and len(some) == 2:
            return f"({some[0]} {_COMPARISONS[name]} {some[1]})"
        if name == "eq" and len(some) > 2:
            return f"({some[0]} in ({', '.join(some[1:])}))"
        if name == "slice" and 1 <= len(some) <= 3:
            return f"{some[0]}[{':'.join(some[1:]) if len(some) > 2 else ''.join(some[1:]) + ':'}]"
        if name == "index" and len(some) > 1:
            return some[0] + "".join(f"[{key}]" for key in some[1:])
        forms = {"not": "(not {})", "len": "({} | length)", "json": "({} | tojson)"}
        if name in forms and len(some) == 1:
            return forms[name].format(some[0])
        if name == "currentDate" and not some:
            return "strftime_now('%Y-%m-%d')"
        raise Unsupported(f"the template uses {name!r} with {len(some)} arguments, which has no translation")


def _set(name: str, value: str) -> str:
    return "{%- set " + name + " = " + value + " -%}\n"


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\r", "\\r")
    return "'" + escaped + "'"


def _snake(name: str) -> str:
    """`ToolCalls` as it is called in messages: `tool_calls`."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name).lower()
