"""Conversations through the engine's own chat endpoint: images, thoughts, calls in the form of the model's template.

The engine renders the template, keeps calls to their schemas and takes the answer apart again. What users write reaches
it as text, so control tokens in it are broken up by an invisible character before (see `load/templates.py`).
"""

import base64
import json
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

from sizewise.core.errors import EngineFailed, TooLong
from sizewise.load.templates import GUARD, guard
from sizewise.serve import tools
from sizewise.serve.completion import drawing
from sizewise.serve.engine import Engine
from sizewise.serve.fitting import cut_turns
from sizewise.serve.images import checked_image
from sizewise.serve.job import Done, Event, Finish, Job, Piece, TokenLogprob, ToolCall, Turn
from sizewise.serve.json_grammar import schema_grammar
from sizewise.serve.upstream import Broken

_JOINER = "\u2060"  # "word joiner": has no width and no meaning, and ends the text of a token
_FINISH: dict[str, Finish] = {"stop": "stop", "length": "length", "tool_calls": "tool_calls"}


class Conversation:
    """One answer by the chat endpoint."""

    def __init__(self, engine: Engine, job: Job, context: int) -> None:
        self._engine, self._job, self._context = engine, job, context
        self._functions = tools.checked_tools(job) if job.tool_choice != "none" else []

    async def answer(self) -> AsyncGenerator[Event, None]:
        """The events of the answer.

        Raises:
            TooLong: the prompt does not fit.
            UsageError: a tool, schema or image is none.
        """
        turns, size, cut = await self._fitted()
        room = self._context - size
        wanted = self._job.draw.max_tokens
        limit = room if wanted is None else min(room, wanted)
        if limit < 1:
            yield Done("length", size, 0, cut_tokens=cut)
            return
        reading = _Reading(self._job.top_logprobs)
        stream = self._engine.upstream.stream("/v1/chat/completions", self._body(turns, limit))
        async with aclosing(stream):
            async for batch in stream:
                for data in batch:
                    if data != b"[DONE]" and (piece := reading.read(json.loads(data))):
                        yield piece
        if not reading.finish:
            raise Broken("the engine's answer ended in the middle")
        if last := reading.calls():
            yield last
        yield replace(reading.done(), cut_tokens=cut)

    async def render(self, turns: Sequence[Turn]) -> str:
        """The prompt as text."""
        body = {"messages": [self._message(turn) for turn in turns], **self._asked()}
        answer = await self._engine.upstream.ask("/apply-template", body)
        return str(answer["prompt"])

    async def _fitted(self) -> tuple[Sequence[Turn], int, int]:
        """The turns that are sent, the tokens of their prompt (images not counted), and how many were cut."""
        turns: Sequence[Turn] = self._job.turns
        tokens = await self._tokens(tuple(turns))
        if len(tokens) < self._context:
            return turns, len(tokens), 0
        if not self._job.truncate:
            raise TooLong(self._engine.model.name, len(tokens), self._context)
        turns, rest = await cut_turns(self._engine, turns, self._tokens, self._job.draw, self._context)
        return turns, len(rest), len(tokens) - len(rest)

    async def _tokens(self, turns: tuple[Turn, ...]) -> list[int]:
        bare = [replace(turn, images=()) for turn in turns]
        return await self._engine.encode(await self.render(bare), special=True, bos=True)

    def _body(self, turns: Sequence[Turn], limit: int) -> dict[str, Any]:
        job = self._job
        body = {
            "messages": [self._message(turn) for turn in turns],
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": limit,
            "cache_prompt": True,
            "return_progress": True,  # see completion.py
            **drawing(job.draw, self._engine.server.vocabulary),
            **self._asked(),
        }
        if job.schema is not None:
            body["grammar"] = schema_grammar(job.schema)
        if job.grammar is not None:
            body["grammar"] = job.grammar
        if job.top_logprobs is not None:
            body |= {"logprobs": True, "top_logprobs": max(1, job.top_logprobs)}
        return body

    def _asked(self) -> dict[str, Any]:
        """What the template is to know: the functions, and whether to think."""
        job = self._job
        body: dict[str, Any] = {}
        if self._functions:
            body["tools"] = [{"type": "function", "function": one} for one in self._functions]
            body["tool_choice"] = "auto" if job.tool_choice in (None, "auto") else "required"
            body["parallel_tool_calls"] = job.parallel_calls
        thinks = job.think is not False and job.schema is None  # a schema leaves no place for thoughts
        kwargs: dict[str, Any] = {"enable_thinking": thinks}
        if isinstance(job.think, str):
            kwargs["reasoning_effort"] = job.think
        return body | {"chat_template_kwargs": kwargs, "reasoning_format": "auto"}

    def _message(self, turn: Turn) -> dict[str, Any]:
        content: Any = self._neutral(turn.content)
        if turn.images:
            content = [{"type": "text", "text": content}] if content else []
            for image in turn.images:
                kind = checked_image(image)
                data = base64.b64encode(image).decode()
                content.append({"type": "image_url", "image_url": {"url": f"data:{kind};base64,{data}"}})
        message: dict[str, Any] = {"role": turn.role, "content": content}
        if turn.thinking:
            message["reasoning_content"] = self._neutral(turn.thinking)
        if turn.tool_calls:
            message["tool_calls"] = [self._call(call) for call in turn.tool_calls]
        if turn.role == "tool":
            message |= {"tool_call_id": turn.tool_call_id or "call_0"} | (
                {"name": turn.tool_name} if turn.tool_name else {}
            )
        return message

    def _call(self, call: ToolCall) -> dict[str, Any]:
        arguments = self._neutral(json.dumps(call.arguments, ensure_ascii=False))
        return {
            "id": call.id or "call_0",
            "type": "function",
            "function": {"name": self._neutral(call.name), "arguments": arguments},
        }

    def _neutral(self, text: str) -> str:
        return guard(text, self._engine.server.control).replace(GUARD, _JOINER)


