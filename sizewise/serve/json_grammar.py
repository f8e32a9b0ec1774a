"""JSON schemas as GBNF: an answer that the grammar lets through is valid under the schema.

Written here and not left to the engine: its own enforcer takes the tokens of the Llama 2 kind for what they are not,
and drops what it does not understand without a word. What a grammar cannot enforce is refused by name. The JSON comes
in one line, laid out as Python does it: white space that may be chosen is space for a small model to lose itself in.
"""

import json
from collections.abc import Sequence
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.serve.constraints import checked_schema
from sizewise.serve.number_grammar import integers, numbers
from sizewise.serve.regex_grammar import MOST_REPEAT, characters, complement, literal, string_grammar

MOST_RULES = 8192
_CHAR = (
    '[^"\\\\\\x00-\\x1F] | "\\\\" (["\\\\/bfnrt] | "u" ([0-9a-cA-CeEfF] [0-9a-fA-F]{3} | [dD] [0-7] [0-9a-fA-F]{2}))'
)
_BASE = {
    "char": _CHAR,
    "string": '"\\"" char* "\\""',
    "boolean": '"true" | "false"',
    "null": '"null"',
    "integer": integers((None,) * 4),
    "number": numbers((None,) * 4),
    "array": '"[" (value (", " value)*)? "]"',
    "object": '"{" (string ": " value (", " string ": " value)*)? "}"',
    "value": "object | array | string | number | boolean | null",
}
_D, _DATE = "[0-9]", '[0-9]{4} "-" ("0" [1-9] | "1" [0-2]) "-" ("0" [1-9] | [12] [0-9] | "3" [01])'
_TIME = (
    '([01] [0-9] | "2" [0-3]) ":" [0-5] [0-9] ":" [0-5] [0-9] ("." [0-9]{1,6})? ("Z" | [+-] [01] [0-9] ":" [0-5] [0-9])'
)
_FORMATS = {
    "date": _DATE,
    "time": _TIME,
    "date-time": f'{_DATE} "T" {_TIME}',
    "uuid": '[0-9a-f]{8} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{4} "-" [0-9a-f]{12}',
}
_BEYOND = (
    *("not", "if", "then", "else", "contains", "dependentRequired", "dependentSchemas", "propertyNames"),
    *("patternProperties", "multipleOf", "unevaluatedProperties", "unevaluatedItems", "$dynamicRef"),
)
_LOW = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
_HIGH = ("maximum", "exclusiveMaximum", "maxLength", "maxItems", "maxProperties")


def schema_grammar(schema: dict[str, Any] | str, where: str = "the schema") -> str:
    """A schema as it came, or any object ("json"), as a grammar.

    Raises:
        UsageError: it is no schema, or holds what a grammar cannot enforce.
    """
    return json_grammar(checked_schema({"type": "object"} if isinstance(schema, str) else schema, where), where)


def json_grammar(schema: dict[str, Any], where: str = "the schema") -> str:
    """A checked schema (see `constraints.py`) as a grammar.

    Raises:
        UsageError: it holds what a grammar cannot enforce, or is too large for one.
    """
    writer = _Writer(schema, where)
    writer.rules["root"] = writer.of(schema, where)
    return "\n".join(f"{name} ::= {body}" for name, body in (writer.rules | _BASE).items())


def literal_grammar(text: str) -> str:
    """A grammar of one text only."""
    return f"root ::= {literal(text)}"


