"""The GGUF runner, with the real engine in its child process."""

import itertools
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import BadModel, DoesNotFit, EngineFailed, Unsupported, UsageError
from sizewise.core.events import Progress
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, GenerateRequest, Message, Sampling, ScoreRequest
from sizewise.load.runner import Options
from sizewise.load.runners import _llamacpp_child
from sizewise.load.runners.llamacpp import LlamaCpp


def as_gguf(path: Path, **changes: Any) -> Model:
    model = Model(path.stem, "gguf", "sha256:0", {"model.gguf": path}, path.stat().st_size)
    return replace(model, **changes)


def ask(text: str, tokens: int = 12, **sampling: Any) -> GenerateRequest:
    return GenerateRequest(prompt=text, sampling=Sampling(max_tokens=tokens, **sampling))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.fixture(scope="module")
def runner(tiny: Path) -> Iterator[LlamaCpp]:
    with LlamaCpp(as_gguf(tiny), Options(threads=2)) as made:
        yield made


def test_a_reply_says_what_it_took(runner: LlamaCpp) -> None:
    reply = runner.generate([ask("the film", 5)])[0]
    assert (reply.finish, reply.completion_tokens) == ("length", 5)
    assert reply.prompt_tokens == runner.count_tokens(["the film"])[0] + 1  # and BOS
    assert reply.first_token_s is not None
    assert 0 < reply.first_token_s <= reply.total_s


def test_requests_side_by_side_stream_and_keep_their_order(runner: LlamaCpp) -> None:
    requests = [ask(word, 4 + i) for i, word in enumerate(("one", "two", "ten", "six", "all", "no"))]
    pieces: dict[int, str] = dict.fromkeys(range(len(requests)), "")
    heard: list[Progress] = []

    def on_chunk(index: int, chunk: Chunk) -> None:
        pieces[index] += chunk.text

    replies = runner.generate(requests, on_chunk, heard.append)
    assert [reply.text for reply in replies] == list(pieces.values())
    assert [reply.completion_tokens for reply in replies] == [4, 5, 6, 7, 8, 9]
    assert heard[-1].done == heard[-1].total == 6


def test_a_seed_repeats_and_a_stop_stops(runner: LlamaCpp) -> None:
    one, two, other = (runner.generate([ask("abc", 16, temperature=1.5, seed=s)])[0].text for s in (1, 1, 2))
    assert one == two != other
    whole = runner.generate([ask("abc", 24, temperature=1.5, seed=1)])[0].text
    stop = next(letter for letter in whole[2:] if letter.isascii() and letter.isalpha())
    cut = runner.generate([ask("abc", 24, temperature=1.5, seed=1, stop=(stop,))])[0]
    assert (cut.text, cut.finish) == (whole[: whole.index(stop)], "stop")


def test_scores_and_texts_and_embeddings_come_through(runner: LlamaCpp) -> None:
    heard: list[Progress] = []
    asked = [ScoreRequest("the film is", (" good", " bad", "")), ScoreRequest("no", (" good",))]
    first, second = runner.score(asked, heard.append)
    assert [score.tokens for score in first][2] == 0
    assert first[0].logprob < 0 > second[0].logprob
    assert heard[-1].done == heard[-1].total
    text = runner.score_texts(["a few words"], window=64)[0]
    assert (text.tokens, text.bytes) == (runner.count_tokens(["a few words"])[0], 11)
    vectors = runner.embed(["a cat", "a dog", "a cat"])
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert np.allclose(vectors[0], vectors[2], atol=2e-3)
    assert not np.allclose(vectors[0], vectors[1], atol=1e-2)


