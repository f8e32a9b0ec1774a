"""Ollama's requests as values: no server, no model."""

import base64
import json
import struct
from typing import Any

import pytest

from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Draw, Piece, ToolCall, Turn
from sizewise.serve.lease import UNSET
from sizewise.serve.wire.ollama import Ask, job_of, read_chat, read_embed, read_embeddings, read_generate
from sizewise.serve.wire.ollama_answer import Answer
from sizewise.serve.wire.ollama_options import draw_of, read_options, stored_options

NULLS = (
    *("mirostat", "mirostat_eta", "mirostat_tau", "num_ctx", "num_gpu", "num_thread", "num_predict", "repeat_last_n"),
    *("repeat_penalty", "temperature", "seed", "stop", "tfs_z", "top_k", "top_p"),
)


def model(**more: Any) -> Model:
    return Model(name="m", kind="linear", digest="sha256:" + "a" * 64, files={}, size_bytes=7, **more)


def options(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    fields = Fields({"options": values})
    return read_options(fields), fields.warnings


def generate(**body: Any) -> Ask:
    return read_generate(Fields({"model": "m", "prompt": "p", **body}))


def chat(*messages: Any, **body: Any) -> Ask:
    return read_chat(Fields({"model": "m", "messages": list(messages), **body}))


# Options


def test_what_nobody_says_has_ollamas_defaults() -> None:
    draw = draw_of({}, {})
    assert (draw.temperature, draw.top_p, draw.top_k, draw.repeat_last_n, draw.repeat_penalty) == (
        0.8,
        0.9,
        40,
        64,
        1.0,
    )
    assert (draw.max_tokens, draw.seed, draw.stop) == (None, None, ())


def test_the_request_goes_before_the_model_and_the_model_before_the_default() -> None:
    said, _ = options({"temperature": 0.1, "stop": ["a"]})
    draw = draw_of(said, {"temperature": 0.5, "top_k": 7, "stop": ["b"]})
    assert (draw.temperature, draw.top_k, draw.stop, draw.top_p) == (0.1, 7, ("a",), 0.9)


def test_nulls_say_nothing() -> None:
    assert options(dict.fromkeys(NULLS)) == ({}, [])


def test_whole_numbers_may_come_as_floats() -> None:
    said, _ = options({"num_predict": 5.0, "top_k": 3.0, "seed": 1.0, "temperature": 1})
    draw = draw_of(said, {})
    assert (draw.max_tokens, draw.top_k, draw.seed, draw.temperature) == (5, 3, 1, 1.0)
    assert isinstance(draw.max_tokens, int)


@pytest.mark.parametrize("limit", [-1, -2])
def test_as_many_tokens_as_fit(limit: int) -> None:
    assert draw_of(options({"num_predict": limit})[0], {"num_predict": 3}).max_tokens is None


def test_a_limit_beyond_all_contexts_is_none() -> None:
    limit = draw_of(options({"num_predict": 10**12})[0], {}).max_tokens
    assert limit is not None
    assert limit >= 2**31 - 1


def test_seed_minus_one_is_a_new_seed_each_time() -> None:
    assert draw_of(options({"seed": -1})[0], {"seed": 5}).seed is None
    assert draw_of(options({"seed": 2**63 - 1})[0], {}).seed == 2**63 - 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", value) for value in (-1, 1e9, "hot", True, [1])],
        *[("top_p", value) for value in (0, 1.1, -0.1)],
        *[("top_k", value) for value in (-5, 1.5)],
        *[("num_predict", value) for value in (0, -3, 1.5, "many")],
        *[("seed", value) for value in (2**63, 1.5, -2)],
        *[("stop", value) for value in (["x"] * 17, [""], ["x" * 2**20], [1], 1)],
        *[("num_ctx", value) for value in (0, -1, 10**9, "large")],
        ("repeat_penalty", 0),
        ("num_gpu", "all"),
        ("use_mmap", 1),
    ],
)
def test_a_wrong_option_is_named(name: str, value: object) -> None:
    with pytest.raises(BadField, match=rf"^options\.{name}: ") as caught:
        options({name: value})
    assert caught.value.field == f"options.{name}"


def test_options_without_effect_are_named_in_warnings() -> None:
    said, warnings = options({"num_gpu": 1, "mirostat": 2, "temprature": 0.5, "use_mmap": True, "temperature": 0})
    assert said == {"temperature": 0.0}
    assert [warning.split()[0].rstrip(":") for warning in warnings] == [
        "options.num_gpu",
        "options.mirostat",
        "options.temprature",
    ]
    assert "temperature" in warnings[-1]


def test_top_k_zero_is_off() -> None:
    assert draw_of(options({"top_k": 0})[0], {}).top_k == 0


