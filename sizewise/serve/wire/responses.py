"""`/v1/responses`: OpenAI's newer form of a chat. Nothing is kept, so each request carries the whole conversation."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Job, Piece, ToolCall, Turn
from sizewise.serve.wire import openai
from sizewise.serve.wire.openai import Answer, Asked

_STATEFUL = ("previous_response_id", "conversation", "prompt", "context_management")
_UNSUPPORTED = ("moderation", "image", "max_tool_calls")
_IDLE = ("user", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_LOGPROBS = "message.output_text.logprobs"

Told = tuple[str, dict[str, Any]]  # an event's name and its data


@dataclass(frozen=True, kw_only=True)
class AskedResponse(Asked):
    """A request for a response; `echo` holds the fields that the answer repeats."""

    echo: dict[str, Any]


def parse(fields: Fields) -> AskedResponse:
    """Read a request.

    Raises:
        BadField: a field is unknown, missing, asks for something that is kept, or holds what it cannot.
    """
    common = openai.common(fields)
    _leave_out(fields)
    stream = fields.boolean("stream", False)
    options = Fields(fields.mapping("stream_options", None) or {}, "stream_options")
    options.raw("include_obfuscation")
    options.finish()
    given = openai.sampling(fields)
    most = openai.most_tokens(fields, "max_output_tokens")
    if most is not None:
        given["max_tokens"] = most
    text, reasoning = _part(fields, "text"), _part(fields, "reasoning")
    choice, tools = _tools(fields)
    include = fields.strings("include", [])
    top = fields.integer("top_logprobs", None, low=0, high=openai.MOST_TOP)
    job = Job(
        turns=_turns(fields),
        schema=_form(text.raw("format")),
        think=openai.effort(reasoning.raw("effort"), "reasoning.effort"),
        top_logprobs=(top or 0) if _LOGPROBS in include or top else None,
        truncate=fields.choice("truncation", ("auto", "disabled"), "disabled") == "auto",
        parallel_calls=fields.boolean("parallel_tool_calls", True),
        **choice,
    )
    for part in (text, reasoning):
        part.without_effect(("verbosity", "summary", "generate_summary"))
        part.finish()
    others = [name for name in include if name != _LOGPROBS]
    if others:
        fields.warn(f"include: {others[0]:.60} has no effect here")
    metadata = fields.mapping("metadata", {})
    fields.finish()
    warnings = (*fields.warnings, *text.warnings, *reasoning.warnings)
    echo = {
        "instructions": fields.body.get("instructions"),
        "max_output_tokens": most,
        "metadata": metadata,
        "parallel_tool_calls": job.parallel_calls,
        "text": {"format": fields.body.get("text", {}).get("format") or {"type": "text"}},
        "tool_choice": fields.body.get("tool_choice") or "auto",
        "tools": tools,
        "truncation": "auto" if job.truncate else "disabled",
    }
    return AskedResponse(job=job, given=given, stream=stream, warnings=warnings, echo=echo, **common)


def _part(fields: Fields, key: str) -> Fields:
    return Fields(fields.mapping(key, None) or {}, key)


def _leave_out(fields: Fields) -> None:
    for key in _STATEFUL:
        if fields.raw(key) is not None:
            raise BadField(key, "is not supported: nothing is kept between requests, send the whole conversation")
    for key in _UNSUPPORTED:
        if fields.raw(key) is not None:
            raise BadField(key, "is not supported")
    if fields.boolean("background", False):
        raise BadField("background", "is not supported: the answer comes with the request")
    if fields.boolean("store", False):
        fields.warn("store has no effect here: nothing is kept")
    fields.without_effect(_IDLE)
    fields.without_effect(("prompt_cache_options", "access_programs"))


def _turns(fields: Fields) -> tuple[Turn, ...]:
    instructions = fields.text("instructions", None)
    turns = [Turn("system", instructions)] if instructions else []
    sent = fields.raw("input")
    if isinstance(sent, str):
        return (*turns, Turn("user", sent))
    if not isinstance(sent, list) or not sent:
        raise BadField("input", "must be a text or a list of items, at least one")
    for place, item in enumerate(sent):
        where = f"input[{place}]"
        if not isinstance(item, dict):
            raise BadField(where, "must be an object")
        kind = item.get("type", "message")
        if kind == "message":
            kept = {key: value for key, value in item.items() if key not in ("type", "id", "status", "phase")}
            turns.append(openai.turn(kept, where))
        elif kind == "function_call":
            turns = _called(turns, item, where)
        elif kind == "function_call_output":
            turns.append(_returned(turns, item, where))
        elif kind == "reasoning":
            fields.warn(f"{where}: thoughts of earlier answers have no effect here")
        else:
            raise BadField(f"{where}.type", f"is {kind!r:.40}; expected message, function_call or function_call_output")
    return tuple(turns)


def _called(turns: list[Turn], item: dict[str, Any], where: str) -> list[Turn]:
    """A call joins the assistant's turn before it: the protocol has an item for each, a template one turn for all."""
    call_id, name = item.get("call_id"), item.get("name")
    if not isinstance(call_id, str) or not isinstance(name, str):
        raise BadField(where, "needs a call_id and a name")
    call = ToolCall(name, openai.arguments(item.get("arguments"), where), call_id)
    last = turns[-1] if turns else None
    if last is None or last.role != "assistant":
        return [*turns, Turn("assistant", tool_calls=(call,))]
    return [*turns[:-1], Turn("assistant", last.content, last.thinking, (*last.tool_calls, call))]