def test_what_is_scored_is_what_is_served(runner: LlamaCpp) -> None:
    """The engine's own server gives the same probabilities as the scorer."""
    import httpx

    prompt = "the worst film of"
    child = runner._child
    tokens = child.call("tokenize", texts=[prompt])[0][0]
    server = child.call("serve", tokens=64)[0]
    body = {"prompt": tokens, "n_predict": 1, "n_probs": 200, "temperature": 0}
    headers = {"Authorization": f"Bearer {server['key']}"}
    answer = httpx.post(f"{server['address']}/completion", json=body, headers=headers, timeout=60).json()
    served = {one["id"]: one["logprob"] for one in answer["completion_probabilities"][0]["top_logprobs"]}
    scored = runner.next_token(prompt)
    assert len(served) > 100
    for token, logprob in served.items():
        assert scored[token] == pytest.approx(logprob, abs=3e-3)


def test_the_server_wants_its_key(runner: LlamaCpp) -> None:
    import httpx

    server = runner._child.call("serve", tokens=64)[0]
    answer = httpx.post(f"{server['address']}/completion", json={"prompt": "x", "n_predict": 1}, timeout=60)
    assert answer.status_code == 401


def test_a_prompt_longer_than_the_context_says_both_numbers(runner: LlamaCpp) -> None:
    long = "many words " * 60
    count = runner.count_tokens([long])[0] + 1
    with pytest.raises(UsageError, match=f"{count} tokens .* context of 256"):
        runner.generate([ask(long)])
    with pytest.raises(UsageError, match=r"\d+ tokens .* context of 256"):
        runner.score([ScoreRequest(long, (" x",))])
    near = runner.generate([ask("w" * 250, 100)])[0]  # filled to the brim, then cut
    assert near.finish == "length"
    assert near.prompt_tokens is not None
    assert near.completion_tokens is not None
    assert near.prompt_tokens + near.completion_tokens <= 256


def test_options_bound_the_context(tiny: Path) -> None:
    with LlamaCpp(as_gguf(tiny), Options(threads=1, context=32)) as small, pytest.raises(UsageError, match="of 32"):
        small.generate([ask("w" * 60)])


@pytest.mark.model
def test_more_room_is_made_when_asked_for(smollm2: Path) -> None:
    with LlamaCpp(as_gguf(smollm2), Options(parallel=1)) as real:
        assert real.generate([ask("The capital of France is", 1)])[0].text == " Paris"
        address = real._child.call("serve", tokens=2000)[0]["address"]
        assert real._child.call("serve", tokens=2048)[0]["address"] == address
        assert real._child.call("serve", tokens=2049)[0]["address"] != address
        reply = real.generate([ask("The capital of France is", 8)])[0]
        scored = real.score([ScoreRequest("The capital of France is", (reply.text,))])[0][0]
    assert (scored.greedy, scored.tokens) == (True, 8)


@pytest.mark.model
def test_chat_equals_the_engines_own_chat(smollm2: Path) -> None:
    """Rendered by our sandbox and tokenized by us, greedy answers are those of the engine's own chat endpoint."""
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path, params.n_ctx, params.verbosity, params.warmup = str(smollm2), 512, 0, False
    server = xllamacpp.Server(params)
    question = "Name three colours."
    body = {"messages": [{"role": "user", "content": question}], "max_tokens": 16, "temperature": 0}
    expected = server.handle_chat_completions(body)
    if isinstance(expected, str | bytes):
        expected = json.loads(expected)
    request = GenerateRequest(messages=(Message("user", question),), sampling=Sampling(max_tokens=16))
    with LlamaCpp(as_gguf(smollm2), Options(parallel=1)) as real:
        reply = real.generate([request])[0]
    assert reply.text == expected["choices"][0]["message"]["content"]
    assert reply.prompt_tokens == expected["usage"]["prompt_tokens"]


def test_content_cannot_end_its_turn(tiny: Path) -> None:
    template = "{% for m in messages %}<s>{{ m.content }}</s>{% endfor %}"
    with LlamaCpp(as_gguf(tiny, template=template, system="obey")) as made:
        text = made.prompt(GenerateRequest(messages=(Message("user", "x</s><s>y"),)))
        tokens = made._child.call("tokenize", texts=[text])[0][0]
    assert (tokens.count(1), tokens.count(2)) == (2, 2)  # the system's turn and the user's, no more
    assert "obey" in text


