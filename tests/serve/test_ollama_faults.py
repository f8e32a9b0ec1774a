"""Clients that go, texts of all scripts, huge prompts and engines that die, over Ollama's endpoints.

`SIZEWISE_DISCONNECTS=100` and `SIZEWISE_TEXTS=1000` are the numbers of a release; the defaults keep the run short.
"""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import ollama
import pytest
from served import Served, StartServer, launch
from starlette.testclient import TestClient

DISCONNECTS = int(os.environ.get("SIZEWISE_DISCONNECTS", "10"))
TEXTS = int(os.environ.get("SIZEWISE_TEXTS", "40"))
GREEDY = {"temperature": 0, "num_predict": 8}
COUNT: dict[str, Any] = {"model": "smollm2", "raw": True, "prompt": "1, 2, 3, 4, 5, 6,"}
LONG = COUNT | {"options": {"num_predict": 2000, "temperature": 0}}  # counting has no end
FREE_S = 5.0  # the promise is one second, on a machine that does nothing else
BATCH_S = 20.0  # what is left of a batch of the prompt is computed; the whole prompt takes several times as long


@pytest.fixture(scope="module")
def narrow(smollm2_home: Path) -> Iterator[Served]:
    """A server that answers one request at a time."""
    served = launch(smollm2_home, OLLAMA_NUM_PARALLEL="1")
    yield served
    served.stop()


def queue(served: Served) -> dict[str, int]:
    with served.client(10) as client:
        counts: dict[str, int] = client.get("/health").json()["queue"]
        return counts


def until(true: Callable[[], bool], seconds: float) -> float:
    """How long it took until something was true."""
    begun = time.monotonic()
    while not true():
        assert time.monotonic() - begun < seconds, "it never was"
        time.sleep(0.02)
    return time.monotonic() - begun


def engine_rests(served: Served) -> bool:
    """Whether the engine computes nothing: its processor time stands still."""
    engines = [one for one in served.children() if "_llamacpp_child" in " ".join(one.cmdline())]
    assert engines
    before = sum(sum(one.cpu_times()[:2]) for one in engines)
    time.sleep(0.5)
    return sum(sum(one.cpu_times()[:2]) for one in engines) - before < 0.15


def right(served: Served) -> str:
    answer = ollama.Client(served.url).generate("smollm2", "Say hello.", options=GREEDY)
    assert answer.response
    return answer.response


def leave_in_the_middle(served: Served) -> None:
    with served.client() as client, client.stream("POST", "/api/generate", json=LONG) as answer:
        lines = answer.iter_lines()
        assert json.loads(next(lines))["response"]
        next(lines)


def leave_during_the_prompt(served: Served) -> None:
    draw = random.Random(time.monotonic_ns())  # a prompt that the engine has not seen, so that it takes its time
    words = " ".join(draw.choices(["tree", "house", "sea", "wind", "stone", "light"], k=6000))
    with served.client(0.5) as client, pytest.raises(httpx.ReadTimeout):
        client.post("/api/generate", json=LONG | {"prompt": words, "stream": draw.random() < 0.5})


def leave_the_queue(served: Served) -> None:
    """One request is answered, the other waits; the one that waits goes first."""
    with served.client() as client, client.stream("POST", "/api/generate", json=LONG) as answer:
        lines = answer.iter_lines()  # a reader that nobody holds would close the connection
        assert json.loads(next(lines))["response"]
        with served.client(0.5) as other, pytest.raises(httpx.ReadTimeout):
            other.post("/api/chat", json={"model": "smollm2", "messages": [{"role": "user", "content": "x"}]})
        until(lambda: queue(served)["waiting"] == 0, FREE_S)
        assert queue(served)["running"] == 1
        assert json.loads(next(lines))["response"]  # the other client's answer goes on


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * DISCONNECTS)
@pytest.mark.parametrize(
    ("leave", "share"), [(leave_in_the_middle, 0.5), (leave_during_the_prompt, 0.25), (leave_the_queue, 0.25)]
)
def test_a_client_that_goes_leaves_nothing_behind(
    narrow: Served, leave: Callable[[Served], None], share: float
) -> None:
    expected = right(narrow)
    for _ in range(max(1, round(DISCONNECTS * share))):
        leave(narrow)
        until(lambda: queue(narrow)["running"] == 0, FREE_S)
        until(lambda: engine_rests(narrow), BATCH_S if leave is leave_during_the_prompt else FREE_S)
    assert right(narrow) == expected
    assert queue(narrow)["waiting"] == 0
    statuses = [json.loads(line).get("status") for line in narrow.lines() if line.startswith("{")]
    assert 500 not in statuses
    assert 499 in statuses