def test_damaged_parameters_of_a_model_count_as_not_said() -> None:
    assert stored_options({"temperature": "x", "top_k": 3, "odd": 1, "num_gpu": 1, "stop": ["a"]}) == {
        "top_k": 3,
        "stop": ["a"],
    }


# Requests


def test_langchains_request_with_everything_unset() -> None:
    ask = generate(format="", options=dict.fromkeys(NULLS), stream=True)
    assert (ask.schema, ask.think, ask.stream, ask.warnings) == (None, None, True, ())
    job = job_of(ask, model())
    assert (job.turns, job.draw, job.truncate) == ((Turn("user", "p"),), Draw(), False)


def test_streaming_is_the_default() -> None:
    assert generate().stream
    assert chat({"role": "user", "content": "x"}).stream
    assert not generate(stream=False).stream


@pytest.mark.parametrize("body", [{}, {"model": ""}, {"model": None}, {"model": "  "}])
def test_a_model_is_required(body: dict[str, Any]) -> None:
    for read in (read_generate, read_chat, read_embed, read_embeddings):
        with pytest.raises(UsageError, match="model is required"):
            read(Fields(dict(body)))


def test_an_unknown_field_is_refused_and_the_nearest_named() -> None:
    with pytest.raises(BadField, match="did you mean 'messages'"):
        read_chat(Fields({"model": "m", "message": []}))
    with pytest.raises(BadField, match=r"messages\[0\]\.contents"):
        chat({"role": "user", "contents": "x"})


def test_an_empty_prompt_loads_and_zero_unloads() -> None:
    assert generate(prompt="").only_loads
    assert not generate(prompt="").unloads
    assert generate(prompt="", keep_alive=0).unloads
    assert chat().only_loads
    assert chat(keep_alive=0.0).unloads
    assert chat(keep_alive="0s").unloads
    assert not generate(keep_alive=0).unloads


@pytest.mark.parametrize(
    ("told", "meant"),
    [(0, 0.0), (-1, None), ("-1", None), ("5m", 300.0), ("1h30m", 5400.0), (90, 90.0), ("90s", 90.0), (None, UNSET)],
)
def test_keep_alive(told: object, meant: object) -> None:
    assert generate(keep_alive=told).keep_alive == meant


@pytest.mark.parametrize("told", ["5 parsecs", "soon", True, [], "5m3"])
def test_a_keep_alive_that_is_no_duration(told: object) -> None:
    with pytest.raises(BadField, match=r"^keep_alive: "):
        generate(keep_alive=told)


def test_formats() -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    assert generate(format="json").schema == "json"
    checked = generate(format=schema).schema
    assert isinstance(checked, dict)
    assert checked["properties"] == schema["properties"]
    wrong: object
    for wrong in ("yaml", 1, [], True):
        with pytest.raises(BadField, match=r"^format"):
            generate(format=wrong)
    with pytest.raises(BadField, match=r"^format.*pattern"):
        generate(format={"type": "string", "pattern": "^+[a-z]$"})


def test_thinking() -> None:
    assert [generate(think=value).think for value in (True, False, "low", "max", None)] == [
        True,
        False,
        "low",
        "max",
        None,
    ]
    wrong: object
    for wrong in ("deep", 1, {}):
        with pytest.raises(BadField, match=r"^think"):
            generate(think=wrong)


def test_log_probabilities() -> None:
    assert generate(logprobs=True).top_logprobs == 0
    assert generate(logprobs=True, top_logprobs=20).top_logprobs == 20
    assert generate(logprobs=False).top_logprobs is None
    assert "top_logprobs" in generate(top_logprobs=3).warnings[0]
    for wrong in (21, -1, "many"):
        with pytest.raises(BadField, match=r"^top_logprobs"):
            generate(logprobs=True, top_logprobs=wrong)


@pytest.mark.parametrize("other", [{"system": "s"}, {"template": "{{ x }}"}, {"context": [1]}])
def test_a_raw_prompt_goes_with_nothing_else(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"^raw"):
        generate(raw=True, **other)
    job = job_of(generate(raw=True), model(system="s"))
    assert (job.prompt, job.special, job.turns) == ("p", True, ())


def test_the_gap_between_two_texts() -> None:
    job = job_of(generate(suffix="}"), model())
    assert (job.prompt, job.suffix, job.special) == ("p", "}", False)


def test_a_system_prompt_in_the_request() -> None:
    assert job_of(generate(system="s"), model()).turns == (Turn("system", "s"), Turn("user", "p"))


def test_a_conversation_as_tokens() -> None:
    job = job_of(generate(context=[1, 2]), model())
    assert (job.before, job.turns) == ((1, 2), (Turn("user", "p"),))
    for wrong in ([-1], [2**31], [1.5], ["1"], [True], "1"):
        with pytest.raises(BadField, match=r"^context"):
            generate(context=wrong)


