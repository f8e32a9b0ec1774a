"""What a request may ask of native code: schemas, grammars, tools, stop texts and images, each with its bounds.

Everything here is decided before a model is loaded, so that a hostile value never reaches an engine.
"""

import base64
import binascii
import json
import re
import struct
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.serve import constraints
from sizewise.serve.body import BadField, Fields

MOST_STOPS, MOST_STOP_BYTES = 16, 256
MOST_TOOLS, MOST_TOOL_BYTES = 128, 256 * 1024
MOST_IMAGES, MOST_IMAGE_BYTES, MOST_SIDE = 16, 20 << 20, 8192
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


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
    """A JSON schema; see `constraints.checked_schema`.

    Raises:
        BadField: it is none, or asks for more than an engine can take.
    """
    try:
        return constraints.checked_schema(value, where)
    except UsageError as error:
        raise _about(where, error) from error


def grammar(text: str, where: str) -> str:
    """A GBNF grammar; see `constraints.check_grammar`."""
    try:
        constraints.check_grammar(text)
    except UsageError as error:
        raise _about(where, error) from error
    return text


def _about(where: str, error: UsageError) -> BadField:
    """The same refusal, with the name of the field that it is about."""
    return BadField(where, str(error).removeprefix(where).lstrip(": "))


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
    if len(json.dumps(found)) > MOST_TOOL_BYTES:
        raise BadField(where, f"are more than {MOST_TOOL_BYTES} bytes in all")
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
