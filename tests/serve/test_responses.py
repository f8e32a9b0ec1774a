"""The `responses` of the openai package against a real server, and the events of made-up answers."""

import json
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from pydantic import BaseModel, Field
from served import Served

from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Done, Event, Piece, ToolCall
from sizewise.serve.wire import responses

MODEL = Model("m", "gguf", "sha256:0", {}, 0)


class City(BaseModel):
    name: str = Field(max_length=30)  # a model this small may go on and on within a text
    big: bool


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", timeout=120) as made:
        yield made


def told(events: list[Event], **fields: Any) -> tuple[list[str], dict[str, Any]]:
    """The names of the events of an answer, and its body; their numbers are checked."""
    responder = responses.Responder(responses.parse(Fields({"model": "m", "input": "x", **fields})), MODEL, 1)
    made = [*responder.begin(), *(one for event in events for one in responder.events(event)), *responder.end()]
    assert [data["sequence_number"] for _, data in made] == list(range(len(made)))
    assert all(name == data["type"] for name, data in made)
    return [name.removeprefix("response.") for name, _ in made], made[-1][1]["response"]


def test_thoughts_text_and_calls_are_items() -> None:
    call = ToolCall("look", {"at": "sky"}, "call_1")
    events: list[Event] = [Piece(thinking="hm"), Piece(text="I "), Piece(text="look"), Piece(tool_calls=(call,))]
    names, body = told([*events, Done("tool_calls", 5, 7)])
    assert [item["type"] for item in body["output"]] == ["reasoning", "message", "function_call"]
    assert body["output"][1]["content"][0]["text"] == "I look"
    assert json.loads(body["output"][2]["arguments"]) == {"at": "sky"}
    assert body["usage"]["total_tokens"] == 12
    assert names.count("output_item.added") == names.count("output_item.done") == 3
    assert names.count("output_text.delta") == 2
    assert names[-1] == "completed"


def test_an_answer_that_was_cut() -> None:
    names, body = told([Piece(text="a"), Done("length", 1, 1)])
    assert names[-1] == "incomplete"
    assert body["incomplete_details"] == {"reason": "max_output_tokens"}
    assert body["output"][0]["status"] == "incomplete"


def test_conversations() -> None:
    items = [
        {"role": "developer", "content": "be brief"},
        {"role": "user", "content": [{"type": "input_text", "text": "weather?"}]},
        {"type": "function_call", "call_id": "c1", "name": "look", "arguments": '{"city": "Rome"}'},
        {"type": "function_call", "call_id": "c2", "name": "feel", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "sunny"},
    ]
    turns = responses.parse(Fields({"model": "m", "input": items, "instructions": "answer"})).job.turns
    assert [turn.role for turn in turns] == ["system", "system", "user", "assistant", "tool"]
    assert [call.name for call in turns[3].tool_calls] == ["look", "feel"]
    assert (turns[4].tool_name, turns[4].content) == ("look", "sunny")
    orphan = [{"type": "function_call_output", "call_id": "c9", "output": "x"}]
    with pytest.raises(BadField, match="call_id"):
        responses.parse(Fields({"model": "m", "input": orphan}))


@pytest.mark.parametrize(
    "fields", [{"conversation": "c"}, {"background": True}, {"prompt": {"id": "p"}}, {"previous_response_id": "r"}]
)
def test_what_would_need_a_memory_is_refused(fields: dict[str, Any]) -> None:
    with pytest.raises(BadField, match=next(iter(fields))):
        responses.parse(Fields({"model": "m", "input": "x", **fields}))


@pytest.mark.model
def test_whole_and_streamed(client: openai.OpenAI) -> None:
    asked: Any = {"model": "smollm2", "input": "Name the capital of France.", "temperature": 0, "max_output_tokens": 24}
    whole = client.responses.create(**asked, instructions="Answer in one sentence.")
    assert "Paris" in whole.output_text
    assert whole.usage
    assert whole.usage.output_tokens > 1
    events = list(client.responses.create(**asked, instructions="Answer in one sentence.", stream=True))
    deltas = [event.delta for event in events if event.type == "response.output_text.delta"]
    assert "".join(deltas) == whole.output_text
    assert events[0].type == "response.created"
    assert events[-1].type == f"response.{whole.status}"


@pytest.mark.model
def test_the_package_follows_the_stream(client: openai.OpenAI) -> None:
    """Its own accumulator checks the order of the events."""
    with client.responses.stream(model="smollm2", input="Say hello.", temperature=0, max_output_tokens=60) as stream:
        for _ in stream:
            pass
        final = stream.get_final_response()
    assert final.output_text


@pytest.mark.model
def test_typed_answers(client: openai.OpenAI) -> None:
    parsed = client.responses.parse(
        model="smollm2",
        input="Which city is the capital of France?",
        text_format=City,
        max_output_tokens=200,
        temperature=0,
    )
    assert isinstance(parsed.output_parsed, City)


@pytest.mark.model
def test_store_has_no_effect_and_says_so(client: openai.OpenAI) -> None:
    answer = client.responses.with_raw_response.create(model="smollm2", input="hi", max_output_tokens=2, store=True)
    assert "store" in answer.headers["x-sizewise-warning"]
