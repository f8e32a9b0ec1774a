"""OpenAI's requests and answers as values: no model, no server."""

import asyncio
import json
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from sizewise.core.errors import EngineFailed
from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Piece, TokenLogprob, ToolCall
from sizewise.serve.routes.asking import together
from sizewise.serve.wire import openai, openai_chat, openai_completions
from sizewise.serve.wire.openai_chat import Chat

TURN = {"role": "user", "content": "hi"}
MODEL = Model(
    "m", "gguf", "sha256:0", {}, 0, defaults={"temperature": 0.2, "stop": ["END"], "seed": 5, "num_predict": -1}
)
PLAIN = Model("m", "gguf", "sha256:0", {}, 0)


def chat(**fields: Any) -> openai.Asked:
    return openai_chat.parse(Fields({"model": "m", "messages": [TURN], **fields}))


def chunks(events: list[tuple[int, Event]], **fields: Any) -> list[dict[str, Any]]:
    answer = Chat(chat(stream=True, **fields), PLAIN, 1)
    made = [chunk for index, event in events for chunk in answer.chunks(index, event)]
    *body, end = [*made, *answer.end()]
    assert end == b"[DONE]"
    return [json.loads(chunk) for chunk in body]


def token(text: bytes, logprob: float | None, *top: TokenLogprob) -> TokenLogprob:
    return TokenLogprob(text.decode("utf-8", "replace"), tuple(text), logprob, 1, top)


def test_defaults_are_openais_unless_the_model_says_otherwise() -> None:
    draw = chat().jobs(PLAIN)[0].draw
    assert (draw.temperature, draw.top_p, draw.top_k, draw.min_p, draw.max_tokens) == (1.0, 1.0, 0, 0.0, None)
    stored = chat().jobs(MODEL)[0].draw
    assert (stored.temperature, stored.stop, stored.seed, stored.max_tokens) == (0.2, ("END",), 5, None)
    asked = chat(temperature=0, stop="x", seed=7, max_completion_tokens=3, n=3)
    assert [job.draw.seed for job in asked.jobs(MODEL)] == [7, 8, 9]
    draw = asked.jobs(MODEL)[0].draw
    assert (draw.temperature, draw.stop, draw.max_tokens) == (0.0, ("x",), 3)
    assert chat(seed=-1).jobs(MODEL)[0].draw.seed is None


def test_both_limits_may_say_the_same() -> None:
    assert chat(max_tokens=4, max_completion_tokens=4).given["max_tokens"] == 4


def test_stored_parameters_of_a_wrong_type_are_left_alone() -> None:
    draw = openai.resolve({}, {"temperature": "hot", "stop": [1, "x"], "top_k": 4.0, "logit_bias": 1, "num_ctx": 5})
    assert (draw.temperature, draw.stop, draw.top_k, draw.logit_bias) == (1.0, ("x",), 4, ())


def test_messages_become_turns() -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    calls = [{"id": "c1", "type": "function", "function": {"name": "look", "arguments": '{"at": 1}'}}]
    messages = [
        {"role": "developer", "content": "brief"},
        {"role": "user", "content": parts},
        {"role": "assistant", "content": None, "tool_calls": calls},
        {"role": "tool", "tool_call_id": "c1", "content": "blue"},
    ]
    turns = chat(messages=messages).job.turns
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "tool"]
    assert turns[1].content == "a\nb"
    assert turns[2].tool_calls == (ToolCall("look", {"at": 1}, "c1"),)
    assert turns[3].tool_name == "look"


@pytest.mark.parametrize(
    ("arguments", "problem"), [("{", "JSON"), ("[1]", "object"), ("1", "object"), (["a"], "object")]
)
def test_calls_that_come_back_broken(arguments: Any, problem: str) -> None:
    calls = [{"id": "c1", "function": {"name": "look", "arguments": arguments}}]
    with pytest.raises(BadField, match=problem) as error:
        chat(messages=[{"role": "assistant", "tool_calls": calls}])
    assert error.value.field.startswith("messages[0].tool_calls[0]")


def test_the_order_of_a_stream() -> None:
    made = chunks([(0, Piece(text="a")), (0, Piece(text="b")), (0, Done("stop", 3, 2))])
    assert [chunk["choices"][0]["delta"] for chunk in made] == [
        {"role": "assistant", "content": ""},
        {"content": "a"},
        {"content": "b"},
        {},
    ]
    assert [chunk["choices"][0]["finish_reason"] for chunk in made] == [None, None, None, "stop"]
    assert "usage" not in made[0]