def test_fields_without_effect_are_named() -> None:
    warnings = generate(width=5, shift=True).warnings
    assert [warning.split()[0] for warning in warnings] == ["shift", "width"]
    assert not generate(shift=False).warnings


# Messages


def test_content_may_be_absent_and_not_null() -> None:
    assert chat({"role": "user"}).turns == (Turn("user", ""),)
    with pytest.raises(BadField, match=r"messages\[0\]\.content"):
        chat({"role": "user", "content": None})
    called = {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f"}}]}
    assert chat(called).turns[0].content == ""


@pytest.mark.parametrize(
    "message",
    [
        {"role": "wizard", "content": "x"},
        {"content": "x"},
        {"role": "user", "content": ["x"]},
        {"role": "user", "content": 1},
        "x",
        {"role": "user", "content": "x", "tool_calls": [{"function": {"name": "f"}}]},
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
        {"role": "assistant", "tool_calls": [{"name": "f"}]},
        {"role": "user", "content": "x", "images": ["!"]},
        {"role": "user", "content": "x", "images": ["https://example.org/a.png"]},
    ],
)
def test_a_wrong_message_is_named(message: object) -> None:
    with pytest.raises(BadField, match=r"^messages\[1\]"):
        chat({"role": "user", "content": "x"}, message)


def call(name: str, **arguments: Any) -> dict[str, Any]:
    return {"function": {"name": name, "arguments": arguments}}


def test_results_belong_to_calls_by_order_where_nothing_else_is_said() -> None:
    turns = chat(
        {"role": "user", "content": "x"},
        {"role": "assistant", "tool_calls": [call("f", a=1), call("g")]},
        {"role": "tool", "content": "1"},
        {"role": "tool", "content": "2"},
    ).turns
    calls = turns[1].tool_calls
    assert [(one.name, one.arguments) for one in calls] == [("f", {"a": 1}), ("g", {})]
    assert calls[0].id != calls[1].id != ""
    assert [(turn.tool_name, turn.tool_call_id) for turn in turns[2:]] == [("f", calls[0].id), ("g", calls[1].id)]


def test_results_belong_to_calls_by_id_or_name_where_they_say_it() -> None:
    calls = [call("f") | {"id": "1"}, call("f") | {"id": "2"}, call("g") | {"type": "function"}]
    turns = chat(
        {"role": "assistant", "tool_calls": calls},
        {"role": "tool", "content": "b", "tool_call_id": "2"},
        {"role": "tool", "content": "g", "tool_name": "g"},
        {"role": "tool", "content": "a"},
    ).turns
    assert [turn.tool_call_id for turn in turns[1:]] == ["2", turns[0].tool_calls[2].id, "1"]
    assert [turn.tool_name for turn in turns[1:]] == ["f", "g", "f"]


def test_an_answer_may_be_sent_back_as_it_came() -> None:
    piece = Piece(tool_calls=(ToolCall("f", {"a": 1}, "id"),), thinking="hm")
    line = Answer("chat", "m").line(piece)
    turn = chat(json.loads(json.dumps(line["message"]))).turns[0]
    assert (turn.role, turn.thinking, turn.tool_calls) == ("assistant", "hm", (ToolCall("f", {"a": 1}, "id"),))


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return base64.b64encode(head + b"\x08\x02\0\0\0").decode()


def test_images_are_bytes() -> None:
    (image,) = chat({"role": "user", "content": "x", "images": [png(2, 3)]}).turns[0].images
    assert image == base64.b64decode(png(2, 3))
    for width, height in ((0, 0), (50_000, 50_000)):
        with pytest.raises(BadField, match=r"^images\[0\]"):
            generate(images=[png(width, height)])


TOOL = {"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}


def test_tools() -> None:
    asked = chat({"role": "user", "content": "x"}, tools=[TOOL])
    assert asked.tools[0]["function"]["name"] == "f"
    for wrong in (
        [{"type": "magic", "function": {"name": "f"}}],
        [TOOL | {"function": {"name": 'f"'}}],
        [TOOL | {"function": {}}],
        [TOOL] * 1000,
        [TOOL] * 2,
        "f",
    ):
        with pytest.raises(BadField, match=r"^tools"):
            chat({"role": "user", "content": "x"}, tools=wrong)


# Embeddings


def test_inputs() -> None:
    assert read_embed(Fields({"model": "m", "input": "a"})).texts == ("a",)
    assert read_embed(Fields({"model": "m", "input": ["a", ""]})).texts == ("a", "")
    assert read_embed(Fields({"model": "m", "input": ""})).texts == ()
    assert read_embed(Fields({"model": "m", "input": []})).texts == ()
    assert read_embeddings(Fields({"model": "m", "prompt": "a"})).texts == ("a",)
    for wrong in (["a", 1], 1, {"a": 1}, True):
        with pytest.raises(BadField, match=r"^input"):
            read_embed(Fields({"model": "m", "input": wrong}))
