"""Bad input to Ollama's endpoints, each answered with its status and a reason, and the next good request succeeds."""

import base64
import json
import struct
import time
from collections.abc import Iterator
from typing import Any

import pytest
from starlette.testclient import TestClient

Answer = Any  # the test client's own kind of response

GOOD = {"model": "tiny", "prompt": "hello", "stream": False, "options": {"num_predict": 3}}
GREEDY = {"num_predict": 1, "temperature": 0}  # by chance, the tiny model may end at once or write half a character
MESSAGE = {"role": "user", "content": "hello"}


@pytest.fixture
def ask(app_client: TestClient) -> Iterator["Ask"]:
    yield Ask(app_client)
    answer = app_client.post("/api/generate", json=GOOD)  # whatever came before
    assert answer.status_code == 200, answer.text
    assert answer.json()["done"]


class Ask:
    """Requests whose fields are good but for those that a test names."""

    def __init__(self, client: TestClient) -> None:
        self.client = client

    def generate(self, **body: Any) -> Any:
        return self.client.post("/api/generate", json=GOOD | body)

    def options(self, **options: Any) -> Any:
        return self.generate(options={"num_predict": 3} | options)

    def chat(self, *messages: Any, **body: Any) -> Any:
        return self.client.post("/api/chat", json={"model": "tiny", "stream": False, "messages": [*messages]} | body)

    def embed(self, given: Any, **body: Any) -> Any:
        return self.client.post("/api/embed", json={"model": "tiny", "input": given} | body)


def unlike(answer: Any, status: int, *words: str) -> list[str]:
    """What keeps an answer from being a refusal of this status in one line that has these words."""
    body = answer.json()
    said = body.get("error", "")
    wrong = [f"status {answer.status_code}: {said}"] if answer.status_code != status else []
    wrong += [f"fields {list(body)}"] if list(body) != ["error"] else []
    wrong += [f"several lines: {said!r}"] if "\n" in said else []
    return wrong + [f"no {word!r} in {said!r}" for word in words if word not in said]


# Names of models


@pytest.mark.parametrize("path", ["generate", "chat", "embed", "embeddings", "show"])
@pytest.mark.parametrize("name", [None, ""])
def test_no_model(ask: Ask, path: str, name: str | None) -> None:
    assert not unlike(ask.client.post(f"/api/{path}", json={"model": name}), 400, "model", "required")


def test_a_model_that_was_never_pulled(ask: Ask) -> None:
    assert not unlike(ask.generate(model="tinny"), 404, "model 'tinny' not found", "pull", "tiny")


NAMES = (
    *("../../etc/passwd", "a/b/c/d/e", "C:\\x", "a" * 81, "a\0b", "a\nb", "a\u202eb", "a\U0001f600", "/etc/passwd"),
    *("./tiny", "tiny.gguf/", "~/tiny", "hf://a/b", "openai://m@http://127.0.0.1:1/v1", "ollama://127.0.0.1:1/m", ":"),
)


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(ask: Ask, name: str) -> None:
    for path in ("generate", "chat", "embed", "embeddings", "show"):
        assert not unlike(ask.client.post(f"/api/{path}", json={"model": name}), 400, "no model name")
    assert not unlike(ask.client.request("DELETE", "/api/delete", json={"model": name}), 400, "no model name")
    for pair in ({"source": "tiny", "destination": name}, {"source": name, "destination": "x"}):
        assert not unlike(ask.client.post("/api/copy", json=pair), 400, "no model name")


def test_a_file_of_this_machine_is_no_name(ask: Ask) -> None:
    """A path is refused alike, whether or not there is such a file."""
    answers = [ask.generate(model=name).json()["error"] for name in ("/etc/hostname", "/etc/hostnome")]
    assert answers[0].replace("hostname", "") == answers[1].replace("hostnome", "")
    assert not unlike(ask.generate(model="tiny-0.gguf"), 404, "not found")