class _Writer:
    """The rules so far. Each schema becomes an expression; objects and references become rules of their own."""

    def __init__(self, root: dict[str, Any], where: str) -> None:
        self.root, self.where = root, where
        self.rules: dict[str, str] = {}
        self._references: dict[str, str] = {}

    def rule(self, body: str) -> str:
        """A new rule; its name."""
        name = f"r{len(self.rules)}"
        self.rules[name] = body
        if len(self.rules) > MOST_RULES:
            raise UsageError(f"{self.where} is too large for a grammar of {MOST_RULES} rules: simplify it")
        return name

    def of(self, schema: Any, where: str) -> str:
        """A schema as an expression that can stand anywhere."""
        if schema is True or schema == {}:
            return "value"
        if schema is False:
            raise UsageError(f"{where} allows nothing")
        schema = self._flat(schema, where)
        for word in _BEYOND:
            if word in schema:
                raise UsageError(f"{where}: {word} cannot be enforced: leave it out")
        if schema.get("uniqueItems"):
            raise UsageError(f"{where}: uniqueItems cannot be enforced: leave it out")
        if "$ref" in schema:
            return self._reference(schema["$ref"], where)
        if "const" in schema:
            return _json(schema["const"])
        if "enum" in schema:
            return "(" + " | ".join(_json(value) for value in schema["enum"]) + ")"
        for word in ("anyOf", "oneOf"):
            if word in schema:
                return self._any(schema, word, where)
        return self._typed(schema, where)

    def _flat(self, schema: dict[str, Any], where: str) -> dict[str, Any]:
        """A schema with its `allOf` merged into it."""
        for _ in range(64):
            parts = schema.get("allOf")
            if not parts and not ("$ref" in schema and _constrains(schema)):
                return schema
            rest = {key: value for key, value in schema.items() if key not in ("allOf", "$ref")}
            parts = [*(parts or ()), *([{"$ref": schema["$ref"]}] if "$ref" in schema else ())]
            if len(parts) == 1 and not _constrains(rest):
                schema = parts[0] if isinstance(parts[0], dict) else {}
                continue
            for part in parts:
                rest = _merged(rest, self._resolved(part), where)
            schema = rest
        raise UsageError(f"{where}: allOf nests too deep")

    def _resolved(self, schema: Any) -> dict[str, Any]:
        for _ in range(64):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = {**self._target(schema["$ref"]), **{k: v for k, v in schema.items() if k != "$ref"}}
        return schema if isinstance(schema, dict) else {}

    def _target(self, reference: str) -> Any:
        found: Any = self.root
        for part in reference[1:].split("/")[1:]:
            key = part.replace("~1", "/").replace("~0", "~")
            found = found[int(key)] if isinstance(found, list) else found[key]
        return found

    def _reference(self, reference: str, where: str) -> str:
        if reference not in self._references:
            name = self.rule("")  # named before it is written: it may hold itself
            self._references[reference] = name
            self.rules[name] = self.of(self._target(reference), where)
        return self._references[reference]

    def _any(self, schema: dict[str, Any], word: str, where: str) -> str:
        rest = {key: value for key, value in schema.items() if key != word}
        parts = schema[word]
        if _constrains(rest):
            parts = [_merged(rest, self._resolved(part), where) for part in parts]
        return "(" + " | ".join(self.of(part, f"{where}.{word}[{at}]") for at, part in enumerate(parts)) + ")"

    def _typed(self, schema: dict[str, Any], where: str) -> str:
        kinds = schema.get("type") or _kinds(schema)
        kinds = [kinds] if isinstance(kinds, str) else list(kinds)
        if schema.get("nullable") is True and "null" not in kinds:
            kinds.append("null")
        parts = [self._of_kind(kind, schema, where) for kind in kinds]
        return parts[0] if len(parts) == 1 else "(" + " | ".join(parts) + ")"

    def _of_kind(self, kind: str, schema: dict[str, Any], where: str) -> str:
        if kind == "object":
            return self._object(schema, where)
        if kind == "array":
            return self._array(schema, where)
        if kind == "string":
            return _string(schema, where)
        if kind in ("integer", "number"):
            ends = tuple(schema.get(one) for one in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"))
            if ends == (None,) * 4:
                return kind
            return self.rule((integers if kind == "integer" else numbers)(ends, where))
        return kind

    def _array(self, schema: dict[str, Any], where: str) -> str:
        low, high = schema.get("minItems", 0), schema.get("maxItems")
        first = [self.of(one, f"{where}.prefixItems[{at}]") for at, one in enumerate(schema.get("prefixItems", ()))]
        more = schema.get("items", True)
        if not first and more is True and not low and high is None:
            return "array"
        item = None if more is False else self.of(more, f"{where}.items")
        if high == 0 or (item is None and not first):
            return '"[]"'
        if first:
            if (0 < low < len(first)) or (high is not None and high < len(first)):
                raise UsageError(f"{where}: minItems and maxItems below the number of prefixItems cannot be enforced")
            rest = "" if item is None else f' (", " {item})' + _times(low - len(first), _less(high, len(first)), where)
            return self.rule('"[" ' + ' ", " '.join(first) + rest + ' "]"')
        several = f'{item} (", " {item})' + _times(low - 1, _less(high, 1), where)
        return self.rule(f'"[" {several} "]"' if low else f'"[" ({several})? "]"')

    def _object(self, schema: dict[str, Any], where: str) -> str:
        properties, required = schema.get("properties", {}), schema.get("required", [])
        others = schema.get("additionalProperties", not properties)
        missing = [key for key in required if key not in properties]
        if not properties and not missing and others is True and not {"minProperties", "maxProperties"} & schema.keys():
            return "object"
        if missing and others is False:
            raise UsageError(f"{where}: {missing[0]!r:.40} is required, but no such property is allowed")
        properties = {**properties, **dict.fromkeys(missing, others)}
        extra = None
        if others is not False:
            name = "string" if not properties else self._name_besides(list(properties))
            extra = f'{name} ": " {self.of(others, f"{where}.additionalProperties")}'
        if not properties:
            return self._map(schema, extra, where)
        if schema.get("minProperties", 0) > len(required) or schema.get("maxProperties", 1 << 30) < len(properties):
            raise UsageError(f"{where}: minProperties and maxProperties beside properties cannot be enforced")
        pairs = [
            (f'{_json(key)} ": " {self.of(one, f"{where}.{key[:40]}")}', key in required)
            for key, one in properties.items()
        ]
        return self.rule(f'"{{" {self._pairs(pairs, extra)} "}}"')

    def _map(self, schema: dict[str, Any], extra: str | None, where: str) -> str:
        """An object of any names."""
        low, high = schema.get("minProperties", 0), schema.get("maxProperties")
        if extra is None or high == 0:
            return '"{}"'
        several = f'{extra} (", " {extra})' + _times(low - 1, _less(high, 1), where)
        return self.rule(f'"{{" {several} "}}"' if low else f'"{{" ({several})? "}}"')

    def _pairs(self, pairs: Sequence[tuple[str, bool]], extra: str | None) -> str:
        """Pairs in their order, those not required left out or not; written from the last to the first."""
        begun, fresh = "", ""  # what follows where a pair stands before it, and where none does
        if extra:
            begun = self.rule(f'(", " {extra})*')
            fresh = self.rule(f'({extra} (", " {extra})*)?')
        for pair, needed in reversed(pairs):
            here, first = f'", " {pair} {begun}', f"{pair} {begun}"
            if not needed:
                here, first = f"({here} | {begun or _NOTHING})", f"({first} | {fresh or _NOTHING})"
            begun, fresh = self.rule(here), self.rule(first)
        return fresh

    def _name_besides(self, names: list[str]) -> str:
        """A JSON string that is none of these; one rule for each letter of their common tree."""

        def after(prefix: str) -> str:
            nexts = sorted({name[len(prefix)] for name in names if name.startswith(prefix) and len(name) > len(prefix)})
            parts = [f"{characters([(ord(char), ord(char))])} {after(prefix + char)}" for char in nexts]
            parts.append(f"{characters(complement([(ord(char), ord(char)) for char in nexts]))} char*")
            if prefix not in names:
                parts.append('""')
            return self.rule(" | ".join(parts))

        return self.rule(f'"\\"" {after("")} "\\""')


_NOTHING = '""'


def _string(schema: dict[str, Any], where: str) -> str:
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    if "pattern" in schema:
        if low or high is not None:
            raise UsageError(f"{where}: pattern together with minLength or maxLength cannot be enforced")
        return string_grammar(schema["pattern"], where)
    if schema.get("format") in _FORMATS:
        return f'"\\"" {_FORMATS[schema["format"]]} "\\""'
    if not low and high is None:
        return "string"
    return f'"\\"" char{_times(low, high, where)} "\\""'


def _times(low: int, high: int | None, where: str) -> str:
    """How often something comes, in GBNF."""
    low = max(0, low)
    if max(low, high or 0) > MOST_REPEAT:
        raise UsageError(f"{where}: a length of more than {MOST_REPEAT} cannot be enforced: leave it out")
    if high is None:
        return "*" if not low else f"{{{low},}}"
    return f"{{{low},{max(low, high)}}}"


def _less(value: int | None, by: int) -> int | None:
    return None if value is None else value - by


def _json(value: Any) -> str:
    return literal(json.dumps(value, ensure_ascii=False))


def _kinds(schema: dict[str, Any]) -> list[str]:
    """What a schema without a type must be, told by its other words; anything, where they do not tell."""
    if {"properties", "additionalProperties", "required", "minProperties", "maxProperties"} & schema.keys():
        return ["object"]
    if {"items", "prefixItems", "minItems", "maxItems"} & schema.keys():
        return ["array"]
    if {"pattern", "minLength", "maxLength", "format"} & schema.keys():
        return ["string"]
    if {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"} & schema.keys():
        return ["number"]
    return ["value"]


def _constrains(schema: dict[str, Any]) -> bool:
    """Whether a schema says more than its name and its definitions."""
    remarks = {"title", "description", "default", "examples", "example", "deprecated", "readOnly", "writeOnly"}
    remarks |= {"$schema", "$id", "$comment", "$anchor", "$defs", "definitions", "discriminator", "$ref", "allOf"}
    return bool(schema.keys() - remarks)


def _merged(one: dict[str, Any], other: dict[str, Any], where: str) -> dict[str, Any]:
    """A schema that holds to both."""
    made = dict(one)
    for key, value in other.items():
        if key not in made or made[key] == value or not _constrains({key: value}):
            made[key] = value
        elif key == "properties":
            both = made[key].keys() & value.keys()
            made[key] = made[key] | value | {name: {"allOf": [made[key][name], value[name]]} for name in both}
        elif key == "required":
            made[key] = [*made[key], *(name for name in value if name not in made[key])]
        elif key in _LOW or key in _HIGH:
            made[key] = max(made[key], value) if key in _LOW else min(made[key], value)
        else:
            raise UsageError(f"{where}: two different values of {key} for the same place cannot be enforced")
    return made
