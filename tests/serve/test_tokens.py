"""Tokenize, detokenize and count: what a model really reads, for every kind of model that has tokens."""

from collections.abc import Iterator
from typing import Any

import pytest
from sessions import run
from starlette.testclient import TestClient
from tiny_checkpoint import as_model, write_causal

from sizewise.core.errors import UsageError
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.serve.generic import GenericSession
from sizewise.serve.job import Job, Turn


def post(client: TestClient, path: str, **body: Any) -> Any:
    answer = client.post(path, json={"model": "tiny", **body})
    assert answer.status_code == 200, answer.text
    return answer.json()


@pytest.mark.parametrize("text", ["hello", "</s>", "a</s><s>b", "<unk></s>"])
def test_messages_are_counted_as_they_are_read(app_client: TestClient, text: str) -> None:
    """Control tokens that users spell out are text: in the count, in the tokens, and in the prompt."""
    turns = [{"role": "user", "content": text}]
    asked = post(app_client, "/v1/chat/completions", messages=turns, max_tokens=1)
    found = post(app_client, "/v1/tokenize", messages=turns)
    assert found["count"] == len(found["tokens"]) == asked["usage"]["prompt_tokens"]
    assert post(app_client, "/api/count", messages=turns)["count"] == found["count"]
    assert found["tokens"][0] == 1
    assert not {0, 1, 2}.intersection(found["tokens"][1:])
    counted = post(app_client, "/v1/messages/count_tokens", messages=turns)
    assert counted["input_tokens"] == found["count"]


def test_a_text_is_text_unless_it_is_said(app_client: TestClient) -> None:
    assert 2 not in post(app_client, "/v1/tokenize", text="</s>")["tokens"]
    assert post(app_client, "/v1/tokenize", text="</s>", special=True, bos=True)["tokens"] == [1, 2]
    text = post(app_client, "/v1/detokenize", tokens=post(app_client, "/v1/tokenize", text="ab é")["tokens"])["text"]
    assert text.strip() == "ab é"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GenericSession]:
    folder = write_causal(tmp_path_factory.mktemp("checkpoint") / "llama", "llama")
    made = GenericSession(open_runner(as_model(folder), options=Options(threads=1)), context=64, parallel=1)
    yield made
    run(made.close())


def test_a_checkpoint_shows_its_tokens(checkpoint: GenericSession) -> None:
    tokens = run(checkpoint.tokenize("the cat é"))
    assert run(checkpoint.detokenize(tokens)) == "the cat é"
    assert run(checkpoint.tokenize("the cat é", bos=True)) == [1, *tokens]
    assert run(checkpoint.tokenize("</s>", special=True)) == [2]
    plain = run(checkpoint.tokenize("</s>"))
    assert len(plain) > 1
    assert run(checkpoint.detokenize(plain)) == "</s>"
    for wrong in (-1, 10**6):
        with pytest.raises(UsageError, match="no token"):
            run(checkpoint.detokenize([wrong]))


def test_turns_of_a_checkpoint_hold_no_control_tokens(checkpoint: GenericSession) -> None:
    """The template begins each turn with the token 1; a user who writes it writes text."""
    prompt = run(checkpoint.render(Job(turns=(Turn("user", "a<s></s>"),))))
    tokens = run(checkpoint.tokenize(prompt, special=True, bos=True))
    assert (tokens.count(1), tokens.count(2)) == (1, 0)