@dataclass(slots=True)
class _Reading:
    """What the chunks have said so far."""

    top: int | None
    finish: str = ""
    usage: dict[str, Any] = field(default_factory=dict)
    timings: dict[str, Any] = field(default_factory=dict)
    parts: list[dict[str, str]] = field(default_factory=list)  # of calls: name, id, arguments as text
    told: int = 0  # calls that were handed over
    called: bool = False

    def read(self, chunk: dict[str, Any]) -> Piece | None:
        """What one chunk adds."""
        self.usage = chunk.get("usage") or self.usage
        self.timings = chunk.get("timings") or self.timings
        if not chunk.get("choices"):
            return None
        choice = chunk["choices"][0]
        self.finish = choice.get("finish_reason") or self.finish
        delta = choice.get("delta") or {}
        for part in delta.get("tool_calls") or ():
            self._add(part)
        calls = self._whole(len(self.parts) - 1)  # the last one may go on
        text, thinking = delta.get("content") or "", delta.get("reasoning_content") or ""
        logprobs = self._logprobs(choice)
        if not (text or thinking or calls or logprobs):
            return None
        return Piece(text=text, thinking=thinking, tool_calls=calls, logprobs=logprobs)

    def calls(self) -> Piece | None:
        """The calls that were not handed over before the end."""
        # an answer cut off by its limit may end within a call, which is then none
        whole = self._whole(len(self.parts) if self.finish != "length" else len(self.parts) - 1)
        return Piece(tool_calls=whole) if whole else None

    def done(self) -> Done:
        """The end."""
        cached = (self.usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0)
        finish = _FINISH.get(self.finish, "stop")
        return Done(
            finish="tool_calls" if self.called and finish == "stop" else finish,
            prompt_tokens=self.usage.get("prompt_tokens", 0),
            completion_tokens=self.usage.get("completion_tokens", 0),
            cached_tokens=cached or self.timings.get("cache_n", 0),
            prompt_s=self.timings.get("prompt_ms", 0.0) / 1000,
            decode_s=self.timings.get("predicted_ms", 0.0) / 1000,
        )

    def _add(self, part: dict[str, Any]) -> None:
        index = part.get("index", 0)
        while len(self.parts) <= index:
            self.parts.append({"name": "", "id": "", "arguments": ""})
        function = part.get("function") or {}
        into = self.parts[index]
        into["id"] = part.get("id") or into["id"]
        into["name"] += function.get("name") or ""
        into["arguments"] += function.get("arguments") or ""

    def _whole(self, end: int) -> tuple[ToolCall, ...]:
        found = []
        for part in self.parts[self.told : max(end, self.told)]:
            try:
                arguments = json.loads(part["arguments"] or "{}")
            except ValueError as error:
                raise EngineFailed(f"the model's call of {part['name'][:64]!r} is no JSON") from error
            if not isinstance(arguments, dict):
                raise EngineFailed(f"the model's call of {part['name'][:64]!r} has no object of arguments")
            found.append(ToolCall(part["name"], arguments, part["id"]))
        self.told += len(found)
        self.called = self.called or bool(found)
        return tuple(found)

    def _logprobs(self, choice: dict[str, Any]) -> tuple[TokenLogprob, ...]:
        if self.top is None:
            return ()
        entries = (choice.get("logprobs") or {}).get("content") or ()
        return tuple(_logprob(entry, self.top) for entry in entries)


def _logprob(entry: dict[str, Any], top: int) -> TokenLogprob:
    others = tuple(_logprob(other, 0) for other in entry.get("top_logprobs", ())[:top])
    data = tuple(entry.get("bytes") or entry["token"].encode())
    return TokenLogprob(entry["token"], data, float(entry["logprob"]), int(entry.get("id", -1)), others)