def test_a_name_in_other_letters_is_the_same_model(ask: Ask) -> None:
    assert ask.generate(model="TINY:Latest").status_code == 200
    assert ask.client.post("/api/copy", json={"source": "Tiny", "destination": "TINY"}).status_code == 200
    names = [one["name"] for one in ask.client.get("/api/tags").json()["models"]]
    assert names.count("tiny:latest") == 1
    assert len({name.lower() for name in names}) == len(names)
    assert len({one["digest"] for one in ask.client.get("/api/ps").json()["models"]} | {""}) == 2


def test_delete_of_a_loaded_model_and_again(ask: Ask) -> None:
    assert ask.client.post("/api/copy", json={"source": "tiny2", "destination": "doomed"}).status_code == 200
    assert ask.generate(model="doomed").status_code == 200
    gone = ask.client.request("DELETE", "/api/delete", json={"name": "doomed"})
    assert (gone.status_code, gone.content) == (200, b"")
    assert "doomed:latest" not in [one["name"] for one in ask.client.get("/api/ps").json()["models"]]
    for _ in range(2):
        assert not unlike(ask.client.request("DELETE", "/api/delete", json={"model": "doomed"}), 404, "not found")
    assert not unlike(ask.generate(model="doomed"), 404, "not found")
    assert ask.generate(model="tiny2").status_code == 200  # the data was shared


# Requests that only load


def test_an_empty_prompt_only_loads(ask: Ask) -> None:
    answer = ask.generate(prompt="").json()
    assert (answer["done"], answer["done_reason"], answer["response"]) == (True, "load", "")
    assert "eval_count" not in answer
    assert "tiny:latest" in [one["name"] for one in ask.client.get("/api/ps").json()["models"]]


def test_no_messages_and_no_time_to_stay_unloads(ask: Ask) -> None:
    assert ask.chat(MESSAGE).status_code == 200
    answer = ask.chat(keep_alive=0).json()
    assert (answer["done"], answer["done_reason"], answer["message"]["content"]) == (True, "unload", "")
    assert "tiny:latest" not in [one["name"] for one in ask.client.get("/api/ps").json()["models"]]


# Messages and prompts


def test_messages_that_are_none(ask: Ask) -> None:
    assert not unlike(ask.chat({"role": "wizard", "content": "x"}), 400, "messages[0].role", "wizard")
    assert not unlike(ask.chat({"role": "user", "content": None}), 400, "messages[0].content")
    assert not unlike(ask.chat(*[MESSAGE] * 10_000), 400, "tokens", "context")
    assert not unlike(ask.chat(*[MESSAGE] * 10_001), 400, "messages")
    assert ask.chat({"role": "user"}).status_code == 200


def test_text_of_control_tokens_is_text(ask: Ask) -> None:
    for text in ("</s>", "</s><s></s>"):
        answer = ask.generate(prompt=text, options=GREEDY).json()
        prompt = answer["context"][: answer["prompt_eval_count"]]
        assert prompt[0] == 1  # the beginning, which the model's own prompts have
        assert not {1, 2}.intersection(prompt[1:])
        same = ask.chat({"role": "user", "content": text}, options={"num_predict": 1}).json()
        assert same["prompt_eval_count"] == answer["prompt_eval_count"]
    raw = ask.generate(raw=True, prompt="</s>", options=GREEDY).json()
    assert 2 in raw["context"]  # who writes raw prompts writes control tokens


def test_a_prompt_at_the_edge_of_the_context(ask: Ask) -> None:
    context = 256
    short = ask.generate(raw=True, prompt="a" * 10).json()["prompt_eval_count"] - 10
    fits = context - 1 - short  # leaves one token for the answer
    answer = ask.generate(raw=True, prompt="a" * fits).json()
    assert (answer["prompt_eval_count"], answer["eval_count"]) == (context - 1, 1)
    for tokens in (fits + 1, fits + 2, 10 * context, 10**6):
        begun = time.monotonic()
        answer = ask.generate(raw=True, prompt="a" * tokens)
        # of a very long text only the least number is told, which is found without tokenizing it
        assert not unlike(answer, 400, str(tokens + short) if tokens < 10**6 else f"at least {tokens}", str(context))
        assert not unlike(ask.chat({"role": "user", "content": "a" * tokens}), 400, "tokens", str(context))
        assert time.monotonic() - begun < 20


