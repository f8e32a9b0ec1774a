"""What a request may ask of native code: schemas, grammars, tools, stop texts and images, each with its bounds.

Everything here is decided before a model is loaded, so that a hostile value never reaches an engine.
"""

import base64
import binascii
import json
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.serve import constraints, images
from sizewise.serve.body import BadField, Fields
from sizewise.serve.tools import MOST_TOOLS, checked_function

MOST_STOPS, MOST_STOP_BYTES = 16, 256
MOST_IMAGES, MOST_TOOL_BYTES = 16, 256 * 1024


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
    """The same refusal as one of a field: its text begins with the path of what is wrong."""
    path, _, problem = str(error).partition(" ")
    if path.startswith(where):
        return BadField(path.rstrip(":")[:200], problem)
    return BadField(where, str(error))


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
    try:
        return {"type": "function", "function": checked_function(item, where)}
    except UsageError as error:
        raise _about(where, error) from error


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
    """A picture in base64; see `images.checked_image`."""
    if not isinstance(text, str):
        raise BadField(where, "must be a string in base64")
    if len(text) > images.MOST_BYTES * 4 // 3 + 4:
        raise BadField(where, f"is an image of more than {images.MOST_BYTES >> 20} MiB")
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadField(where, "is not valid base64") from error
    try:
        images.checked_image(data)
    except UsageError as error:
        raise BadField(where, str(error).removeprefix("images: ")) from error
    return data