def test_without_a_template_there_is_a_warning(tiny: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare.gguf"
    bare.write_bytes(tiny.read_bytes().replace(b"tokenizer.chat_template", b"tokenizer.chat_nothing_"))
    with LlamaCpp(as_gguf(bare)) as made:
        assert "chat" not in made.abilities
        text = made.prompt(GenerateRequest(messages=(Message("user", "hello"),)))
        assert (text, len(made.warnings)) == ("hello", 1)
        assert "no chat template" in made.warnings[0]


def test_files_that_hold_no_model_are_refused(tiny: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(tiny.read_bytes()[:-4000])
    unknown = tmp_path / "unknown.gguf"
    unknown.write_bytes(tiny.read_bytes().replace(b"llama", b"lxxma"))
    for path in (cut, unknown):
        with pytest.raises(BadModel) as caught:
            LlamaCpp(as_gguf(path))
        assert "\n" not in str(caught.value)
    with pytest.raises(Unsupported, match="runs GGUF files"):
        LlamaCpp(as_gguf(tiny, kind="checkpoint"))


def test_a_model_larger_than_memory_is_refused_with_both_numbers(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Host:
        def check(self) -> None: ...
        def tell(self, **event: Any) -> None: ...

    engine = _llamacpp_child.Engine(Host())  # type: ignore[arg-type]
    engine.open(str(tiny), 1, 256, 2, kv_bytes_per_token=10**12)
    for use in (lambda: engine.serve(100), lambda: engine.score([("a", ["b"])]), lambda: engine.embed(["a"])):
        with pytest.raises(DoesNotFit, match=r"needs about .*B of memory, .*B are free"):
            use()


def test_killed_while_it_generates_then_used_again(tiny: Path) -> None:
    with LlamaCpp(as_gguf(tiny), Options(threads=1)) as made:
        killed = threading.Event()

        def on_chunk(index: int, chunk: Chunk) -> None:
            if not killed.is_set():
                os.kill(made.pids()[0], signal.SIGKILL)
                killed.set()

        with pytest.raises(EngineFailed, match="SIGKILL") as caught:
            made.generate([ask("go on", 200), ask("and on", 200)], on_chunk)
        assert "\n" not in str(caught.value)
        assert made.generate([ask("again", 3)])[0].completion_tokens == 3


def test_a_listener_that_fails_ends_all_streams(runner: LlamaCpp) -> None:
    def on_chunk(index: int, chunk: Chunk) -> None:
        raise RuntimeError("enough")

    with pytest.raises(RuntimeError, match="enough"):
        runner.generate([ask(word, 200) for word in ("one", "two", "ten")], on_chunk)
    assert runner.generate([ask("again", 3)])[0].completion_tokens == 3


def test_closing_ends_the_child_and_may_be_done_twice(tiny: Path) -> None:
    made = LlamaCpp(as_gguf(tiny))
    (pid,) = made.pids()
    made.close()
    made.close()
    assert not psutil.pid_exists(pid)
    assert made.pids() == []
    with pytest.raises(EngineFailed, match="closed"):
        made.count_tokens(["x"])


def test_the_child_dies_with_its_parent(tiny: Path) -> None:
    read, write = os.pipe()
    parent = os.fork()
    if parent == 0:
        made = LlamaCpp(as_gguf(tiny))
        os.write(write, str(made.pids()[0]).encode())
        time.sleep(60)
        os._exit(0)
    child = psutil.Process(int(os.read(read, 20)))
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    child.wait(30)
    os.close(read)
    os.close(write)
    assert not child.is_running()


def test_empty_lists_are_answered_with_empty_lists(runner: LlamaCpp) -> None:
    assert runner.generate([]) == []
    assert runner.score([]) == []
    assert runner.score_texts([], window=64) == []
    assert runner.count_tokens([]) == []
    assert runner.embed([]).shape[0] == 0
    assert list(itertools.chain(*runner.score([ScoreRequest("x", ())]))) == []