def test_usage_is_told_once_at_the_end() -> None:
    made = chunks([(0, Piece(text="a")), (0, Done("length", 3, 2, 1))], stream_options={"include_usage": True})
    assert made[-1]["choices"] == []
    assert made[-1]["usage"]["total_tokens"] == 5
    assert made[-1]["usage"]["prompt_tokens_details"] == {"cached_tokens": 1}
    assert all(chunk["usage"] is None for chunk in made[:-1])


def test_calls_in_a_stream_are_numbered() -> None:
    call = ToolCall("look", {"at": "\u2028"})
    made = chunks([(0, Piece(tool_calls=(call,))), (0, Piece(tool_calls=(call,))), (0, Done("stop", 1, 1))])
    calls = [delta for chunk in made for delta in chunk["choices"][0]["delta"].get("tool_calls", ())]
    assert [one["index"] for one in calls] == [0, 1]
    assert calls[0]["id"] != calls[1]["id"]
    assert json.loads(calls[0]["function"]["arguments"]) == {"at": "\u2028"}
    assert made[-1]["choices"][0]["finish_reason"] == "tool_calls"


def test_choices_of_a_stream_do_not_mix() -> None:
    events: list[tuple[int, Event]] = [(1, Piece(text="b")), (0, Piece(text="a")), (1, Done("stop", 3, 1))]
    made = chunks([*events, (0, Done("length", 3, 2))], n=2, stream_options={"include_usage": True})
    assert [(c["choices"][0]["index"], c["choices"][0]["finish_reason"]) for c in made if c["choices"]] == [
        *((1, None), (1, None), (0, None), (0, None), (1, "stop"), (0, "length"))
    ]
    assert made[-1]["usage"]["completion_tokens"] == 3
    assert made[-1]["usage"]["prompt_tokens"] == 3


def test_a_token_may_be_half_a_character() -> None:
    face = "\U0001f600".encode()
    tokens = [token(b"a", None), token(face[:2], -1.0, token(b"b", -0.5)), token(face[2:], -2.0), token(b"c", -3.0)]
    told = openai_completions.logprobs_json(tokens, 1)
    assert told["tokens"] == ["a", "bytes:\\xf0\\x9f", "bytes:\\x98\\x80", "c"]
    assert told["text_offset"] == [0, 1, 1, 2]
    assert told["token_logprobs"] == [None, -1.0, -2.0, -3.0]
    assert told["top_logprobs"] == [
        None,
        {"b": -0.5, "bytes:\\xf0\\x9f": -1.0},
        {"bytes:\\x98\\x80": -2.0},
        {"c": -3.0},
    ]


def test_impossible_tokens_have_a_number() -> None:
    """JSON has no infinity."""
    body = openai.token_json(token(b"a", float("-inf"), token(b"b", -1.0)))
    assert body["logprob"] == -9999.0
    json.dumps(body, allow_nan=False)


async def _events(log: list[str], name: str, *events: Event | Exception) -> AsyncGenerator[Event, None]:
    try:
        for event in events:
            await asyncio.sleep(0)
            if isinstance(event, Exception):
                raise event
            yield event
        if name == "endless":
            await asyncio.Event().wait()
    finally:
        log.append(name)


def test_streams_together() -> None:
    async def run() -> list[tuple[int, Event]]:
        log: list[str] = []
        starts = [
            lambda: _events(log, "a", Piece("1"), Done("stop", 1, 1)),
            lambda: _events(log, "b", Done("stop", 1, 0)),
        ]
        found = [pair async for pair in together(starts)]
        assert sorted(log) == ["a", "b"]
        return found

    found = asyncio.run(run())
    assert [event for index, event in found if index == 0] == [Piece("1"), Done("stop", 1, 1)]
    assert [event for index, event in found if index == 1] == [Done("stop", 1, 0)]


def test_the_first_error_ends_all_streams() -> None:
    async def run() -> None:
        log: list[str] = []
        starts = [lambda: _events(log, "endless", Piece("1")), lambda: _events(log, "b", EngineFailed("gone"))]
        with pytest.raises(EngineFailed, match="gone"):
            async for _ in together(starts):
                pass
        assert sorted(log) == ["b", "endless"]

    asyncio.run(asyncio.wait_for(run(), 10))


def test_leaving_ends_all_streams() -> None:
    async def run() -> None:
        log: list[str] = []
        stream = together([lambda: _events(log, "endless", Piece("1"))] * 3)
        assert (await anext(stream))[1] == Piece("1")
        await stream.aclose()
        assert log == ["endless"] * 3

    asyncio.run(asyncio.wait_for(run(), 10))
