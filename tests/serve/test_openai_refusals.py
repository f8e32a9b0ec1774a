"""Requests of OpenAI's, Anthropic's and our own endpoints that cannot be served: what is said, and that all goes on."""

import base64
import socket
import struct
from typing import Any

import pytest
from starlette.testclient import TestClient

TURN = {"role": "user", "content": "hello"}
SCHEMA = "response_format.json_schema.schema"
CHAT, TEXT, EMBED = "/v1/chat/completions", "/v1/completions", "/v1/embeddings"
TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object", "properties": {}}}}


def png(width: int, height: int) -> str:
    """A PNG's head, as a data: address."""
    data = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height) + bytes(9)
    return "data:image/png;base64," + base64.b64encode(data).decode()


def post(client: TestClient, path: str, body: Any) -> Any:
    return client.post(path, json=body)


def chat(**fields: Any) -> dict[str, Any]:
    return {"model": "tiny", "messages": [TURN], "max_tokens": 2, **fields}


def tools(*functions: Any) -> dict[str, Any]:
    return chat(tools=[{"type": "function", "function": function} for function in functions])


def form(schema: Any) -> dict[str, Any]:
    return chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})


def image(url: Any) -> dict[str, Any]:
    parts = [{"type": "text", "text": "what is it?"}, {"type": "image_url", "image_url": {"url": url}}]
    return chat(messages=[{"role": "user", "content": parts}])


