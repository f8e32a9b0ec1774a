"""What a request may ask of native code: schemas, grammars, tools, stop texts and images, each with its bounds.

Everything here is decided before a model is loaded, so that a hostile value never reaches an engine.
"""

import base64
import binascii
import json
import re
import struct
from collections.abc import Iterator, Mapping
from typing import Any

from sizewise.serve.body import BadField, Fields

MOST_STOPS, MOST_STOP_BYTES = 16, 256
MOST_SCHEMA_BYTES, MOST_SCHEMA_DEPTH = 64 * 1024, 64
MOST_PATTERN = 512  # characters of one pattern, and also what its counts may multiply to
MOST_REPEAT = 2000  # of minLength, maxItems and the like: the engine unrolls them
MOST_TOOLS = 128
MOST_GRAMMAR_BYTES, MOST_GRAMMAR_DEPTH = 64 * 1024, 64
MOST_IMAGES, MOST_IMAGE_BYTES, MOST_SIDE = 16, 20 << 20, 8192
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")
_COUNTS = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_DATA = frozenset(("enum", "const", "default", "examples", "example"))  # their values are no schemas
_MAPS = frozenset(("properties", "patternProperties", "$defs", "definitions", "dependentSchemas"))
_TYPES = frozenset(("string", "number", "integer", "boolean", "object", "array", "null"))


def stops(fields: Fields, key: str = "stop", *, most: int = MOST_STOPS) -> tuple[str, ...] | None:
    """Texts that end an answer: one or a list, none empty; None where the field is absent."""
    found = fields.strings(key, None, most=most)
    for place, text in enumerate(found or ()):
        if not text:
            raise BadField(f"{fields.name(key)}[{place}]", "is empty; a stop sequence has at least one character")
        if len(text.encode("utf-8")) > MOST_STOP_BYTES:
            raise BadField(f"{fields.name(key)}[{place}]", f"is longer than {MOST_STOP_BYTES} bytes")
    return None if found is None else tuple(found)


