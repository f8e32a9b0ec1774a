"""R7 and row 60: a hundred clients that go, over real connections, watched at the engine itself.

Fifty go in the middle of an answer, twenty-five while their prompt is computed, twenty-six while they
wait in the queue. Their place is free again within a second on a machine that does nothing else; what is asserted
is work, which does not depend on the machine: eight more tokens of an answer, three more steps of a prompt.
"""

import asyncio
import io
import json
import random
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn
from served import save_smollm2

from sizewise.load.runners._llamacpp_child import STEP_TOKENS
from sizewise.load.store.store import Store
from sizewise.serve.access_log import Log
from sizewise.serve.app import create_app
from sizewise.serve.native import NativeSession
from sizewise.serve.protocol import LimitedHttp
from sizewise.serve.settings import Settings

MIDDLE, PROMPT, QUEUED = 50, 25, 26
MOST_TOKENS = 8
MOST_STEPS = 3  # of the prompt: the one under way, the next, and one for the news to travel
COUNT: dict[str, Any] = {"model": "smollm2", "raw": True, "prompt": "1, 2, 3, 4, 5, 6,"}
LONG = COUNT | {"options": {"num_predict": 3000, "temperature": 0}}  # counting has no end
SHORT = COUNT | {"options": {"num_predict": 6, "temperature": 0}, "stream": False}
WORDS = ("tree", "house", "sea", "wind", "stone", "light", "cloud", "hill")


class Watched:
    """The server in a thread of this process, as `serve` runs it, and its engine's own view of its slot."""

    def __init__(self, home: Path) -> None:
        self.log = io.StringIO()
        settings = Settings(parallel=1, threads=1)
        self.app = create_app(settings, Store(home / "models"), log=Log(self.log))
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        config = uvicorn.Config(self.app, loop="uvloop", http=LimitedHttp, lifespan="off", log_config=None)
        self.server = uvicorn.Server(config)
        self.loop: asyncio.AbstractEventLoop | None = None
        self.thread = threading.Thread(target=self._run, args=(config.get_loop_factory(),))
        self.thread.start()

    def _run(self, loops: Callable[[], asyncio.AbstractEventLoop] | None) -> None:
        async def live() -> None:
            self.loop = asyncio.get_running_loop()
            await self.server.serve([self.listener])
            await self.app.state.manager.close(0.0)

        with asyncio.Runner(loop_factory=loops) as runner:
            runner.run(live())

    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=120, trust_env=False)

    def send(self, body: dict[str, Any], path: str = "/api/generate") -> socket.socket:
        """A request on a connection of its own, which can be dropped."""
        data = json.dumps(body).encode()
        connection = socket.create_connection(self.listener.getsockname(), timeout=60)
        head = (
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {len(data)}"
        )
        connection.sendall(head.encode() + b"\r\n\r\n" + data)
        return connection

    def slot(self) -> dict[str, Any]:
        """The engine's only slot."""
        (loaded,) = self.app.state.manager.loaded()
        assert isinstance(loaded.session, NativeSession)
        assert self.loop
        asked = loaded.session._engine.upstream.ask("/slots")
        found: list[dict[str, Any]] = asyncio.run_coroutine_threadsafe(asked, self.loop).result(60)
        return found[0]

    def queue(self) -> tuple[int, int]:
        """Requests at the model, and those that wait."""
        admission = self.app.state.manager.admission
        return admission.running, admission.waiting

    def free(self) -> float:
        """Seconds until the engine and the queue are empty."""
        start = time.monotonic()
        while self.slot()["is_processing"] or self.queue() != (0, 0):
            assert time.monotonic() - start < 60
            time.sleep(0.01)
        return time.monotonic() - start

    def right(self) -> str:
        with self.client() as client:
            answer = client.post("/api/generate", json=SHORT)
        return str(answer.json()["response"])

    def statuses(self) -> list[int]:
        return [json.loads(line)["status"] for line in self.log.getvalue().splitlines()]

    def close(self) -> None:
        self.server.should_exit = self.server.force_exit = True
        self.thread.join(60)
        self.listener.close()


@pytest.fixture(scope="module")
def watched(smollm2: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    home = tmp_path_factory.mktemp("watched")
    save_smollm2(home, smollm2)
    found = Watched(home)
    yield found
    found.close()


def until(watched: Watched, true: Any) -> None:
    start = time.monotonic()
    while not true(watched):
        assert time.monotonic() - start < 60
        time.sleep(0.005)


def check(watched: Watched, seconds: list[float], expected: str) -> None:
    print(f"free after {statistics.median(seconds):.3f} s, at most {max(seconds):.3f} s, of {len(seconds)}")
    assert watched.right() == expected
    assert set(watched.statuses()) <= {200, 499}
    assert watched.statuses().count(499) >= len(seconds)


@pytest.mark.model
@pytest.mark.slow
def test_in_the_middle_of_an_answer(watched: Watched) -> None:
    expected, seconds, after = watched.right(), [], []
    for _ in range(MIDDLE):
        connection = watched.send(LONG)
        while connection.recv(65536).count(b"\n") < 1:
            pass
        begun = watched.slot()["n_prompt_tokens"]
        connection.close()
        seconds.append(watched.free())
        after.append(watched.slot()["n_prompt_tokens"] - begun)
    print(f"tokens after: {statistics.median(after)}, at most {max(after)}")
    assert max(after) <= MOST_TOKENS
    check(watched, seconds, expected)


@pytest.mark.model
@pytest.mark.slow
def test_during_the_prompt(watched: Watched) -> None:
    expected, seconds, after, draw = watched.right(), [], [], random.Random(5)
    for turn in range(PROMPT):
        words = " ".join(draw.choices(WORDS, k=3000))  # nothing that the engine has seen
        connection = watched.send(LONG | {"prompt": words, "stream": turn % 2 == 0})
        until(watched, lambda one: one.slot()["is_processing"])
        time.sleep(draw.random() * 0.3)
        begun = watched.slot()["n_prompt_tokens"]
        assert begun < 3000, "the prompt was done before its client went"
        connection.close()
        seconds.append(watched.free())
        after.append(watched.slot()["n_prompt_tokens"] - begun)
    print(f"tokens of the prompt after: {statistics.median(after)}, at most {max(after)}")
    assert max(after) <= MOST_STEPS * STEP_TOKENS
    check(watched, seconds, expected)


@pytest.mark.model
@pytest.mark.slow
def test_in_the_queue(watched: Watched) -> None:
    expected = watched.right()
    first = watched.send(LONG)
    assert first.recv(65536)
    for path in ("/api/generate", "/v1/completions"):
        asked = COUNT if path.startswith("/api") else {"model": "smollm2", "prompt": "1, 2,", "max_tokens": 5}
        waiting = [watched.send(asked | {"stream": turn % 2 == 0}, path) for turn in range(QUEUED // 2)]
        until(watched, lambda one: one.queue() == (1, QUEUED // 2))
        for connection in waiting:
            connection.close()
        until(watched, lambda one: one.queue() == (1, 0))
        first.recv(65536)  # who has the place keeps it
        assert watched.slot()["is_processing"]
    first.close()
    check(watched, [watched.free()], expected)
