"""`/v1/chat/completions`: from a body to a job, and from events to a body or to chunks."""

import json
from collections.abc import Iterator
from typing import Any

from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Job, Piece
from sizewise.serve.wire import limits, openai
from sizewise.serve.wire.openai import Answer, Asked

# Known to the protocol, and of no meaning for a model on one's own machine.
_IDLE = ("user", "metadata", "service_tier", "safety_identifier", "prompt_cache_key", "prompt_cache_retention")
_UNSUPPORTED = ("audio", "functions", "function_call", "web_search_options", "prediction", "moderation", "verbosity")

_dump = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode  # ASCII, made once


def parse(fields: Fields) -> Asked:
    """Read a request.

    Raises:
        BadField: a field is unknown, missing, or holds what it cannot.
    """
    common = openai.common(fields)
    stream, usage = openai.streaming(fields)
    given = openai.sampling(fields)
    most = openai.most_tokens(fields, "max_completion_tokens", "max_tokens")
    if most is not None:
        given["max_tokens"] = most
    logprobs = fields.boolean("logprobs", False)
    top = fields.integer("top_logprobs", None, low=0, high=openai.MOST_TOP)
    if top is not None and not logprobs:
        raise BadField("top_logprobs", "is only allowed together with logprobs")
    grammar = fields.text("grammar", None)
    job = Job(
        turns=openai.messages(fields),
        schema=openai.form(fields.raw("response_format"), "response_format"),
        grammar=None if grammar is None else limits.grammar(grammar, "grammar"),
        think=openai.effort(fields.raw("reasoning_effort"), "reasoning_effort"),
        top_logprobs=(top or 0) if logprobs else None,
        parallel_calls=fields.boolean("parallel_tool_calls", True),
        **openai.tool_fields(fields),
    )
    if job.schema and job.grammar:
        raise BadField("grammar", "cannot be used together with response_format")
    n = fields.integer("n", 1, low=1, high=openai.MOST_CHOICES)
    _leave_out(fields)
    fields.finish()
    return Asked(**common, job=job, given=given, n=n, stream=stream, usage=usage, warnings=tuple(fields.warnings))


def _leave_out(fields: Fields) -> None:
    """Fields that are accepted without effect are named; those that would change the answer are refused."""
    for key in _UNSUPPORTED:
        if fields.raw(key) is not None:
            raise BadField(key, "is not supported")
    modalities = fields.strings("modalities", ["text"])
    if modalities != ["text"]:
        raise BadField("modalities", "only text is supported")
    if fields.boolean("store", False):
        fields.warn("store has no effect here: nothing is kept")
    fields.without_effect(_IDLE)
    fields.without_effect(("prompt_cache_options",))


class Chat:
    """The answer to one request, in the form that clients read: whole (`body`) or in chunks (`chunks`, then `end`)."""

    def __init__(self, asked: Asked, model: Model, created: int) -> None:
        self.asked, self.created = asked, created
        self.answers = [Answer() for _ in range(asked.n)]
        self._started = [False] * asked.n
        head = {"id": openai.new_id("chatcmpl-", 12), "created": created, "model": asked.model}
        self._head = {**head, "system_fingerprint": openai.fingerprint(model)}
        self._calls = [0] * asked.n
        # What all chunks have in common is written once: this runs for each token.
        common = _dump({**self._head, "object": "chat.completion.chunk"})
        self._prefix = f'{common[:-1]},"choices":[{{'

    def add(self, index: int, event: Event) -> None:
        """Take the next event of one choice."""
        self.answers[index].add(event)

    def body(self) -> dict[str, Any]:
        """The whole answer."""
        choices = [self._choice(index, answer) for index, answer in enumerate(self.answers)]
        usage = openai.usage_json(answer.done for answer in self.answers)
        return {**self._head, "object": "chat.completion", "choices": choices, "usage": usage}

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text or (None if answer.tool_calls else "")}
        if answer.thinking:
            message["reasoning"] = answer.thinking
        if answer.tool_calls:
            message["tool_calls"] = [openai.call_json(call) for call in answer.tool_calls]
        choice: dict[str, Any] = {"index": index, "message": message, "finish_reason": answer.finish, "logprobs": None}
        if self.asked.job.top_logprobs is not None:
            choice["logprobs"] = {"content": [openai.token_json(token) for token in answer.logprobs], "refusal": None}
        return choice

    def chunks(self, index: int, event: Event) -> Iterator[bytes]:
        """The next event of one choice as chunks: the role comes first, the finish in a chunk of its own."""
        if not self._started[index]:
            self._started[index] = True
            yield self._chunk(index, {"role": "assistant", "content": ""})
        if isinstance(event, Done):
            self.answers[index].done = event
            called = self._calls[index] and event.finish == "stop"
            yield self._chunk(index, {}, finish="tool_calls" if called else event.finish)
            return
        delta = self._delta(index, event)
        if delta or event.logprobs:
            yield self._chunk(index, delta, event)

    def end(self) -> Iterator[bytes]:
        """What follows the last choice's end."""
        if self.asked.usage:
            usage = openai.usage_json(answer.done for answer in self.answers)
            body = {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": usage}
            yield _dump(body).encode()
        yield openai.END

    def _delta(self, index: int, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {}
        if piece.text:
            delta["content"] = piece.text
        if piece.thinking:
            delta["reasoning"] = piece.thinking
        if piece.tool_calls:
            first = self._calls[index]
            self._calls[index] += len(piece.tool_calls)
            calls = (openai.named(call) for call in piece.tool_calls)
            delta["tool_calls"] = [openai.call_json(call, first + place) for place, call in enumerate(calls)]
        return delta

    def _chunk(self, index: int, delta: dict[str, Any], piece: Piece | None = None, finish: str | None = None) -> bytes:
        choice: dict[str, Any] = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        if piece is not None and self.asked.job.top_logprobs is not None:
            choice["logprobs"] = {"content": [openai.token_json(token) for token in piece.logprobs], "refusal": None}
        tail = ',"usage":null' if self.asked.usage else ""
        if finish and self.asked.warnings:
            tail += f',"warnings":{_dump(self.asked.warnings)}'
        return f"{self._prefix}{_dump(choice)[1:]}]{tail}}}".encode()