@pytest.mark.parametrize("letter", ["\n", "a"])
def test_a_megabyte_of_one_character(ask: Ask, letter: str) -> None:
    """Row 35, for a SentencePiece vocabulary that spells most of them as bytes."""
    text = letter * (2**20 // len(letter.encode()))
    begun = time.monotonic()
    assert not unlike(ask.generate(prompt=text), 400, "at least", "tokens", "256")
    assert not unlike(ask.chat({"role": "user", "content": text}), 400, "at least", "tokens", "256")
    assert ask.client.post("/api/count", json={"model": "tiny", "text": text}).json()["count"] >= len(text)
    assert time.monotonic() - begun < 20  # the promise is two seconds each, on a machine that does nothing else
    cut = ask.generate(prompt=text, truncate=True).json()
    assert any("did not fit" in warning for warning in cut["warnings"])
    assert not unlike(ask.generate(prompt=text * 5), 400, "at least")
    assert not unlike(ask.client.post("/api/count", json={"model": "tiny", "text": "a" * (2**22 + 1)}), 400, str(2**22))


def test_a_prompt_is_cut_only_where_that_is_asked(ask: Ask) -> None:
    answer = ask.generate(raw=True, prompt="a" * 1000, truncate=True, options={"num_predict": 3, "num_keep": 8})
    body = answer.json()
    assert body["prompt_eval_count"] < 256
    assert any("did not fit" in warning for warning in body["warnings"])
    assert "did not fit" in answer.headers["X-Sizewise-Warning"]


@pytest.mark.parametrize("token", [-1, 2**31, 286, 10**9])
def test_tokens_that_the_vocabulary_has_not(ask: Ask, token: int) -> None:
    assert ask.generate(context=[285, 1]).status_code == 200
    assert not unlike(ask.generate(context=[1, token]), 400, str(token))


# Options

WRONG = [
    *[{"temperature": value} for value in (-1, 1e9, "hot")],
    *[{"top_p": value} for value in (0, 1.1)],
    {"top_k": -5},
    *[{"num_predict": value} for value in (0, -3)],
    *[{"seed": value} for value in (2**63, 1.5)],
    *[{"stop": value} for value in (["x"] * 17, [""], ["x" * 2**20])],
    *[{"num_ctx": value} for value in (0, -1, 10**9)],
]


@pytest.mark.parametrize("options", WRONG, ids=lambda one: str(one)[:30])
def test_options_out_of_bounds(ask: Ask, options: dict[str, Any]) -> None:
    assert not unlike(ask.options(**options), 400, f"options.{next(iter(options))}")


@pytest.mark.parametrize("options", [{"top_k": 0}, {"seed": -1}, {"num_predict": 10**12}, {"num_predict": -1}])
def test_options_at_their_edges(ask: Ask, options: dict[str, Any]) -> None:
    answer = ask.generate(options={"stop": ["e", "a", "o"]} | options)
    assert answer.status_code == 200
    assert answer.json()["eval_count"] <= 256


def test_a_warning_stands_in_body_and_header(ask: Ask) -> None:
    answer = ask.options(temprature=0.5, num_gpu=1)
    assert len(answer.json()["warnings"]) == 2
    assert "temprature" in answer.headers["X-Sizewise-Warning"]
    assert "num_gpu" in answer.headers["X-Sizewise-Warning"]
    lines = ask.generate(stream=True, options={"num_predict": 3, "nothing": 1}).text.splitlines()
    assert "warnings" not in json.loads(lines[0])
    assert "options.nothing" in json.loads(lines[-1])["warnings"][0]


def test_a_context_beyond_the_models_own_is_told(ask: Ask) -> None:
    answer = ask.options(num_ctx=1 << 20).json()
    assert "256" in answer["warnings"][0]


def test_how_long_a_model_stays(ask: Ask) -> None:
    assert not unlike(ask.generate(keep_alive="5 parsecs"), 400, "keep_alive")
    assert ask.generate(keep_alive=-1).status_code == 200
    assert ask.generate(keep_alive=0).status_code == 200


def test_log_probabilities_beyond_twenty(ask: Ask) -> None:
    assert not unlike(ask.generate(logprobs=True, top_logprobs=21), 400, "top_logprobs", "0 to 20")
    (one, *_) = ask.generate(logprobs=True, top_logprobs=20, options=GREEDY).json()["logprobs"]
    assert len(one["top_logprobs"]) == 20


def test_unknown_fields(ask: Ask) -> None:
    assert not unlike(ask.generate(promt="x"), 400, "promt", "'prompt'")


# Pictures


def png(width: int, height: int) -> str:
    head = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + b"IHDR" + struct.pack(">II", width, height)
    return base64.b64encode(head + b"\x08\x02\0\0\0").decode()


IMAGES = ("http://127.0.0.1/a.png", "file:///etc/passwd", "not base64!", "QUFBQQ==", png(0, 0), png(50_000, 50_000), 7)


@pytest.mark.parametrize("image", IMAGES, ids=lambda one: str(one)[:24])
def test_pictures_that_are_none(ask: Ask, image: object) -> None:
    assert not unlike(ask.generate(images=[image]), 400, "images[0]")
    assert not unlike(ask.chat(MESSAGE | {"images": [image]}), 400, "messages[0].images[0]")


def test_pictures_for_a_model_of_text(ask: Ask) -> None:
    assert not unlike(ask.generate(images=[png(2, 2)]), 400, "images")
    assert not unlike(ask.chat(MESSAGE | {"images": [png(2, 2)]}), 400, "images")


# Embeddings


def test_inputs_to_embed(ask: Ask) -> None:
    assert ask.embed("").json()["embeddings"] == []
    assert ask.embed([]).json()["embeddings"] == []
    assert len(ask.embed(["a", ""]).json()["embeddings"]) == 2
    assert not unlike(ask.embed(["x"] * 10_000), 413, "10000")
    assert not unlike(ask.embed(["a", 1]), 400, "input[1]")
    assert not unlike(ask.embed(7), 400, "input")
    assert not unlike(ask.embed("a", dimensions=10**6), 400, "dimensions", "64")
    assert not unlike(ask.embed("a " * 1000), 400, "tokens", "256")
    cut = ask.embed("a " * 1000, truncate=True)
    assert len(cut.json()["embeddings"]) == 1
    assert "did not fit" in cut.json()["warnings"][0]


# Templates, thinking, raw


def test_a_template_in_a_request_is_a_program(ask: Ask) -> None:
    for template in ("{{ messages }}", "{% for x in range(10**9) %}{% endfor %}", "{{ .Prompt }}"):
        assert not unlike(ask.generate(template=template), 400, "template")


def test_thinking_of_a_model_that_cannot(ask: Ask) -> None:
    assert not unlike(ask.generate(think=True), 400, "think")
    assert not unlike(ask.chat(MESSAGE, think="high"), 400, "think")
    assert ask.generate(think=False).status_code == 200


def test_filling_a_gap_with_a_model_that_cannot(ask: Ask) -> None:
    assert not unlike(ask.generate(suffix="}"), 400, "insert")


@pytest.mark.parametrize("other", [{"system": "s"}, {"template": "t"}, {"context": [1]}])
def test_a_raw_prompt_goes_with_nothing_else(ask: Ask, other: dict[str, Any]) -> None:
    assert not unlike(ask.generate(raw=True, **other), 400, "raw")
