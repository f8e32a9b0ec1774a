"""`/v1/messages`: Anthropic's form of a chat, with contents in blocks and a stream of named events."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Job, Piece, ToolCall, Turn
from sizewise.serve.wire import limits, openai
from sizewise.serve.wire.openai import Answer, Asked

_STOPS = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}

Told = tuple[str, dict[str, Any]]  # an event's name and its data


@dataclass(frozen=True, kw_only=True)
class AskedMessages(Asked):
    """A request for a message; `thinking` says whether the client wants thoughts."""

    thinking: bool


def parse(fields: Fields, *, count: bool = False) -> AskedMessages:
    """Read a request; `count`: only its tokens are asked for.

    Raises:
        BadField: a field is unknown, missing, or holds what it cannot.
    """
    common = openai.common(fields)
    given: dict[str, Any] = {}
    if not count:
        given = {
            "max_tokens": min(fields.integer("max_tokens", low=1), openai.MOST_TOKENS),
            "temperature": fields.number("temperature", None, low=0, high=1),
            "top_p": fields.number("top_p", None, low=0, high=1, above=True),
            "top_k": fields.integer("top_k", None, low=0, high=1_000_000),
            "stop": limits.stops(fields, "stop_sequences"),
        }
    stream = fields.boolean("stream", False)
    thinking = _thinking(fields)
    job = Job(turns=_turns(fields), think=thinking, **_tools(fields))
    fields.without_effect(("metadata", "service_tier"))
    for key in ("container", "mcp_servers", "context_management"):
        if fields.raw(key) is not None:
            raise BadField(key, "is not supported")
    fields.finish()
    given = {name: value for name, value in given.items() if value is not None}
    warnings = tuple(fields.warnings)
    return AskedMessages(job=job, given=given, stream=stream, thinking=thinking, warnings=warnings, **common)


def _thinking(fields: Fields) -> bool:
    sent = fields.mapping("thinking", None)
    if sent is None:
        return False
    inner = Fields(sent, "thinking")
    kind = inner.choice("type", ("enabled", "disabled", "adaptive"))
    if inner.integer("budget_tokens", None, low=1) is not None:
        fields.warn("thinking.budget_tokens has no effect here: only max_tokens limits the answer")
    inner.finish()
    return bool(kind != "disabled")


def _turns(fields: Fields) -> tuple[Turn, ...]:
    turns: list[Turn] = []
    system = fields.raw("system")
    if system is not None:
        turns.append(Turn("system", _text(system, "system")))
    sent = fields.items("messages")
    if not sent:
        raise BadField("messages", "is empty; a conversation has at least one message")
    for place, item in enumerate(sent):
        where = f"messages[{place}]"
        if not isinstance(item, dict):
            raise BadField(where, "must be an object")
        inner = Fields(item, where)
        role = inner.choice("role", ("user", "assistant", "system"))
        content = inner.raw("content")
        inner.finish()
        if isinstance(content, str):
            turns.append(Turn(role, content))
        elif isinstance(content, list) and content:
            turns += _blocks(role, content, f"{where}.content", turns)
        else:
            raise BadField(f"{where}.content", "must be a text or a list of blocks, at least one")
    return tuple(turns)


def _blocks(role: Any, blocks: list[Any], where: str, before: list[Turn]) -> list[Turn]:
    """The blocks of one message. Results of tools become turns of their own, in front of what the user says."""
    turn, results = Turn(role), []
    names = {call.id: call.name for old in before for call in old.tool_calls}
    for place, block in enumerate(blocks):
        at = f"{where}[{place}]"
        kind = block.get("type") if isinstance(block, dict) else None
        if kind == "text":
            said = _text([block], at)
            turn = replace(turn, content=f"{turn.content}\n{said}" if turn.content else said)
        elif kind == "image" and role == "user":
            turn = replace(turn, images=(*turn.images, _image(block.get("source"), f"{at}.source")))
        elif kind == "thinking" and role == "assistant" and isinstance(block.get("thinking"), str):
            turn = replace(turn, thinking=turn.thinking + block["thinking"])
        elif kind == "redacted_thinking" and role == "assistant":
            continue
        elif kind == "tool_use" and role == "assistant":
            turn = replace(turn, tool_calls=(*turn.tool_calls, _use(block, at)))
        elif kind == "tool_result" and role == "user":
            results.append(_result(block, at, names))
        else:
            raise BadField(f"{at}.type", f"{kind!r:.40} is no block of a message of the {role}")
    if len(turn.images) > limits.MOST_IMAGES:
        raise BadField(where, f"has more than {limits.MOST_IMAGES} images")
    empty = not (turn.content or turn.images or turn.tool_calls or turn.thinking)
    return results if results and empty else [*results, turn]


def _text(sent: Any, where: str) -> str:
    if isinstance(sent, str):
        return sent
    parts = sent if isinstance(sent, list) else None
    if parts is None or not all(isinstance(part, dict) and isinstance(part.get("text"), str) for part in parts):
        raise BadField(where, "must be a text or a list of text blocks")
    return "\n".join(part["text"] for part in parts)


def _image(source: Any, where: str) -> bytes:
    if not isinstance(source, dict) or source.get("type") != "base64":
        raise BadField(f"{where}.type", "must be 'base64'; nothing is fetched")
    return limits.image(source.get("data"), f"{where}.data")


def _use(block: dict[str, Any], where: str) -> ToolCall:
    name, call_id, sent = block.get("name"), block.get("id"), block.get("input", {})
    if not isinstance(name, str) or not isinstance(call_id, str) or not isinstance(sent, dict):
        raise BadField(where, "needs an id, a name and an input that is an object")
    return ToolCall(name, sent, call_id)


def _result(block: dict[str, Any], where: str, names: dict[str, str]) -> Turn:
    call_id = block.get("tool_use_id")
    if not isinstance(call_id, str) or call_id not in names:
        raise BadField(f"{where}.tool_use_id", "is that of no tool_use before it")
    text, images, sent = "", [], block.get("content")
    for place, part in enumerate(sent if isinstance(sent, list) else []):
        if isinstance(part, dict) and part.get("type") == "image":
            images.append(_image(part.get("source"), f"{where}.content[{place}].source"))
    if sent is not None:
        texts = [part for part in sent if not (isinstance(part, dict) and part.get("type") == "image")]
        text = _text(sent if isinstance(sent, str) else texts, f"{where}.content")
    return Turn("tool", text, tool_name=names[call_id], tool_call_id=call_id, images=tuple(images))


def _tools(fields: Fields) -> dict[str, Any]:
    sent = fields.items("tools", [])
    nested = []
    for place, tool in enumerate(sent):
        if not isinstance(tool, dict) or tool.get("type", "custom") != "custom":
            raise BadField(f"tools[{place}].type", "only tools of one's own (a name and an input_schema) are supported")
        known = {"name": tool.get("name"), "description": tool.get("description")}
        nested.append({"type": "function", "function": {**known, "parameters": tool.get("input_schema")}})
    sent_choice = fields.mapping("tool_choice", None)
    choice = None
    if sent_choice is not None:
        kinds = {"auto": "auto", "any": "required", "none": "none", "tool": {"name": sent_choice.get("name")}}
        kind = sent_choice.get("type")
        if not isinstance(kind, str) or kind not in kinds:
            raise BadField("tool_choice.type", f"is {kind!r:.40}; expected auto, any, none or tool")
        choice = kinds[kind]
    single = sent_choice is not None and sent_choice.get("disable_parallel_tool_use") is True
    made = openai.tool_fields(Fields({"tools": nested or None, "tool_choice": choice}))
    return {**made, "parallel_calls": not single}


class Messenger:
    """The answer to one request, whole (`body`) or as events (`begin`, `events`)."""

    def __init__(self, asked: AskedMessages) -> None:
        self.asked = asked
        self._answer = Answer()
        self._head = {"id": openai.new_id("msg_", 12), "type": "message", "role": "assistant", "model": asked.model}
        self._kind = ""  # of the block that grows
        self._index = -1

    def add(self, event: Event) -> None:
        """Take the next event."""
        self._answer.add(event)

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        answer = self._answer
        content: list[dict[str, Any]] = []
        if answer.thinking:
            content.append({"type": "thinking", "thinking": answer.thinking, "signature": ""})
        if answer.text or not answer.tool_calls:
            content.append({"type": "text", "text": answer.text})
        for call in answer.tool_calls:
            content.append({"type": "tool_use", "id": call.id, "name": call.name, "input": call.arguments})
        return {**self._head, "content": content, **self._stop(), "usage": _usage(answer.done)}

    def begin(self) -> Told:
        """The first event."""
        message: dict[str, Any] = {
            **self._head,
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": _usage(None),
        }
        return "message_start", {"type": "message_start", "message": message}

    def events(self, event: Event) -> Iterator[Told]:
        """What the next event of the answer adds."""
        self._answer.add(event)
        if isinstance(event, Done):
            if self._index < 0:  # a message has at least one block
                yield from self._grow("text", {"type": "text", "text": ""}, None)
            yield from self._close()
            told: dict[str, Any] = {"delta": self._stop(), "usage": _usage(event)}
            if self.asked.warnings:
                told["warnings"] = list(self.asked.warnings)
            yield "message_delta", {"type": "message_delta", **told}
            yield "message_stop", {"type": "message_stop"}
        else:
            yield from self._piece(event)

    def _piece(self, piece: Piece) -> Iterator[Told]:
        if piece.thinking:
            block: dict[str, Any] = {"type": "thinking", "thinking": "", "signature": ""}
            yield from self._grow("thinking", block, {"type": "thinking_delta", "thinking": piece.thinking})
        if piece.text:
            yield from self._grow("text", {"type": "text", "text": ""}, {"type": "text_delta", "text": piece.text})
        for call in self._answer.tool_calls[len(self._answer.tool_calls) - len(piece.tool_calls) :]:
            yield from self._close()
            block = {"type": "tool_use", "id": call.id, "name": call.name, "input": {}}
            text = json.dumps(call.arguments, ensure_ascii=False)
            yield from self._grow("tool_use", block, {"type": "input_json_delta", "partial_json": text})

    def _grow(self, kind: str, block: dict[str, Any], delta: dict[str, Any] | None) -> Iterator[Told]:
        if self._kind != kind:
            yield from self._close()
            self._kind, self._index = kind, self._index + 1
            name = "content_block_start"
            yield name, {"type": name, "index": self._index, "content_block": block}
        if delta:
            yield "content_block_delta", {"type": "content_block_delta", "index": self._index, "delta": delta}

    def _close(self) -> Iterator[Told]:
        if self._kind:
            self._kind = ""
            yield "content_block_stop", {"type": "content_block_stop", "index": self._index}

    def _stop(self) -> dict[str, Any]:
        done = self._answer.done
        met = done.stop_text if done and done.stop_text in self.asked.given.get("stop", ()) else ""
        if met and not self._answer.tool_calls:
            return {"stop_reason": "stop_sequence", "stop_sequence": met}
        return {"stop_reason": _STOPS[self._answer.finish], "stop_sequence": None}


def _usage(done: Done | None) -> dict[str, Any]:
    if done is None:
        return {"input_tokens": 0, "output_tokens": 0}
    return {
        "input_tokens": done.prompt_tokens - done.cached_tokens,
        "cache_read_input_tokens": done.cached_tokens,
        "cache_creation_input_tokens": 0,
        "output_tokens": done.completion_tokens,
    }
