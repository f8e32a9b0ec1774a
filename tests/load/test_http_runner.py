"""Endpoints, asked over real sockets: a native OpenAI-compatible server, and one that fails in every way we know."""

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from protocol_server import KEY, ProtocolServer, plain, serve
from starlette.responses import JSONResponse
from tiny_checkpoint import write_causal, write_encoder
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import EngineFailed, UnknownName, Unreachable, Unsupported, UsageError
from sizewise.core.model import Model
from sizewise.core.requests import GenerateRequest, Message, Sampling, ScoreRequest
from sizewise.load import endpoint
from sizewise.load.endpoint import Endpoint, _backoff
from sizewise.load.models import find_model
from sizewise.load.runner import Options
from sizewise.load.runners.http import Http
from sizewise.load.wire import read_echo

CHAT = GenerateRequest(messages=(Message("user", "a fox"),), sampling=Sampling(max_tokens=8))
RAW = GenerateRequest(prompt="the quick", sampling=Sampling(max_tokens=8))
KINDS = ("openai", "ollama")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProtocolServer]:
    root = tmp_path_factory.mktemp("endpoint")
    made = ProtocolServer(write_causal(root / "llama", "llama"), write_encoder(root / "bert"))
    with serve(made) as address:
        made.address = address
        yield made


