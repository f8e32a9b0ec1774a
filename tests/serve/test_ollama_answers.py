"""Ollama's answers as values: no server, no model."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from sizewise.core.model import Model
from sizewise.core.references import parse_name
from sizewise.core.requests import Message
from sizewise.load.store.manifest import Manifest
from sizewise.serve.job import Done, Piece, TokenLogprob, ToolCall
from sizewise.serve.wire.ollama_answer import Answer
from sizewise.serve.wire.ollama_models import FOR_EVER, listed, ps_entry, show_body, tags_entry


def model(**more: Any) -> Model:
    return Model(name="m", kind="linear", digest="sha256:" + "a" * 64, files={}, size_bytes=7, **more)


DONE = Done("stop", 3, 2, prompt_s=0.25, decode_s=0.5, tokens=(1, 2, 3, 4, 5))


@pytest.mark.parametrize("kind", ["generate", "chat"])
def test_counts_stand_in_the_last_line_only(kind: Any) -> None:
    answer = Answer(kind, "m")
    first, last = answer.line(Piece("a")), answer.last(DONE, total_s=1.0, load_s=0.125)
    assert "eval_count" not in first
    assert "prompt_eval_count" not in first
    assert not first["done"]
    assert last["done"]
    figures = {key: last[key] for key in last if key.endswith(("_count", "_duration"))}
    assert figures == {
        "total_duration": 10**9,
        "load_duration": 125 * 10**6,
        "prompt_eval_count": 3,
        "prompt_eval_duration": 250 * 10**6,
        "eval_count": 2,
        "eval_duration": 500 * 10**6,
    }
    assert all(isinstance(value, int) for value in figures.values())
    assert datetime.fromisoformat(first["created_at"]).tzinfo
    text = [line["message"]["content"] if kind == "chat" else line["response"] for line in (first, last)]
    assert text == ["a", ""]
    assert last.get("context") == ([1, 2, 3, 4, 5] if kind == "generate" else None)


@pytest.mark.parametrize(("finish", "reason"), [("stop", "stop"), ("length", "length"), ("tool_calls", "stop")])
def test_why_an_answer_ended(finish: Any, reason: str) -> None:
    assert Answer("chat", "m").last(Done(finish, 1, 1), total_s=0, load_s=0)["done_reason"] == reason


def test_a_whole_answer_is_the_sum_of_its_pieces() -> None:
    one = TokenLogprob("a", (97,), -0.5, 1, (TokenLogprob("b", (98,), float("-inf"), 2),))
    pieces = [
        Piece("a", logprobs=(one,)),
        Piece(thinking="t"),
        Piece("b", tool_calls=(ToolCall("f", {}), ToolCall("g", {"x": 1}))),
    ]
    whole = Answer("chat", "m", ["w"]).whole(pieces, DONE, total_s=1, load_s=0)
    assert whole["message"]["content"] == "ab"
    assert whole["message"]["thinking"] == "t"
    calls = whole["message"]["tool_calls"]
    assert [one["function"] for one in calls] == [
        {"index": 0, "name": "f", "arguments": {}},
        {"index": 1, "name": "g", "arguments": {"x": 1}},
    ]
    assert whole["done"]
    assert whole["warnings"] == ["w"]
    assert whole["logprobs"][0]["logprob"] == -0.5
    assert json.dumps(whole, allow_nan=False)


def test_a_cut_prompt_is_told() -> None:
    last = Answer("chat", "m").last(Done("stop", 1, 1, cut_tokens=7), total_s=0, load_s=0)
    assert "7 tokens" in last["warnings"][0]


# Models

MANIFEST = Manifest(parse_name("M"), "sha256:" + "b" * 64, {}, (), 0.0)


def test_a_listed_model_has_what_clients_read() -> None:
    entry = tags_entry(MANIFEST, model(parameters=1_200_000_000, architecture="llama"), ["completion", "embedding"])
    assert (entry["name"], entry["model"], entry["digest"]) == ("m:latest", "m:latest", "b" * 64)
    assert entry["modified_at"] == "1970-01-01T00:00:00Z"
    assert entry["details"]["parameter_size"] == "1.2B"
    assert entry["details"]["families"] == ["llama"]
    assert entry["capabilities"] == ["completion"]


def test_embedding_is_listed_only_of_models_for_embeddings() -> None:
    assert listed(["embedding"]) == ["embedding"]
    assert listed(["completion", "embedding", "score", "tools"]) == ["completion", "tools"]


def test_a_model_that_stays_for_ever() -> None:
    entry = ps_entry("m:latest", model(), "sha256:b", memory=5, expires_at=None, context=9)
    assert (entry["expires_at"], entry["size"], entry["context_length"], entry["digest"]) == (FOR_EVER, 5, 9, "b")
    moment = datetime(2030, 1, 2, tzinfo=UTC)
    entry = ps_entry("m:latest", model(), "sha256:b", memory=5, expires_at=moment, context=9)
    assert entry["expires_at"] == "2030-01-02T00:00:00Z"


def test_what_is_shown_of_a_model(tmp_path: Path) -> None:
    told = {"stop": ["a", "b"], "temperature": 0.5}
    shown = show_body(
        MANIFEST,
        model(defaults=told, system="Be brief.", messages=(Message("user", "hi"),), context_length=9, architecture="x"),
        ["completion"],
        verbose=False,
    )
    assert shown["parameters"].splitlines() == [
        f'{"stop":<30} "a"',
        f'{"stop":<30} "b"',
        f"{'temperature':<30} 0.5",
    ]
    assert shown["model_info"] == {"general.architecture": "x", "x.context_length": 9}
    assert "FROM m:latest" in shown["modelfile"]
    assert "PARAMETER temperature 0.5" in shown["modelfile"]
    assert shown["messages"] == [{"role": "user", "content": "hi"}]
    assert shown["system"] == "Be brief."
