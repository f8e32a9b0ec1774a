"""The unmodified `ollama` package against a server with SmolLM2."""

import asyncio
import json
import math
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import ollama
import pytest
from served import Served, StartServer, launch

pytestmark = pytest.mark.model
SKY = [{"role": "user", "content": "Why is the sky blue?"}]
SHORT: dict[str, Any] = {"num_predict": 12, "temperature": 0}


@pytest.fixture
def client(server: Served) -> ollama.Client:
    return ollama.Client(server.url)


@pytest.fixture(scope="module")
def empty(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    served = launch(tmp_path_factory.mktemp("empty"))
    yield served
    served.stop()


def test_the_usual_first_program(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OLLAMA_HOST", server.host)
    client = ollama.Client()  # what the module's own functions use, which read the variable when first imported
    answer = client.chat(model="smollm2", messages=SKY, options={"num_predict": 30})["message"]["content"]
    assert len(answer.split()) > 3


def test_an_empty_store(empty: Served) -> None:
    client = ollama.Client(empty.url)
    assert client.list().models == []
    assert client.ps().models == []
    with pytest.raises(ollama.ResponseError) as caught:
        client.show("smollm2")
    assert caught.value.status_code == 404
    assert "smollm2" in caught.value.error


def test_a_store_with_a_model(client: ollama.Client) -> None:
    (listed,) = client.list().models
    assert listed.model == "smollm2:latest"
    assert listed.size is not None
    assert listed.size > 50e6
    assert listed.modified_at is not None
    assert abs((datetime.now(UTC) - listed.modified_at).total_seconds()) < 86400
    assert len(listed["digest"]) == 64
    assert listed.details is not None
    assert (listed.details.family, listed.details.quantization_level) == ("llama", "Q4_1")
    shown = client.show("SmolLM2")
    assert shown.modelinfo is not None
    assert shown.modelinfo["general.architecture"] == "llama"
    assert shown.modelinfo["llama.context_length"] == 8192
    assert shown.capabilities is not None
    assert "completion" in shown.capabilities
    assert "embedding" not in shown.capabilities
    assert shown.template is not None
    assert "<|im_start|>" in shown.template
    assert shown.modelfile is not None
    assert "FROM smollm2" in shown.modelfile


def test_an_answer_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.chat("smollm2", SKY, options=SHORT)
    lines = list(client.chat("smollm2", SKY, options=SHORT, stream=True))
    assert "".join(line.message.content or "" for line in lines) == whole.message.content
    assert all(line.message.role == "assistant" and line.message.content is not None for line in lines)
    *parts, last = lines
    assert not any(part.done or part.eval_count or part.prompt_eval_count for part in parts)
    assert (last.done, last.done_reason, last.eval_count) == (True, "length", 12)
    assert last.prompt_eval_count == whole.prompt_eval_count
    assert last.prompt_eval_count is not None
    assert last.prompt_eval_count > 20
    assert isinstance(last.total_duration, int)
    assert last.eval_duration is not None
    assert 0 < last.eval_duration < last.total_duration
    moments = [datetime.fromisoformat(line.created_at) for line in lines if line.created_at]
    assert moments == sorted(moments)
    assert len(moments) == len(lines)


def test_an_answer_by_the_asynchronous_client(server: Served) -> None:
    async def ask() -> tuple[str, str]:
        client = ollama.AsyncClient(server.url)
        whole = await client.chat("smollm2", SKY, options=SHORT)
        parts = [part async for part in await client.chat("smollm2", SKY, options=SHORT, stream=True)]
        assert sum(part.done or False for part in parts) == 1
        return whole.message.content or "", "".join(part.message.content or "" for part in parts)

    whole, streamed = asyncio.run(ask())
    assert whole == streamed != ""


def test_a_prompt_whole_and_streamed(client: ollama.Client) -> None:
    whole = client.generate("smollm2", "Why is the sky blue?", options=SHORT)
    parts = list(client.generate("smollm2", "Why is the sky blue?", options=SHORT, stream=True))
    assert "".join(part.response or "" for part in parts) == whole.response != ""
    assert whole.context is not None
    assert len(whole.context) >= (whole.prompt_eval_count or 0) + 11
    # a prompt is a conversation of one message
    assert whole.response == client.chat("smollm2", SKY, options=SHORT).message.content


def test_a_raw_prompt_is_continued_as_it_is(client: ollama.Client) -> None:
    raw = client.generate("smollm2", "The capital of France is", raw=True, options=SHORT)
    assert "Paris" in (raw.response or "")
    assert (raw.prompt_eval_count or 0) < 8


def test_a_system_prompt_in_the_request(client: ollama.Client) -> None:
    plain = client.generate("smollm2", "Hello", options=SHORT)
    brief = client.generate("smollm2", "Hello", system="You only ever say yes.", options=SHORT)
    assert brief.prompt_eval_count != plain.prompt_eval_count
    same = client.chat(
        "smollm2",
        [{"role": "system", "content": "You only ever say yes."}, {"role": "user", "content": "Hello"}],
        options=SHORT,
    )
    assert same.message.content == brief.response


def test_a_conversation_goes_on_from_its_tokens(client: ollama.Client) -> None:
    first = client.generate("smollm2", "My name is Ada.", options=SHORT)
    second = client.generate("smollm2", "What is my name?", context=first.context, options=SHORT)
    assert first.context
    assert second.context is not None
    assert second.context[: len(first.context)] == first.context
    assert (second.prompt_eval_count or 0) > len(first.context)


def test_stop_sequences_and_seeds(client: ollama.Client) -> None:
    counted = client.generate(
        "smollm2", "1, 2, 3, 4,", raw=True, options={"temperature": 0, "num_predict": 40, "stop": ["8"]}
    )
    assert counted.done_reason == "stop"
    assert "7" in (counted.response or "")
    assert "8" not in (counted.response or "")
    warm: dict[str, Any] = {"num_predict": 24, "temperature": 1.5}
    answers = [client.chat("smollm2", SKY, options=warm | {"seed": seed}).message.content for seed in (1, 1, 2)]
    assert answers[0] == answers[1] != answers[2]


def test_structured_output(client: ollama.Client) -> None:
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer", "maximum": 120}},
        "required": ["name", "age"],
    }
    messages = [{"role": "user", "content": "Ada is 36 years old. Say it in JSON."}]
    answer = client.chat("smollm2", messages, format=schema, options={"temperature": 0, "num_predict": 100})
    found = json.loads(answer.message.content or "")
    assert set(found) == {"name", "age"}
    assert isinstance(found["age"], int)
    answer = client.chat("smollm2", messages, format="json", options={"temperature": 0, "num_predict": 200})
    assert answer.done_reason == "length" or json.loads(answer.message.content or "") is not None


def test_log_probabilities(client: ollama.Client) -> None:
    answer = client.chat("smollm2", SKY, options=SHORT, logprobs=True, top_logprobs=3)
    assert answer.logprobs is not None
    assert len(answer.logprobs) == 12
    for one in answer.logprobs:
        assert one.top_logprobs is not None
        assert len(one.top_logprobs) == 3
        assert one.logprob == max(other.logprob for other in one.top_logprobs) <= 0  # greedy
    assert "".join(one.token for one in answer.logprobs) == answer.message.content
    parts = list(client.generate("smollm2", "Hi", options=SHORT, logprobs=True, stream=True))
    tokens = [one.token for part in parts for one in part.logprobs or ()]
    assert "".join(tokens) == "".join(part.response or "" for part in parts) != ""
    assert client.chat("smollm2", SKY, options=SHORT).logprobs is None


def test_embeddings_new_and_old(client: ollama.Client) -> None:
    three = client.embed("smollm2", ["a cat", "a kitten", "tax law"]).embeddings
    assert [round(math.hypot(*vector), 4) for vector in three] == [1.0] * 3
    near, far = (sum(a * b for a, b in zip(three[0], other, strict=True)) for other in three[1:])
    assert near > far
    (one,) = client.embed("smollm2", "a cat").embeddings
    assert one == pytest.approx(three[0], abs=1e-3)
    assert client.embeddings("smollm2", "a cat").embedding == pytest.approx(three[0], abs=1e-3)
    (short,) = client.embed("smollm2", "a cat", dimensions=64).embeddings
    assert len(short) == 64
    assert math.hypot(*short) == pytest.approx(1, abs=1e-4)
    assert client.embed("smollm2", []).embeddings == []
    assert client.embed("smollm2", "").embeddings == []


def test_a_missing_model_is_404_in_every_way_of_asking(server: Served) -> None:
    client = ollama.Client(server.url)
    asks: list[Callable[[], object]] = [
        lambda: client.chat("nobody", SKY),
        lambda: list(client.chat("nobody", SKY, stream=True)),
        lambda: client.generate("nobody", "x"),
        lambda: list(client.generate("nobody", "x", stream=True)),
        lambda: client.embed("nobody", "x"),
        lambda: client.embeddings("nobody", "x"),
        lambda: client.show("nobody"),
        lambda: client.delete("nobody"),
        lambda: client.copy("nobody", "somebody"),
        lambda: client.chat("nobody", []),
    ]
    for ask in asks:
        with pytest.raises(ollama.ResponseError) as caught:
            ask()
        assert caught.value.status_code == 404
        assert caught.value.error.startswith("model 'nobody' not found")

    async def stream() -> None:
        async for _ in await ollama.AsyncClient(server.url).chat("nobody", SKY, stream=True):
            pass

    with pytest.raises(ollama.ResponseError) as caught:
        asyncio.run(stream())
    assert caught.value.status_code == 404


def test_copies_and_deletions(client: ollama.Client) -> None:
    assert client.copy("smollm2", "other/copy:v1").status == "success"
    assert {model.model for model in client.list().models} == {"smollm2:latest", "other/copy:v1"}
    client.generate("other/copy:v1", "", keep_alive=60)
    assert client.delete("Other/Copy:V1").status == "success"  # loaded just now, and named in other letters
    assert [model.model for model in client.list().models] == ["smollm2:latest"]
    with pytest.raises(ollama.ResponseError) as caught:
        client.delete("other/copy:v1")
    assert caught.value.status_code == 404
    assert client.chat("smollm2", SKY, options=SHORT).done


def test_how_long_a_model_stays(smollm2_home: Path, start_server: StartServer) -> None:
    client = ollama.Client(start_server(smollm2_home).url)
    client.generate("smollm2", "")
    (loaded,) = client.ps().models
    assert (loaded.model, loaded.context_length) == ("smollm2:latest", 8192)
    assert loaded.size is not None
    assert loaded.size > 50e6
    assert 280 < _seconds_left(loaded) <= 300
    client.chat("smollm2", SKY, options=SHORT, keep_alive="90s")
    assert 80 < _seconds_left(client.ps().models[0]) <= 90
    client.chat("smollm2", SKY, options=SHORT, keep_alive=-1)
    assert _seconds_left(client.ps().models[0]) > 1e9
    emptied = client.chat("smollm2", [], keep_alive=0)
    assert (emptied.done, emptied.done_reason, emptied.message.content) == (True, "unload", "")
    assert client.ps().models == []
    loaded_again = client.generate("smollm2", "")
    assert (loaded_again.done_reason, loaded_again.response) == ("load", "")
    client.generate("smollm2", "Hi", options=SHORT, keep_alive=0)
    for _ in range(100):
        if not client.ps().models:
            break
        asyncio.run(asyncio.sleep(0.1))
    assert client.ps().models == []


def _seconds_left(loaded: ollama.ProcessResponse.Model) -> float:
    assert loaded.expires_at is not None
    return (loaded.expires_at - datetime.now(UTC)).total_seconds()


def test_a_context_of_ones_own(smollm2_home: Path, start_server: StartServer) -> None:
    client = ollama.Client(start_server(smollm2_home).url)
    client.chat("smollm2", SKY, options=SHORT | {"num_ctx": 256})
    assert client.ps().models[0].context_length == 256
    answer = client.generate("smollm2", "word " * 400, options=SHORT)  # nobody asked for a context: it grows
    assert (answer.prompt_eval_count or 0) > 400
    with pytest.raises(ollama.ResponseError, match=r"\b4\d\d tokens.*\b256\b") as caught:
        client.generate("smollm2", "word " * 400, options=SHORT | {"num_ctx": 256})
    assert caught.value.status_code == 400
    assert client.chat("smollm2", SKY, options=SHORT).done