def _returned(turns: list[Turn], item: dict[str, Any], where: str) -> Turn:
    call_id = item.get("call_id")
    names = {call.id: call.name for turn in turns for call in turn.tool_calls}
    if not isinstance(call_id, str) or call_id not in names:
        raise BadField(f"{where}.call_id", "is that of no function_call before it")
    text, images = openai.content(item.get("output"), f"{where}.output")
    return Turn("tool", text, tool_name=names[call_id], tool_call_id=call_id, images=images)


def _tools(fields: Fields) -> tuple[dict[str, Any], list[Any]]:
    """Tools have one level less than in a chat."""
    sent = fields.items("tools", [])
    for place, tool in enumerate(sent):
        if not isinstance(tool, dict) or tool.get("type") != "function":
            kind = tool.get("type") if isinstance(tool, dict) else tool
            raise BadField(f"tools[{place}].type", f"is {kind!r:.40}; only 'function' is supported")
    nested = [
        {"type": "function", "function": {key: value for key, value in tool.items() if key != "type"}} for tool in sent
    ]
    choice = Fields({"tools": nested or None, "tool_choice": fields.raw("tool_choice")})
    return openai.tool_fields(choice), sent


def _form(sent: Any) -> Any:
    if isinstance(sent, dict) and sent.get("type") == "json_schema":
        sent = {"type": "json_schema", "json_schema": {"schema": sent.get("schema")}}
    return openai.form(sent, "text.format")


