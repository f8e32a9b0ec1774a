"""What an answer must look like (a JSON schema or a GBNF grammar), checked before it reaches native code.

`json_grammar.py` then makes a grammar of a schema. Grammars that the engine cannot parse it refuses itself; only
nesting could break it (one stack frame for each level), and that is limited here.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.serve.regex_grammar import string_grammar

MOST_BYTES = 64 << 10  # of a schema or a grammar
MOST_DEPTH = 64  # levels of a schema or of a grammar's brackets
MOST_ITEMS = 2000  # that minItems and the like may name: each costs a rule
_MOST_PATTERN = 1024
_COUNTS = ("minItems", "maxItems", "minProperties", "maxProperties")
_TYPES = frozenset(("object", "array", "string", "number", "integer", "boolean", "null"))
_ONE = ("items", "additionalProperties", "contains", "not", "if", "then", "else", "propertyNames")
_LISTS = ("anyOf", "oneOf", "allOf", "prefixItems")
_MAPS = ("properties", "patternProperties", "$defs", "definitions", "dependentSchemas")


def checked_schema(schema: Any, where: str = "the schema") -> dict[str, Any]:
    """A JSON schema as the engine is to get it. Objects that list properties hold no others, unless they say so.

    Raises:
        UsageError: it is no JSON schema, is too large or too deep, or refers to what it does not hold.
    """
    if not isinstance(schema, dict):
        raise UsageError(f"{where} must be an object")
    if (size := len(json.dumps(schema))) > MOST_BYTES:
        raise UsageError(f"{where} has {size} bytes; at most {MOST_BYTES} are allowed")
    made: dict[str, Any] = _walk(schema, schema, where, 0)
    _check_cycles(made, where)
    return made


def check_grammar(grammar: str) -> None:
    """Refuse a GBNF grammar that is too large or nests too deep.

    Raises:
        UsageError: it is.
    """
    if (size := len(grammar.encode("utf-8", "replace"))) > MOST_BYTES:
        raise UsageError(f"the grammar has {size} bytes; at most {MOST_BYTES} are allowed")
    if "\0" in grammar or grammar.lstrip().startswith("%"):
        raise UsageError('the grammar must be GBNF: rules such as root ::= "yes" | "no"')
    bare = re.sub(r'"(?:\\.|[^"\\])*"|\[(?:\\.|[^\]\\])*\]|#[^\n]*', "", grammar, flags=re.DOTALL)
    if re.search(r"<\s*\[|!\s*<", bare) or re.search(r"<\[", grammar):
        raise UsageError("the grammar names tokens by number, which is not served: write their text")
    depth = deepest = 0
    for char in bare:
        depth += (char == "(") - (char == ")")
        deepest = max(deepest, depth)
    if deepest > MOST_DEPTH:
        raise UsageError(f"the grammar nests brackets {deepest} levels deep; at most {MOST_DEPTH} are allowed")
    if len(re.findall(r"::=", bare)) > 4096:
        raise UsageError("the grammar has more than 4096 rules")


def _walk(node: Any, root: dict[str, Any], where: str, depth: int) -> Any:
    """A copy of one schema with all that lies in it, checked."""
    if isinstance(node, bool):
        return node
    if not isinstance(node, dict):
        raise UsageError(f"{where} must be a JSON schema: an object, true or false")
    if depth > MOST_DEPTH:
        raise UsageError(f"{where}: schemas nest more than {MOST_DEPTH} levels deep")
    _check_words(node, root, where)
    made = dict(node)
    for word in _ONE:
        if isinstance(made.get(word), list) and word == "items":  # the older form of prefixItems
            made["prefixItems"] = made.pop("items")
        elif word in made:
            made[word] = _walk(made[word], root, f"{where}.{word}", depth + 1)
    for word in _LISTS:
        if word in made:
            if not isinstance(made[word], list) or not made[word]:
                raise UsageError(f"{where}.{word} must be a list of schemas")
            made[word] = [_walk(one, root, f"{where}.{word}[{i}]", depth + 1) for i, one in enumerate(made[word])]
    for word in _MAPS:
        if word in made:
            if not isinstance(made[word], dict):
                raise UsageError(f"{where}.{word} must be an object")
            made[word] = {key: _walk(one, root, f"{where}.{key[:40]}", depth + 1) for key, one in made[word].items()}
    if made.get("properties") and not {"additionalProperties", "patternProperties", "allOf"} & made.keys():
        made["additionalProperties"] = False
    return made


def _check_words(node: dict[str, Any], root: dict[str, Any], where: str) -> None:
    kinds = node.get("type", [])
    kinds = kinds if isinstance(kinds, list) else [kinds]
    if wrong := [kind for kind in kinds if not isinstance(kind, str) or kind not in _TYPES]:
        raise UsageError(f"{where}.type: {wrong[0]!r:.40} is no type; expected one of {', '.join(sorted(_TYPES))}")
    if "enum" in node and (not isinstance(node["enum"], list) or not node["enum"]):
        raise UsageError(f"{where}.enum must be a list of values")
    required = node.get("required", [])
    if not isinstance(required, list) or not all(isinstance(key, str) for key in required):
        raise UsageError(f"{where}.required must be a list of names")
    for word in (*_COUNTS, "minLength", "maxLength"):
        value = node.get(word, 0)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise UsageError(f"{where}.{word} must be a whole number, 0 or more")
        if word in _COUNTS and value > MOST_ITEMS:
            raise UsageError(f"{where}.{word} is {value}; at most {MOST_ITEMS} is allowed")
    for low, high in (("minItems", "maxItems"), ("minLength", "maxLength"), ("minimum", "maximum")):
        _check_order(node, low, high, where)
    if not isinstance(node.get("format", ""), str):
        raise UsageError(f"{where}.format must be a string")
    if "pattern" in node:
        _check_pattern(node["pattern"], where)
    for pattern in node.get("patternProperties", {}) if isinstance(node.get("patternProperties"), dict) else ():
        _check_pattern(pattern, where)
    if "$ref" in node:
        _target(node["$ref"], root, where)


def _check_order(node: dict[str, Any], low: str, high: str, where: str) -> None:
    for word in (low, high):
        if word in node and (isinstance(node[word], bool) or not isinstance(node[word], int | float)):
            raise UsageError(f"{where}.{word} must be a number")
    if low in node and high in node and node[low] > node[high]:
        raise UsageError(f"{where}: {low} {node[low]} is more than {high} {node[high]}")


def _check_pattern(pattern: Any, where: str) -> None:
    if not isinstance(pattern, str) or len(pattern) > _MOST_PATTERN:
        raise UsageError(f"{where}.pattern must be a regular expression of at most {_MOST_PATTERN} characters")
    string_grammar(pattern, where)


def _target(reference: Any, root: dict[str, Any], where: str) -> Any:
    """What a reference within the schema points to."""
    if not isinstance(reference, str) or not reference.startswith("#"):
        raise UsageError(f"{where}.$ref: {reference!r:.60} must point into the schema itself, as in #/$defs/name")
    found: Any = root
    for part in reference[1:].split("/")[1:]:
        key = part.replace("~1", "/").replace("~0", "~")
        if isinstance(found, list) and key.isdigit() and int(key) < len(found):
            found = found[int(key)]
        elif isinstance(found, dict) and key in found:
            found = found[key]
        else:
            raise UsageError(f"{where}.$ref: {reference!r:.60} points to nothing")
    return found


def _check_cycles(root: dict[str, Any], where: str) -> None:
    """Refuse a schema that is itself and nothing else: `$ref` that leads to itself without a level of JSON between."""
    done: set[int] = set()

    def visit(node: Any, path: tuple[int, ...]) -> None:
        if not isinstance(node, dict) or id(node) in done:
            return
        if id(node) in path or len(path) > 4 * MOST_DEPTH:
            raise UsageError(f"{where}: a $ref leads back to itself")
        path = (*path, id(node))
        if "$ref" in node:
            visit(_target(node["$ref"], root, where), path)
        for word in ("anyOf", "oneOf", "allOf"):
            for one in node.get(word, ()):
                visit(one, path)
        done.add(id(node))

    for node in _nodes(root):
        visit(node, ())


def _nodes(node: Any) -> Iterator[dict[str, Any]]:
    """All objects within a JSON value."""
    waiting = [node]
    while waiting:
        one = waiting.pop()
        if isinstance(one, dict):
            yield one
        waiting += one.values() if isinstance(one, dict) else one if isinstance(one, list) else ()
