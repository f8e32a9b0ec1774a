"""Anthropic's protocol, by hand: its package is not needed to speak it."""

import json
from typing import Any

import pytest
from served import Served

from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Piece, ToolCall
from sizewise.serve.wire import anthropic

ASKED = {"model": "smollm2", "max_tokens": 24, "messages": [{"role": "user", "content": "Name the capital of France."}]}
TOOL = {
    "name": "look",
    "description": "looks",
    "input_schema": {"type": "object", "properties": {"at": {"type": "string"}}},
}


def told(events: list[Event], **fields: Any) -> list[tuple[str, dict[str, Any]]]:
    answer = anthropic.Messenger(anthropic.parse(Fields({**ASKED, **fields})))
    return [answer.begin(), *(one for event in events for one in answer.events(event))]


def rebuilt(events: list[tuple[str, dict[str, Any]]]) -> dict[str, Any]:
    """The message as a client puts it together."""
    message: dict[str, Any] = {}
    for name, data in events:
        assert name == data["type"]
        if name == "message_start":
            message = data["message"]
        elif name == "content_block_start":
            assert data["index"] == len(message["content"])
            message["content"].append({**data["content_block"], "json": ""})
        elif name == "content_block_delta":
            block, delta = message["content"][data["index"]], data["delta"]
            key = {"text_delta": "text", "thinking_delta": "thinking", "input_json_delta": "json"}[delta["type"]]
            block[key] += delta.get("partial_json") or delta.get(key)
        elif name == "message_delta":
            message |= data["delta"]
            message["usage"] |= data["usage"]
    assert events[-1][0] == "message_stop"
    starts, stops = (sum(name == f"content_block_{end}" for name, _ in events) for end in ("start", "stop"))
    assert starts == stops == len(message["content"])
    return message


def test_thoughts_text_and_calls_are_blocks() -> None:
    call = ToolCall("look", {"at": "sky"})
    events: list[Event] = [Piece(thinking="hm"), Piece(text="I "), Piece(text="look"), Piece(tool_calls=(call, call))]
    message = rebuilt(told([*events, Done("tool_calls", 5, 7, cached_tokens=2)], tools=[TOOL]))
    assert [block["type"] for block in message["content"]] == ["thinking", "text", "tool_use", "tool_use"]
    assert message["content"][1]["text"] == "I look"
    assert json.loads(message["content"][2]["json"]) == {"at": "sky"}
    assert message["content"][2]["id"] != message["content"][3]["id"]
    assert message["stop_reason"] == "tool_use"
    assert (message["usage"]["input_tokens"], message["usage"]["cache_read_input_tokens"]) == (3, 2)


@pytest.mark.parametrize(
    ("done", "reason", "sequence"),
    [
        (Done("stop", 1, 1), "end_turn", None),
        (Done("length", 1, 1), "max_tokens", None),
        (Done("stop", 1, 1, stop_text="END"), "stop_sequence", "END"),
    ],
)
def test_why_it_stopped(done: Done, reason: str, sequence: str | None) -> None:
    message = rebuilt(told([Piece(text="x"), done], stop_sequences=["END"]))
    assert (message["stop_reason"], message["stop_sequence"]) == (reason, sequence)


def test_an_empty_answer_has_a_block() -> None:
    assert rebuilt(told([Done("stop", 1, 0)]))["content"][0]["text"] == ""


def test_blocks_become_turns() -> None:
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "look"}, {"type": "text", "text": "up"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "t1", "name": "look", "input": {"at": "sky"}}]},
        {
            "role": "user",
            "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "blue"}]},
                {"type": "text", "text": "so?"},
            ],
        },
    ]
    system = [{"type": "text", "text": "be brief", "cache_control": {"type": "ephemeral"}}]
    job = anthropic.parse(Fields({**ASKED, "messages": messages, "system": system, "tools": [TOOL]})).job
    assert [(turn.role, turn.content) for turn in job.turns] == [
        ("system", "be brief"),
        ("user", "look\nup"),
        ("assistant", ""),
        ("tool", "blue"),
        ("user", "so?"),
    ]
    assert job.turns[3].tool_name == "look"
    assert job.tools[0]["function"]["parameters"]["properties"] == {"at": {"type": "string"}}


@pytest.mark.parametrize(
    "source",
    [
        {"type": "url", "url": "http://127.0.0.1:9/x.png"},
        {"type": "file", "file_id": "f"},
        {"type": "base64", "media_type": "image/png", "data": "@@"},
        None,
    ],
)
def test_nothing_is_fetched(source: Any) -> None:
    block = {"type": "image", "source": source}
    with pytest.raises(BadField, match="source"):
        anthropic.parse(Fields({**ASKED, "messages": [{"role": "user", "content": [block]}]}))


@pytest.mark.model
def test_whole_and_streamed(server: Served) -> None:
    body = {**ASKED, "temperature": 0, "system": "Answer in one sentence."}
    with server.client() as client:
        whole = client.post("/v1/messages", json=body, headers={"anthropic-version": "2023-06-01"}).json()
        counted = client.post(
            "/v1/messages/count_tokens", json={**body, "max_tokens": None, "temperature": None}
        ).json()
        with client.stream("POST", "/v1/messages", json={**body, "stream": True}) as answer:
            text = "".join(answer.iter_text())
    events = []
    for block in text.strip().split("\n\n"):
        name, data = block.split("\n")
        events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    message = rebuilt(events)
    assert "Paris" in whole["content"][0]["text"]
    assert message["content"][0]["text"] == whole["content"][0]["text"]
    assert (message["role"], message["stop_reason"]) == (whole["role"], whole["stop_reason"])
    usage = whole["usage"]
    assert usage["input_tokens"] + usage["cache_read_input_tokens"] == counted["input_tokens"]