def schema(value: Any, where: str) -> dict[str, Any]:
    """A JSON schema that the engine may turn into a grammar.

    Raises:
        BadField: too large or deep, a pattern or count that it cannot take, or a `$ref` that leads nowhere.
    """
    if not isinstance(value, dict):
        raise BadField(where, "must be a JSON schema, an object")
    size = len(json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    if size > MOST_SCHEMA_BYTES:
        raise BadField(where, f"is a schema of {size} bytes; at most {MOST_SCHEMA_BYTES} are allowed")
    for part, path in _parts(value, where, 0):
        _check_type(part, path)
        _check_counts(part, path)
        if "pattern" in part:
            pattern(part["pattern"], f"{path}.pattern")
        if "$ref" in part:
            _follow(value, part["$ref"], f"{path}.$ref")
    return value


def pattern(text: Any, where: str) -> str:
    """A regular expression inside a schema: anchored, valid, and small after its counts are unrolled."""
    if not isinstance(text, str) or len(text) > MOST_PATTERN:
        raise BadField(where, f"must be a regular expression of at most {MOST_PATTERN} characters")
    if not (text.startswith("^") and text.endswith("$")):
        raise BadField(where, "must begin with ^ and end with $")
    try:
        re.compile(text)
    except (re.error, RecursionError, OverflowError) as error:
        raise BadField(where, f"is no regular expression ({error})") from error
    if _unrolled(text) > MOST_PATTERN:
        raise BadField(where, f"its counts multiply to more than {MOST_PATTERN}")
    return text


def grammar(text: str, where: str) -> str:
    """A GBNF grammar whose size and nesting the engine's recursive parser can take."""
    if len(text.encode("utf-8")) > MOST_GRAMMAR_BYTES:
        raise BadField(where, f"is longer than {MOST_GRAMMAR_BYTES} bytes")
    depth = 0
    for char in re.sub(r'"(?:[^"\\\n]|\\.)*"|\[(?:[^\]\\\n]|\\.)*\]|#[^\n]*', "", text):
        depth += (char == "(") - (char == ")")
        if depth > MOST_GRAMMAR_DEPTH:
            raise BadField(where, f"nests more than {MOST_GRAMMAR_DEPTH} levels deep")
    if not re.search(r"(?m)^\s*root\s*::=", text):
        raise BadField(where, "has no rule named root")
    counts = [int(number) for found in re.findall(r"\{([0-9, ]+)\}", text) for number in re.findall("[0-9]+", found)]
    if any(number > MOST_REPEAT for number in counts):
        raise BadField(where, f"repeats something more than {MOST_REPEAT} times")
    return text


def tools(value: Any, where: str = "tools") -> tuple[dict[str, Any], ...]:
    """Functions that the model may call, in OpenAI's form, checked and without what no engine reads."""
    if not isinstance(value, list):
        raise BadField(where, "must be a list of tools")
    if len(value) > MOST_TOOLS:
        raise BadField(where, f"has {len(value)} tools; at most {MOST_TOOLS} are allowed")
    found = [_tool(item, f"{where}[{place}]") for place, item in enumerate(value)]
    names = [item["function"]["name"] for item in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice:
        raise BadField(where, f"two tools are named {twice!r}")
    if len(json.dumps(found)) > 4 * MOST_SCHEMA_BYTES:
        raise BadField(where, f"are more than {4 * MOST_SCHEMA_BYTES} bytes in all")
    return tuple(found)


def _tool(item: Any, where: str) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise BadField(where, "must be an object")
    if item.get("type", "function") != "function":
        raise BadField(f"{where}.type", f"is {item['type']!r:.40}; only 'function' is supported")
    function = item.get("function")
    if not isinstance(function, dict):
        raise BadField(f"{where}.function", "is required and must be an object")
    name, description = function.get("name"), function.get("description")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise BadField(f"{where}.function.name", "must have 1 to 64 letters, digits, '_', '-' or '.'")
    if description is not None and not isinstance(description, str):
        raise BadField(f"{where}.function.description", "must be a string")
    known = {"name", "description", "parameters", "strict"}
    strange = next((key for key in function if key not in known and function[key] is not None), None)
    if strange:
        raise BadField(f"{where}.function.{strange:.40}", "unknown field")
    parameters = function.get("parameters")
    made: dict[str, Any] = {"name": name, "description": description or ""}
    made["parameters"] = schema(parameters or {"type": "object", "properties": {}}, f"{where}.function.parameters")
    return {"type": "function", "function": made}


def data_uri(url: Any, where: str) -> bytes:
    """The picture in a `data:` address. Nothing is ever fetched.

    Raises:
        BadField: another kind of address, bad base64, no picture, or one with no or too many pixels.
    """
    if not isinstance(url, str) or not url[:5].lower() == "data:":
        raise BadField(where, "must be a data: address (data:image/png;base64,...); nothing is fetched")
    head, comma, text = url.partition(",")
    if not comma or not head.lower().endswith(";base64") or not head[5:].lower().startswith("image/"):
        raise BadField(where, "must have the form data:image/png;base64,...")
    return image(text, where)


def image(text: Any, where: str) -> bytes:
    """A picture in base64: PNG, JPEG, GIF, BMP or WebP, of 1 to `MOST_SIDE` pixels a side."""
    if not isinstance(text, str):
        raise BadField(where, "must be a string in base64")
    if len(text) > MOST_IMAGE_BYTES * 4 // 3 + 4:
        raise BadField(where, f"is an image of more than {MOST_IMAGE_BYTES >> 20} MiB")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadField(where, "is not valid base64") from error
    sides = picture_size(data)
    if sides is None:
        raise BadField(where, "is no PNG, JPEG, GIF, BMP or WebP image")
    if not all(1 <= side <= MOST_SIDE for side in sides):
        raise BadField(where, f"is {sides[0]} x {sides[1]} pixels; each side must have 1 to {MOST_SIDE}")
    return data


def picture_size(data: bytes) -> tuple[int, int] | None:
    """Width and height as a picture's own header says them; None where there is none."""
    try:
        if data[:8] == b"\x89PNG\r\n\x1a\n" and data[12:16] == b"IHDR":
            return struct.unpack(">II", data[16:24])
        if data[:6] in (b"GIF87a", b"GIF89a"):
            return struct.unpack("<HH", data[6:10])
        if data[:2] == b"BM":
            width, height = struct.unpack("<ii", data[18:26])
            return width, abs(height)
        if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
            return _webp_size(data)
        return _jpeg_size(data) if data[:2] == b"\xff\xd8" else None
    except struct.error:
        return None


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", data[at + 5 : at + 9])
            return width, height
        if marker == 0xFF:  # a filling byte
            at += 1
        else:
            at += 2 + max(2, struct.unpack(">H", data[at + 2 : at + 4])[0])
    return None


def _webp_size(data: bytes) -> tuple[int, int] | None:
    kind = data[12:16]
    if kind == b"VP8X":
        return (
            1 + int.from_bytes(data[24:27].ljust(3, b"\0"), "little"),
            1 + int.from_bytes(data[27:30].ljust(3, b"\0"), "little"),
        )
    if kind == b"VP8L":
        bits = struct.unpack("<I", data[21:25])[0]
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", data[26:30])
        return width & 0x3FFF, height & 0x3FFF
    return None


def _parts(value: Any, path: str, depth: int, names: bool = False) -> Iterator[tuple[Mapping[str, Any], str]]:
    """Every schema within a schema, with where it stands. `names`: the object's keys are names, not keywords."""
    if depth > MOST_SCHEMA_DEPTH:
        raise BadField(path[:120], f"nests more than {MOST_SCHEMA_DEPTH} levels deep")
    if isinstance(value, dict):
        if not names:
            yield value, path[:120]
        for key, part in value.items():
            if names or key not in _DATA:
                yield from _parts(part, f"{path}.{key}", depth + 1, not names and key in _MAPS)
    elif isinstance(value, list):
        for place, part in enumerate(value):
            yield from _parts(part, f"{path}[{place}]", depth + 1)


def _check_type(part: Mapping[str, Any], path: str) -> None:
    kinds = part.get("type")
    if kinds is None:
        return
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if not isinstance(kind, str) or kind not in _TYPES:
            raise BadField(f"{path}.type", f"is {kind!r:.40}; expected one of {', '.join(sorted(_TYPES))}")


def _check_counts(part: Mapping[str, Any], path: str) -> None:
    for key in _COUNTS:
        count = part.get(key)
        if count is None:
            continue
        if isinstance(count, bool) or not isinstance(count, int) or not 0 <= count <= MOST_REPEAT:
            raise BadField(f"{path}.{key}", f"must be a whole number from 0 to {MOST_REPEAT}")


def _follow(root: dict[str, Any], reference: Any, where: str) -> None:
    """A reference must lead to a part of the same schema that is more than another reference back to it."""
    seen = set()
    while True:
        if not isinstance(reference, str) or not (reference == "#" or reference.startswith("#/")):
            raise BadField(where, "must point into the schema itself (#/$defs/...)")
        if reference in seen:
            raise BadField(where, f"{reference:.60} leads back to itself")
        seen.add(reference)
        part: Any = root
        for step in reference.split("/")[1:]:
            name = step.replace("~1", "/").replace("~0", "~")
            if isinstance(part, list) and name.isdigit() and int(name) < len(part):
                part = part[int(name)]
            elif isinstance(part, dict) and name in part:
                part = part[name]
            else:
                raise BadField(where, f"{reference:.60} leads nowhere")
        if not isinstance(part, dict):
            raise BadField(where, f"{reference:.60} leads to no schema")
        if not isinstance(part.get("$ref"), str):
            return
        reference = part["$ref"]


def _unrolled(text: str) -> int:
    """How much a pattern's nested counts multiply to: `((a{9}){9}){9}` is 729."""
    most, levels = 1, [1]
    tokens = re.findall(r"\\.|\[(?:\\.|[^\]\\])*\]|\{[0-9]+(?:,[0-9]*)?\}|[()]|.", text, re.DOTALL)
    last = 1  # what the part before a count already multiplies to
    for token in tokens:
        if token == "(":
            levels.append(1)
            last = 1
        elif token == ")":
            last = levels.pop() if len(levels) > 1 else levels[0]
            levels[-1] = max(levels[-1], last)
        elif len(token) > 2 and token[0] == "{":
            last *= max(1, *(int(number[:9]) for number in re.findall("[0-9]+", token)))
            levels[-1] = max(levels[-1], last)
            most = max(most, last)
        else:
            last = 1
    return most