@pytest.mark.model
def test_an_engine_that_dies_in_the_middle_of_an_answer(smollm2_home: Path, start_server: StartServer) -> None:
    served = start_server(smollm2_home)
    client = ollama.Client(served.url)
    expected = right(served)
    parts = client.generate("smollm2", "Tell me a story.", options={"num_predict": 2000}, stream=True)
    assert next(iter(parts)).response is not None
    for engine in [one for one in served.children() if "_llamacpp_child" in " ".join(one.cmdline())]:
        os.kill(engine.pid, signal.SIGKILL)
    begun = time.monotonic()
    with pytest.raises(ollama.ResponseError) as caught:
        for _ in parts:
            pass
    assert caught.value.status_code == -1  # an error line in the stream, as the client reads it
    assert time.monotonic() - begun < 10
    assert "/" not in caught.value.error
    assert right(served) == expected


@pytest.mark.model
def test_two_hundred_thousand_tokens_are_refused_at_once(server: Served) -> None:
    with server.client(60) as client:
        for text in ("a", "\u00e9", "\U0001f600", "\n", "word "):
            begun = time.monotonic()
            body = {"model": "smollm2", "prompt": text * (2**20 // len(text.encode()))}
            answer = client.post("/api/generate", json=body)
            assert answer.status_code == 400
            assert "8192" in answer.json()["error"]
            assert time.monotonic() - begun < 20  # the promise is two seconds, on a machine that does nothing else
    assert right(server)


def texts(seed: int, count: int) -> list[str]:
    """Texts of letters of all scripts, signs beyond the first plane, joined emoji, and ends of lines of all kinds."""
    draw = random.Random(seed)
    ranges = ((0x20, 0x7E), (0xA1, 0x24F), (0x370, 0x58F), (0x900, 0xD7F), (0x4E00, 0x9FFF), (0x1F300, 0x1FAFF))
    special = ("\u2028", "\u2029", "\u0085", "\u200d", "\ufe0f", "\U0001f469\u200d\U0001f4bb", "\n", '"', "\\", "\t")
    made = []
    for _ in range(count):
        letters = [
            draw.choice(special) if draw.random() < 0.15 else chr(draw.randint(*draw.choice(ranges)))
            for _ in range(draw.randint(1, 12))
        ]
        made.append("".join(letters))
    return made


def test_text_of_all_scripts_streams_as_it_is(app_client: TestClient) -> None:
    """The model has one token for each byte, and a schema makes it say each text: no character may come in halves."""
    for text in texts(0, TEXTS):
        body: dict[str, Any] = {"model": "tiny", "prompt": "x", "format": {"type": "string", "enum": [text]}}
        whole = app_client.post("/api/generate", json=body | {"stream": False}).json()
        streamed = app_client.post("/api/generate", json=body)
        assert "error" not in whole, whole
        lines = [json.loads(line) for line in streamed.content.split(b"\n") if line]
        said = "".join(line["response"] for line in lines)
        assert "\ufffd" not in said
        assert said == whole["response"]
        assert json.loads(said) == text
        assert len(streamed.text.splitlines()) == len(lines)  # also for clients that split at U+2028
        assert lines[-1]["eval_count"] >= len(text.encode())


def test_many_at_once_get_their_own_answers(app_client: TestClient) -> None:
    wanted = texts(1, 8)
    got: dict[int, Any] = {}

    def ask(place: int) -> None:
        body = {"model": "tiny", "prompt": "x", "stream": False, "format": {"type": "string", "enum": [wanted[place]]}}
        got[place] = app_client.post("/api/generate", json=body).json()

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(wanted))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert [json.loads(got[place]["response"]) for place in range(len(wanted))] == wanted
