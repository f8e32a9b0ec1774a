"""Ollama's messages, as turns of a conversation."""

from typing import Any

from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import ToolCall, Turn, TurnRole
from sizewise.serve.wire import limits
from sizewise.serve.wire.turns import paired

ROLES: tuple[TurnRole, ...] = ("system", "user", "assistant", "tool")
MOST_MESSAGES = 10_000


def read_messages(fields: Fields, key: str = "messages") -> tuple[Turn, ...]:
    """The conversation. Results of tools are paired with the calls before them, by id, else by name, else by order.

    The official client drops empty contents and ids, so a message without content is one with empty content; a content
    that is null is refused, except where the assistant called tools instead of speaking.

    Raises:
        BadField: a message has an unknown role, no text where text belongs, or a field of the wrong type.
    """
    turns = []
    for place, raw in enumerate(fields.items(key, [], most=MOST_MESSAGES)):
        name = f"{fields.name(key)}[{place}]"
        if not isinstance(raw, dict):
            raise BadField(name, "must be an object with role and content")
        inner = Fields(raw, name)
        turns.append(_turn(inner))
        inner.finish()
    return paired(turns)


def _turn(fields: Fields) -> Turn:
    calls = tuple(
        _call(raw, f"{fields.name('tool_calls')}[{place}]") for place, raw in enumerate(fields.items("tool_calls", []))
    )
    if "content" in fields.body and fields.body["content"] is None and not calls:
        raise BadField(fields.name("content"), "must be a string, not null")
    role = fields.choice("role", ROLES)
    if calls and role != "assistant":
        raise BadField(fields.name("tool_calls"), f"belong to the assistant, not to {role!r}")
    return Turn(
        role=role,
        content=fields.text("content", ""),
        thinking=fields.text("thinking", ""),
        tool_calls=calls,
        tool_name=fields.text("tool_name", "") or fields.text("name", ""),
        tool_call_id=fields.text("tool_call_id", ""),
        images=read_images(fields),
    )


def read_images(fields: Fields, key: str = "images") -> tuple[bytes, ...]:
    """Pictures in base64.

    Raises:
        BadField: one of them is none.
    """
    texts = fields.items(key, [], most=limits.MOST_IMAGES)
    return tuple(limits.image(text, f"{fields.name(key)}[{place}]") for place, text in enumerate(texts))


def _call(raw: Any, name: str) -> ToolCall:
    if not isinstance(raw, dict):
        raise BadField(name, "must be an object")
    fields = Fields(raw, name)
    function = Fields(fields.mapping("function"), fields.name("function"))
    call = ToolCall(function.text("name"), function.mapping("arguments", {}), fields.text("id", ""))
    fields.choice("type", ("function",), "function")
    for inner in (fields, function):  # our own answers hold an index, and clients send answers back as they came
        inner.integer("index", None)
        inner.finish()
    return call