ROWS: list[tuple[str, str, dict[str, Any], str]] = [
    ("13 no model", CHAT, {"messages": [TURN]}, "model"),
    ("13 empty model", CHAT, chat(model=""), "model"),
    ("32 role", CHAT, chat(messages=[{"role": "king", "content": "x"}]), "messages[0].role"),
    ("32 content null", CHAT, chat(messages=[{"role": "user", "content": None}]), "messages[0].content"),
    ("32 no messages", CHAT, chat(messages=[]), "messages"),
    ("36 token -1", TEXT, {"model": "tiny", "prompt": [1, -1]}, "prompt[1]"),
    ("36 token 2^31", TEXT, {"model": "tiny", "prompt": [2**31]}, "prompt[0]"),
    ("36 token true", TEXT, {"model": "tiny", "prompt": [1, True]}, "prompt[1]"),
    ("36 mixed prompts", TEXT, {"model": "tiny", "prompt": ["a", [1]]}, "prompt[1]"),
    ("37 temperature -1", CHAT, chat(temperature=-1), "temperature"),
    ("37 temperature 1e9", CHAT, chat(temperature=1e9), "temperature"),
    ("37 temperature hot", CHAT, chat(temperature="hot"), "temperature"),
    ("38 top_p 0", CHAT, chat(top_p=0), "top_p"),
    ("38 top_p 1.1", CHAT, chat(top_p=1.1), "top_p"),
    ("38 top_k -5", CHAT, chat(top_k=-5), "top_k"),
    ("39 max_tokens 0", CHAT, chat(max_tokens=0), "max_tokens"),
    ("39 max_tokens -1", CHAT, chat(max_tokens=-1), "max_tokens"),
    ("39 two limits", CHAT, chat(max_tokens=3, max_completion_tokens=4), "max_completion_tokens"),
    ("39 text without echo", TEXT, {"model": "tiny", "prompt": "x", "max_tokens": 0}, "max_tokens"),
    ("40 n 0", CHAT, chat(n=0), "n"),
    ("40 n 9", CHAT, chat(n=9), "n"),
    ("40 n 1e6", CHAT, chat(n=10**6), "n"),
    ("40 best_of 1e6", TEXT, {"model": "tiny", "prompt": "x", "best_of": 10**6}, "best_of"),
    ("40 best_of 2", TEXT, {"model": "tiny", "prompt": "x", "best_of": 2}, "best_of"),
    ("41 seed 2^63", CHAT, chat(seed=2**63), "seed"),
    ("41 seed 1.5", CHAT, chat(seed=1.5), "seed"),
    ("41 seed -2", CHAT, chat(seed=-2), "seed"),
    ("42 17 stops", CHAT, chat(stop=["x"] * 17), "stop"),
    ("42 empty stop", CHAT, chat(stop=["a", ""]), "stop[1]"),
    ("42 1 MB stop", CHAT, chat(stop="x" * 10**6), "stop[0]"),
    ("43 num_ctx 0", CHAT, chat(num_ctx=0), "num_ctx"),
    ("43 num_ctx -1", CHAT, chat(num_ctx=-1), "num_ctx"),
    ("44 keep_alive", CHAT, chat(keep_alive="5 parsecs"), "keep_alive"),
    ("45 bias no id", CHAT, chat(logit_bias={"x": 1}), "logit_bias.x"),
    ("45 bias too large", CHAT, chat(logit_bias={"1": 101}), "logit_bias.1"),
    ("45 top_logprobs 21", CHAT, chat(logprobs=True, top_logprobs=21), "top_logprobs"),
    ("45 top_logprobs alone", CHAT, chat(top_logprobs=2), "top_logprobs"),
    ("45 logprobs 21", TEXT, {"model": "tiny", "prompt": "x", "logprobs": 21}, "logprobs"),
    ("46 grammar nests", CHAT, chat(grammar="root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000), "grammar"),
    (
        "47 pattern ^+",
        CHAT,
        form({"type": "string", "pattern": "^+[a-z]$"}),
        "response_format.json_schema.schema.pattern",
    ),
    ("47 pattern ^{2}", CHAT, form({"type": "string", "pattern": "^{2}x$"}), f"{SCHEMA}.pattern"),
    (
        "47 cyclic ref",
        CHAT,
        form({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}}),
        SCHEMA,
    ),
    ("47 10 MB", CHAT, form({"type": "string", "enum": ["x" * 10**7]}), SCHEMA),
    ("47 no schema", CHAT, chat(response_format={"type": "json_schema"}), SCHEMA),
    ("47 form", CHAT, chat(response_format={"type": "yaml"}), "response_format.type"),
    ("49 tool type", CHAT, chat(tools=[{"type": "robot"}]), "tools[0].type"),
    ("49 1000 tools", CHAT, chat(tools=[TOOL] * 1000), "tools"),
    ("49 quotes", CHAT, tools({"name": 'a"b'}), "tools[0].function.name"),
    ("49 same name", CHAT, tools({"name": "a"}, {"name": "a"}), "tools"),
    ("49 tool_choice", CHAT, chat(tools=[TOOL], tool_choice={"function": {"name": "no"}}), "tool_choice"),
    ("49 parameters", CHAT, tools({"name": "a", "parameters": {"type": "thing"}}), "tools[0].function.parameters.type"),
    ("51 http", CHAT, image("http://127.0.0.1:9/x.png"), "messages[0].content[1].image_url"),
    ("51 https", CHAT, image("https://example.com/x.png"), "messages[0].content[1].image_url"),
    ("51 file", CHAT, image("file:///etc/hostname"), "messages[0].content[1].image_url"),
    ("51 gopher", CHAT, image("gopher://127.0.0.1/x"), "messages[0].content[1].image_url"),
    ("51 bad base64", CHAT, image("data:image/png;base64,@@@"), "messages[0].content[1].image_url"),
    ("51 no image", CHAT, image("data:image/png;base64,aGVsbG8="), "messages[0].content[1].image_url"),
    ("51 0 x 0", CHAT, image(png(0, 0)), "messages[0].content[1].image_url"),
    ("51 50k x 50k", CHAT, image(png(50_000, 50_000)), "messages[0].content[1].image_url"),
    ("53 embed []", EMBED, {"model": "tiny", "input": []}, "input"),
    ("53 embed mixed", EMBED, {"model": "tiny", "input": ["a", 1]}, "input[1]"),
    ("53 embed number", EMBED, {"model": "tiny", "input": 1}, "input"),
    ("53 dimensions", EMBED, {"model": "tiny", "input": "a", "dimensions": 10**5}, "dimensions"),
    ("54 chat_template", CHAT, chat(chat_template="{{ ''.__class__ }}"), "chat_template"),
    ("54 template", CHAT, chat(template="{{ range(10**9) }}"), "template"),
    ("54 kwargs", CHAT, chat(chat_template_kwargs={"a": 1}), "chat_template_kwargs"),
    ("unknown field", CHAT, chat(temprature=1), "temprature"),
    ("stream_options alone", CHAT, chat(stream_options={"include_usage": True}), "stream_options"),
    (
        "response id",
        "/v1/responses",
        {"model": "tiny", "input": "x", "previous_response_id": "r"},
        "previous_response_id",
    ),
    ("response input", "/v1/responses", {"model": "tiny", "input": []}, "input"),
    ("response output", "/v1/responses", {"model": "tiny", "input": [{"type": "item_reference"}]}, "input[0].type"),
    ("response tool", "/v1/responses", {"model": "tiny", "input": "x", "tools": [{"type": "mcp"}]}, "tools[0].type"),
    ("tokens both", "/v1/tokenize", {"model": "tiny", "text": "a", "messages": [TURN]}, "text"),
    ("tokens none", "/v1/count", {"model": "tiny"}, "text"),
    ("tokens -1", "/v1/detokenize", {"model": "tiny", "tokens": [-1]}, "tokens[0]"),
    ("rerank none", "/v1/rerank", {"model": "tiny", "query": "a", "documents": []}, "documents"),
    ("rerank kind", "/v1/rerank", {"model": "tiny", "query": "a", "documents": [1]}, "documents[0]"),
]


@pytest.mark.parametrize(("path", "body", "field"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_a_bad_field_is_named(app_client: TestClient, path: str, body: dict[str, Any], field: str) -> None:
    answer = post(app_client, path, body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"] == field
    assert error["type"] == "invalid_request_error"
    assert error["message"].startswith(field) or field in error["message"]
    assert "Traceback" not in answer.text
    if path == CHAT and field != "stream_options":
        assert post(app_client, CHAT, {**body, "stream": True}).status_code == 400


def test_a_near_name_is_offered(app_client: TestClient) -> None:
    assert "did you mean 'temperature'" in post(app_client, CHAT, chat(temprature=1)).json()["error"]["message"]


@pytest.mark.parametrize(
    ("name", "status", "code"),
    [
        ("nothing-here", 404, "model_not_found"),
        ("../../etc/passwd", 400, None),
        ("a/b/c/d/e", 400, None),
        ("C:\\x", 400, None),
        ("x" * 81, 400, None),
        ("a\0b", 400, None),
        ("a\nb", 400, None),
        ("\u202egnp", 400, None),
        ("\U0001f600", 400, None),
    ],
)
def test_names(app_client: TestClient, name: str, status: int, code: str | None) -> None:
    """Rows 14 to 16."""
    for path, body in ((CHAT, chat(model=name)), (TEXT, {"model": name, "prompt": "x"})):
        for stream in (False, True):
            answer = post(app_client, path, {**body, "stream": stream})
            assert (answer.status_code, answer.json()["error"]["code"]) == (status, code), answer.text


@pytest.mark.parametrize(
    "body",
    [
        {"prompt": [10**6]},  # 36: beyond the vocabulary
        {"prompt": "x", "logit_bias": {"1000000": 1}},  # 45
        {"prompt": "x", "grammar": "root ::= root"},  # 46: left recursion
        {"prompt": "x", "grammar": "root ::= unknown"},
        {"prompt": "x", "suffix": "y"},  # the model has no tokens for it
    ],
)
def test_what_only_the_model_can_tell(app_client: TestClient, body: dict[str, Any]) -> None:
    answer = post(app_client, TEXT, {"model": "tiny", "max_tokens": 1, **body})
    assert answer.status_code == 400, answer.text
    assert post(app_client, TEXT, {"model": "tiny", "prompt": "x", "max_tokens": 1}).status_code == 200


def test_one_token_too_many(app_client: TestClient) -> None:
    """Row 34: both numbers are told."""
    body = {"model": "tiny", "prompt": [5] * 300, "max_tokens": 1, "num_ctx": 128}
    answer = post(app_client, TEXT, body)
    error = answer.json()["error"]
    assert (answer.status_code, error["code"]) == (400, "context_length_exceeded")
    assert "300" in error["message"]
    assert "128" in error["message"]


def test_many_inputs(app_client: TestClient) -> None:
    """Row 53."""
    answer = post(app_client, EMBED, {"model": "tiny", "input": ["x"] * 10_000})
    assert answer.status_code == 413


def test_defined_seeds_and_limits(app_client: TestClient) -> None:
    """Rows 39 and 41: -1 is a new seed each time, and a limit beyond the context means the context."""
    body = {"model": "tiny", "prompt": [5] * 100, "max_tokens": 10**12, "num_ctx": 128, "seed": -1}
    answer = post(app_client, TEXT, body)
    assert answer.status_code == 200, answer.text
    assert answer.json()["usage"]["completion_tokens"] <= 28


def test_nothing_is_fetched(app_client: TestClient) -> None:
    """S3: whatever an address looks like, nobody connects to it."""
    with socket.create_server(("127.0.0.1", 0)) as canary:
        place = f"127.0.0.1:{canary.getsockname()[1]}"
        port = place.rpartition(":")[2]
        urls = [
            *(f"http://{place}/x.png", f"https://{place}/x.png", f"HTTP://{place}/x.png", f"//{place}/x.png"),
            *(f"gopher://{place}/x", f"ftp://{place}/x", f"http:\\\\{place}\\x.png", f"http://a@{place}/x.png"),
            *(f"http://2130706433:{port}/", f"http://[::ffff:127.0.0.1]:{port}/", f"http://0x7f.1:{port}/"),
            *(
                f"data:text/html,http://{place}",
                f"data:image/svg+xml;base64,{port}",
                "file:///etc/passwd",
                "/etc/passwd",
            ),
        ]
        for url in urls:
            assert post(app_client, CHAT, image(url)).status_code == 400, url
            block = {"type": "image", "source": {"type": "url", "url": url}}
            body = {"model": "tiny", "max_tokens": 1, "messages": [{"role": "user", "content": [block]}]}
            assert post(app_client, "/v1/messages", body).status_code == 400, url
            item = {"role": "user", "content": [{"type": "input_image", "image_url": url}]}
            assert post(app_client, "/v1/responses", {"model": "tiny", "input": [item]}).status_code == 400, url
        canary.settimeout(0.2)
        with pytest.raises(TimeoutError):
            canary.accept()


def test_images_to_a_model_of_text(app_client: TestClient) -> None:
    """Row 52."""
    answer = post(app_client, CHAT, image(png(2, 2)))
    assert answer.status_code == 400
    assert "image" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"model": "tiny", "messages": [TURN]}, 400),  # max_tokens is required there
        ({"model": "gone", "messages": [TURN], "max_tokens": 1}, 404),
        ({"model": "tiny", "messages": [{"role": "user", "content": [{"type": "video"}]}], "max_tokens": 1}, 400),
    ],
)
def test_anthropic_has_its_own_envelope(app_client: TestClient, body: dict[str, Any], status: int) -> None:
    answer = post(app_client, "/v1/messages", body)
    assert answer.status_code == status
    told = answer.json()
    assert told["type"] == "error"
    assert told["error"]["type"] == ("not_found_error" if status == 404 else "invalid_request_error")


def test_fields_without_effect_are_named(app_client: TestClient) -> None:
    answer = post(app_client, CHAT, chat(user="me", store=True))
    assert answer.status_code == 200, answer.text
    assert len(answer.json()["warnings"]) == 2
    assert "user" in answer.headers["x-sizewise-warning"]
    streamed = post(app_client, CHAT, chat(user="me", stream=True))
    assert '"warnings":["user has no effect here"]' in streamed.text.replace(", ", ",")