class Responder:
    """The answer to one request, whole (`body`) or as events (`begin`, `events`, then `end` or `fail`)."""

    def __init__(self, asked: AskedResponse, model: Model, created: int) -> None:
        self.asked = asked
        draw = openai.resolve(asked.given, model.defaults)
        self._head = {
            "id": openai.new_id("resp_", 16),
            "object": "response",
            "created_at": created,
            "model": asked.model,
            "temperature": draw.temperature,
            "top_p": draw.top_p,
            **asked.echo,
        }
        self._answer = Answer()
        self._items: list[dict[str, Any]] = []  # those that are complete
        self._open: dict[str, Any] | None = None  # the one that grows
        self._number = 0

    def begin(self) -> Iterator[Told]:
        """The first events."""
        for name in ("response.created", "response.in_progress"):
            yield self._told(name, response=self._response("in_progress"))

    def events(self, event: Event) -> Iterator[Told]:
        """What the next event of the answer adds."""
        if isinstance(event, Done):
            self._answer.done = event
            yield from self._close()
            return
        if event.thinking:
            yield from self._grow("reasoning", event)
        if event.text or event.logprobs:
            yield from self._grow("message", event)
        for call in event.tool_calls:
            yield from self._call(openai.named(call))

    def end(self) -> Iterator[Told]:
        """The last event."""
        incomplete = self._answer.done is not None and self._answer.done.finish == "length"
        name = "incomplete" if incomplete else "completed"
        yield self._told(f"response.{name}", response=self.body())

    def fail(self, error: dict[str, Any]) -> Told:
        """The event that ends a stream which cannot be finished; `error` is that of OpenAI's envelope."""
        body = self._response("failed")
        body["error"] = {"code": "server_error", "message": error["message"]}
        return self._told("response.failed", response=body)

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        done = self._answer.done
        incomplete = done is not None and done.finish == "length"
        body = self._response("incomplete" if incomplete else "completed")
        body["incomplete_details"] = {"reason": "max_output_tokens"} if incomplete else None
        body["usage"] = _usage(done)
        if self.asked.warnings:
            body["warnings"] = list(self.asked.warnings)
        return body

    def _response(self, status: str) -> dict[str, Any]:
        return {**self._head, "status": status, "error": None, "incomplete_details": None, "output": self._items[:]}

    def _told(self, event: str, /, **data: Any) -> Told:
        self._number += 1
        return event, {"type": event, "sequence_number": self._number - 1, **data}

    def _place(self) -> dict[str, Any]:
        assert self._open is not None
        return {"item_id": self._open["id"], "output_index": len(self._items)}

    def _grow(self, kind: str, piece: Piece) -> Iterator[Told]:
        """Add to the open item, or close it and open another."""
        if self._open is None or self._open["type"] != kind:
            yield from self._close()
            yield from self._begin(kind)
        assert self._open is not None
        part = self._open["content"][0]
        if kind == "reasoning":
            part["text"] += piece.thinking
            yield self._told("response.reasoning_text.delta", **self._place(), content_index=0, delta=piece.thinking)
            return
        part["text"] += piece.text
        told = [openai.token_json(token) for token in piece.logprobs]
        if self.asked.job.top_logprobs is not None:
            part["logprobs"] += told
        place = {**self._place(), "content_index": 0, "logprobs": told}
        yield self._told("response.output_text.delta", **place, delta=piece.text)

    def _begin(self, kind: str) -> Iterator[Told]:
        if kind == "reasoning":
            self._open = {"type": kind, "id": openai.new_id("rs_"), "summary": [], "status": "in_progress"}
            part: dict[str, Any] = {"type": "reasoning_text", "text": ""}
        else:
            self._open = {"type": kind, "id": openai.new_id("msg_"), "role": "assistant", "status": "in_progress"}
            part = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
        yield self._told(
            "response.output_item.added", output_index=len(self._items), item={**self._open, "content": []}
        )
        self._open["content"] = [part]
        yield self._told("response.content_part.added", **self._place(), content_index=0, part=_copy(part))

    def _close(self) -> Iterator[Told]:
        """Finish the open item, if there is one."""
        item = self._open
        if item is None:
            return
        part, place = item["content"][0], {**self._place(), "content_index": 0}
        if item["type"] == "reasoning":
            yield self._told("response.reasoning_text.done", **place, text=part["text"])
        else:
            yield self._told("response.output_text.done", **place, text=part["text"], logprobs=part["logprobs"])
        yield self._told("response.content_part.done", **place, part=_copy(part))
        cut = self._answer.done is not None and self._answer.done.finish == "length"
        item["status"] = "incomplete" if cut else "completed"
        yield self._told("response.output_item.done", output_index=len(self._items), item=_copy(item))
        self._items.append(item)
        self._open = None

    def _call(self, call: ToolCall) -> Iterator[Told]:
        yield from self._close()
        text = json.dumps(call.arguments, ensure_ascii=False)
        named = {"type": "function_call", "id": openai.new_id("fc_"), "call_id": call.id, "name": call.name}
        self._open = {**named, "arguments": "", "status": "in_progress"}
        yield self._told("response.output_item.added", output_index=len(self._items), item=self._open)
        yield self._told("response.function_call_arguments.delta", **self._place(), delta=text)
        yield self._told("response.function_call_arguments.done", **self._place(), name=call.name, arguments=text)
        item = {**named, "arguments": text, "status": "completed"}
        yield self._told("response.output_item.done", output_index=len(self._items), item=item)
        self._items.append(item)
        self._open = None


def _copy(part: dict[str, Any]) -> dict[str, Any]:
    return dict(part)


def _usage(done: Done | None) -> dict[str, Any] | None:
    if done is None:
        return None
    return {
        "input_tokens": done.prompt_tokens,
        "input_tokens_details": {"cached_tokens": done.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": done.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": done.prompt_tokens + done.completion_tokens,
    }