@pytest.fixture(autouse=True)
def calm(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """No faults are left from another test, and pauses are recorded instead of slept."""
    pauses: list[float] = []
    monkeypatch.setattr(Endpoint, "_wait", lambda self, seconds: pauses.append(seconds))
    server.faults.clear()
    server.asked.clear()
    server.headers.clear()
    server.needs_key = False
    yield pauses
    server.faults.clear()


def reference(server: ProtocolServer, kind: str, model: str = "tiny") -> str:
    host = server.address.removeprefix("http://")
    return f"ollama://{host}/{model}" if kind == "ollama" else f"openai://{model}@{server.address}/v1"


def connect(server: ProtocolServer, kind: str, model: str = "tiny", patience_s: float = 60, **options: Any) -> Http:
    return Http(find_model(reference(server, kind, model)), Options(**options), patience_s)


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_the_model_s_own_and_streamed(server: ProtocolServer, kind: str) -> None:
    heard: dict[int, str] = {}
    seen: list[float] = []
    with connect(server, kind) as runner:
        replies = runner.generate(
            [CHAT, RAW] * 3,
            lambda at, chunk: heard.update({at: heard.get(at, "") + chunk.text}),
            lambda p: seen.append(p.done),
        )
        assert runner.pids() == []
    chat = {"messages": [{"role": "user", "content": "a fox"}]}
    for request, body in ((0, chat), (1, {"prompt": "the quick"})):
        _, right = server.generate(body, {"max_tokens": 8})
        for at in (request, request + 2, request + 4):
            reply = replies[at]
            assert reply.text == heard[at] == right["text"]
            assert reply.finish == right["finish"]
            assert (reply.prompt_tokens, reply.completion_tokens) == (
                right["prompt_tokens"],
                right["completion_tokens"],
            )
            assert reply.first_token_s is not None
            assert 0 < reply.first_token_s <= reply.total_s
    assert seen[-1] == 6
    assert replies[0].text != replies[1].text


def test_ollama_gets_every_parameter_since_its_defaults_differ(server: ProtocolServer) -> None:
    drawn = Sampling(
        max_tokens=3, temperature=0.5, top_p=0.9, top_k=7, min_p=0.1, repeat_penalty=1.1, seed=5, stop=("x",)
    )
    with connect(server, "ollama", context=256) as runner:
        runner.generate([GenerateRequest(prompt="a", sampling=drawn)])
    path, body = server.asked[-1]
    assert path == "/api/generate"
    wanted = {"num_predict": 3, "temperature": 0.5, "top_p": 0.9, "top_k": 7, "min_p": 0.1}
    assert body["options"] == {**wanted, "repeat_penalty": 1.1, "seed": 5, "stop": ["x"], "num_ctx": 256}
    assert body["raw"] is True
    assert body["truncate"] is False


def test_openai_gets_what_is_set_under_its_own_names(server: ProtocolServer) -> None:
    with connect(server, "openai") as runner:
        runner.generate([CHAT])
        plainly = server.asked[-1][1]
        runner.generate(
            [GenerateRequest(prompt="a", sampling=Sampling(max_tokens=2, temperature=0.5, top_k=7, stop=("x",)))]
        )
    assert plainly["max_tokens"] == 8
    assert plainly["temperature"] == 0.0
    assert not plainly.keys() & {"top_k", "min_p", "repeat_penalty", "stop"}
    assert server.asked[-1][0] == "/v1/completions"
    assert (server.asked[-1][1]["top_k"], server.asked[-1][1]["stop"]) == (7, ["x"])


def test_learns_that_a_model_wants_max_completion_tokens(server: ProtocolServer) -> None:
    with connect(server, "openai", "tiny-reasoning", parallel=1) as runner:
        first, second = runner.generate([CHAT, CHAT])
    assert first.text == second.text
    limits = [next(key for key in body if key.startswith("max_")) for path, body in server.asked if "chat" in path]
    assert limits == ["max_tokens", "max_completion_tokens", "max_completion_tokens"]


def test_scores_from_the_echo_equal_the_model_s(server: ProtocolServer) -> None:
    requests = [ScoreRequest("the dog ", ("yes", "no", "positive answer")), ScoreRequest("a fox", (" over", ""))]
    with connect(server, "openai") as runner:
        assert runner.abilities == {"generate", "chat", "score", "embed"}
        found = runner.score(requests)
        counts = runner.count_tokens(["the dog yes", "", "東京"])
    right = server.causal.score([(request.prompt, request.continuations) for request in requests])
    for mine, wanted in zip(found, right, strict=True):
        assert [score.logprob for score in mine] == pytest.approx([score[0] for score in wanted], abs=1e-4)
        assert [(score.tokens, score.greedy) for score in mine] == [score[1:] for score in wanted]
    assert counts == [len(server.causal._ids("the dog yes")), 0, len(server.causal._ids("東京"))]


def test_an_echo_that_counts_bos_is_read_as_one_that_does_not() -> None:
    told: dict[str, Any] = {
        "tokens": ["a", " b"],
        "token_logprobs": [-1.0, -2.0],
        "text_offset": [0, 1],
        "top_logprobs": [{}, {"c": -1.0}],
    }
    with_bos: dict[str, Any] = {
        "tokens": ["<s>", "a", " b"],
        "token_logprobs": [None, -1.0, -2.0],
        "text_offset": [0, 3, 4],
    }
    with_bos["top_logprobs"] = [None, {}, {"c": -1.0}]
    first, second = (read_echo({"logprobs": one}, "a", " b") for one in (told, with_bos))
    assert first == second
    assert (first.logprob, first.tokens, first.greedy) == (-2.0, 1, False)
    with pytest.raises(EngineFailed, match="usual form"):
        read_echo({"logprobs": {"content": []}}, "a", " b")


@pytest.mark.parametrize("kind", KINDS)
def test_embeddings_keep_their_order_and_are_normalised(server: ProtocolServer, kind: str) -> None:
    texts = ["the fox", "a lazy dog", "yes"] * 30
    with connect(server, kind) as runner:
        found = runner.embed(texts)
    assert np.allclose(found, server.embed(texts), atol=1e-5)


def test_an_ollama_server_says_what_a_model_can(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "capabilities", ["embedding"])
    with connect(server, "ollama") as runner:
        assert runner.abilities == {"embed"}
        with pytest.raises(Unsupported, match="log-probabilities"):
            runner.score([ScoreRequest("a", ("b",))])
        with pytest.raises(Unsupported, match="windows"):
            runner.score_texts(["a"])


def test_no_model_but_an_endpoint_is_asked() -> None:
    with pytest.raises(Unsupported, match="no gguf models"):
        Http(Model("m", "gguf", "sha256:" + "0" * 64, {}, 0))


@pytest.mark.parametrize("kind", KINDS)
def test_an_unknown_model_is_named_with_the_nearest(server: ProtocolServer, kind: str) -> None:
    with pytest.raises(UnknownName, match=r"no model at http.* named 'tinny'.*did you mean 'tiny"):
        connect(server, kind, "tinny").generate([CHAT])


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_is_wanted_named_used_and_never_shown(
    server: ProtocolServer, kind: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    variable = {"openai": "OPENAI_API_KEY", "ollama": "OLLAMA_API_KEY"}[kind]
    monkeypatch.delenv("OLLAMA_API_KEY", raising=False)
    server.needs_key = True
    with pytest.raises(UsageError, match=f"wants a key .401.*{variable} or SIZEWISE_ENDPOINT_KEY"):
        connect(server, kind)
    monkeypatch.setenv(variable, "sk-wrong-one")
    with pytest.raises(UsageError, match="does not accept the key") as caught:
        connect(server, kind)
    assert "sk-wrong-one" not in str(caught.value)
    assert "***" in str(caught.value)  # the server repeated it
    monkeypatch.setenv("SIZEWISE_ENDPOINT_KEY", KEY)  # the more specific variable wins
    with connect(server, kind) as runner:
        assert runner.generate([CHAT])[0].completion_tokens
    shown = capfd.readouterr()
    assert KEY not in shown.out + shown.err


def test_the_key_of_our_own_server_is_sent_to_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZEWISE_API_KEY", KEY)
    for url in ("https://models.example/v1", "http://127.0.0.1:1/v1"):
        assert "authorization" not in Endpoint(url, "X")._client.headers


def test_a_key_does_not_travel_in_the_clear(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sent = {
        url: Endpoint(url, "OPENAI_API_KEY")._client.headers.get("authorization")
        for url in ("http://models.example/v1", "https://models.example/v1", "http://127.0.0.1:1/v1")
    }
    assert list(sent.values()) == [None, f"Bearer {KEY}", f"Bearer {KEY}"]
    monkeypatch.setenv("SIZEWISE_ENDPOINT_KEY_MODELS_EXAMPLE", "own")
    assert Endpoint("http://models.example/v1", "X")._client.headers["authorization"] == "Bearer own"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(server: ProtocolServer, kind: str, status: int, calm: list[float]) -> None:
    with connect(server, kind) as runner:
        server.faults += [plain("busy", status, Retry_After="7"), plain("busy", status)]
        reply = runner.generate([CHAT])[0]
    assert reply.completion_tokens
    assert calm == [7.0, 1.0]


def test_a_server_that_stays_busy_is_given_up(server: ProtocolServer, calm: list[float]) -> None:
    with connect(server, "openai") as runner:
        server.faults += [plain("busy", 429)] * 5
        with pytest.raises(Unreachable, match=r"still busy after 5 attempts \(429\)"):
            runner.generate([CHAT])
        server.faults += [JSONResponse({"error": {"message": "CUDA error"}}, 500)] * 5
        with pytest.raises(EngineFailed, match=r"the server failed \(500\): CUDA error"):
            runner.generate([CHAT])
        assert runner.generate([CHAT])[0].text  # and is asked again as if nothing had been
    assert calm == [0.5, 1.0, 2.0, 4.0] * 2


@pytest.mark.parametrize(
    ("wanted", "seconds"),
    [("3", 3.0), ("0.25", 0.25), ("99999", 60.0), ("Thu, 01 Jan 1970 00:00:10 GMT", 4.0), ("soon", 2.0), (None, 2.0)],
)
def test_how_long_to_wait(wanted: str | None, seconds: float) -> None:
    assert _backoff(2, wanted, lambda: 6.0) == seconds


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ("cut", "the answer broke off"),
        ("end", "broke off after .* without an end"),
        ("error", "failed while answering: the engine fell over"),
        ("garbage", "no JSON object: '<html>proxy error</html>'"),
    ],
)
def test_an_answer_that_fails_half_way_is_an_error(server: ProtocolServer, kind: str, fault: str, words: str) -> None:
    with connect(server, kind) as runner:
        server.faults.append(fault)
        with pytest.raises(EngineFailed, match=words):
            runner.generate([RAW])
        assert runner.generate([RAW])[0].completion_tokens == 8


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", ["<html>hello</html>", "[1, 2]", "", "[" * 100_000])
def test_an_answer_that_is_no_json_is_an_error(server: ProtocolServer, kind: str, text: str) -> None:
    with connect(server, kind) as runner:
        server.faults.append(plain(text))
        with pytest.raises(EngineFailed, match=r"no JSON object|without an end"):
            runner.generate([RAW])


def test_a_server_that_does_not_stream_is_understood(server: ProtocolServer) -> None:
    whole = {
        "choices": [{"message": {"content": "all at once"}, "finish_reason": "length"}],
        "usage": {"prompt_tokens": 3},
    }
    with connect(server, "openai") as runner:
        server.faults.append(JSONResponse(whole))
        reply = runner.generate([CHAT])[0]
    assert (reply.text, reply.finish, reply.prompt_tokens, reply.completion_tokens) == (
        "all at once",
        "length",
        3,
        None,
    )


def test_a_refused_request_keeps_the_server_s_reason(server: ProtocolServer) -> None:
    with connect(server, "openai") as runner:
        server.faults.append(JSONResponse({"error": {"message": "maximum context length is 512 tokens"}}, 400))
        with pytest.raises(UsageError, match=r"refuses the request .400.: maximum context length is 512 tokens"):
            runner.generate([CHAT])
        server.faults.append(plain("", 302, location="http://elsewhere.example/"))
        with pytest.raises(Unreachable, match=r"moved to http://elsewhere.example/"):
            runner.generate([CHAT])
    assert all(path.startswith("/v1/") for path, _ in server.asked)


def test_silence_ends_after_the_patience(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 0)
    with connect(server, "ollama", patience_s=1.0) as runner:
        server.faults.append("slow")
        with pytest.raises(Unreachable, match="no answer within 1 s"):
            runner.generate([CHAT])


@pytest.mark.parametrize("text", ["openai://m@http://127.0.0.1:9/v1", "ollama://127.0.0.1:9/m"])
def test_nobody_at_the_address(text: str) -> None:
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:9.* does not answer"):
        Http(find_model(text))


def test_an_error_of_the_listener_ends_all_answers(server: ProtocolServer) -> None:
    def stop(index: int, chunk: Any) -> None:
        raise ValueError("the client went away")

    with connect(server, "ollama", parallel=2) as runner:
        with pytest.raises(ValueError, match="went away"):
            runner.generate([CHAT] * 8, stop)
        assert runner.generate([CHAT])[0].text


def test_requests_run_side_by_side_up_to_the_limit(server: ProtocolServer, monkeypatch: pytest.MonkeyPatch) -> None:
    both = threading.Barrier(2, timeout=20)  # broken unless two requests wait at the same time
    with connect(server, "openai", parallel=2) as runner:
        whole = Http._stream
        monkeypatch.setattr(Http, "_stream", lambda self, *rest: (both.wait(), whole(self, *rest))[1])
        assert len(runner.generate([CHAT] * 4)) == 4


NATIVE = """
import sys, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel, params.warmup = sys.argv[1], 512, 2, False
params.cpuparams.n_threads = 1
server = xllamacpp.Server(params)
print("address", server.listening_address, flush=True)
sys.stdin.read()
"""


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of llama.cpp's own server over a tiny GGUF file, in a process of its own."""
    path = write_tiny_llama(tmp_path_factory.mktemp("native") / "tiny.gguf")
    command = [sys.executable, "-c", NATIVE, str(path)]
    pipe = subprocess.PIPE
    process = subprocess.Popen(
        command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True, env={**os.environ}
    )
    assert process.stdin is not None
    assert process.stdout is not None
    address = next(line.split()[1] for line in process.stdout if line.startswith("address"))
    yield address
    process.kill()
    process.wait()


def test_llama_cpp_s_own_server(native: str) -> None:
    with Http(find_model(f"openai://tiny@{native}/v1")) as runner:
        assert runner.abilities == {"generate", "chat"}  # it neither echoes nor embeds, as started here
        heard: list[str] = []
        replies = runner.generate([CHAT, RAW, CHAT], lambda at, chunk: heard.append(chunk.text) if at == 0 else None)
        assert replies[0].text == replies[2].text == "".join(heard)
        assert all(reply.finish in ("stop", "length") and reply.completion_tokens for reply in replies)
        with pytest.raises(Unsupported):
            runner.score([ScoreRequest("a", ("b",))])
        with pytest.raises(UsageError, match=r"refuses the request .*context"):
            runner.generate([GenerateRequest(prompt="a b c " * 400)])


def test_the_test_server_keeps_the_key_only_in_its_header(
    server: ProtocolServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with connect(server, "openai") as runner:
        runner.generate([CHAT])
    assert server.headers[-1]["authorization"] == f"Bearer {KEY}"
    assert all(KEY not in str(body) for _, body in server.asked)
    assert KEY not in repr(runner.model)
