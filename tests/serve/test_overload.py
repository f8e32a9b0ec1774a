"""Too many clients, idle and slow ones, and clients that go (R6, S16, rows 58 to 60 of the bad inputs)."""

import asyncio
import json
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
from served import Served, StartServer

CLIENTS, PLACES, QUEUE = 50, 2, 16
BODY = {"model": "tiny", "prompt": "abc", "stream": False, "options": {"num_predict": 20, "seed": 1}}


async def _burst(url: str, count: int) -> list[tuple[int, float, httpx.Response]]:
    limits = httpx.Limits(max_connections=count)
    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits, trust_env=False) as client:

        async def one() -> tuple[int, float, httpx.Response]:
            start = time.monotonic()
            answer = await client.post("/api/generate", json=BODY)
            return answer.status_code, time.monotonic() - start, answer

        return await asyncio.gather(*(one() for _ in range(count)))


async def _probe(url: str, stop: asyncio.Event) -> list[float]:
    took = []
    async with httpx.AsyncClient(base_url=url, timeout=30, trust_env=False) as client:
        while not stop.is_set():
            start = time.monotonic()
            assert (await client.get("/health")).status_code == 200
            took.append(time.monotonic() - start)
            await asyncio.sleep(0.02)
    return took


async def _under_load(url: str) -> tuple[list[tuple[int, float, httpx.Response]], list[float]]:
    stop = asyncio.Event()
    probing = asyncio.create_task(_probe(url, stop))
    answers = await _burst(url, CLIENTS)
    stop.set()
    return answers, await probing


def test_a_burst_is_answered_or_refused_at_once(tiny_home: Path, start_server: StartServer) -> None:
    """R6: at most places + queue come in; the others are told when to ask again; nothing is left behind."""
    served = start_server(tiny_home, "--parallel", str(PLACES), "--max-queue", str(QUEUE), "--context", "256")
    process = psutil.Process(served.pid)
    asyncio.run(_burst(served.url, 4))
    asyncio.run(_burst(served.url, CLIENTS))  # buffers have their size after this
    before = process.memory_info().rss
    answers, health = asyncio.run(_under_load(served.url))
    good = [answer for status, _, answer in answers if status == 200]
    refused = [(seconds, answer) for status, seconds, answer in answers if status == 503]
    assert len(good) + len(refused) == CLIENTS
    assert len(good) >= PLACES + QUEUE - 1
    assert all(answer.json()["done"] and answer.json()["response"] for answer in good)
    assert all(int(answer.headers["Retry-After"]) >= 1 for _, answer in refused)
    assert max(health) < 2.0  # the line is 50 ms on an idle machine
    with served.client() as client:
        assert client.get("/health").json()["queue"] == {"running": 0, "waiting": 0, "most_waiting": QUEUE}
        assert client.post("/api/generate", json=BODY).status_code == 200
    assert process.memory_info().rss <= before * 1.05 + 2**20
    logged = [json.loads(line) for line in served.lines()]
    assert {line["status"] for line in logged if line["event"] == "request"} <= {200, 503}


def test_clients_that_go_stop_the_work(tiny_server: Served) -> None:
    """Row 60 and R7: mid-stream, before the first token and in the queue; their places are free within a second."""
    long = {**BODY, "stream": True, "options": {"num_predict": 200}}
    body = json.dumps(long).encode()
    request = (
        b"POST /api/generate HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % len(body)
    ) + body
    with tiny_server.client() as client:
        client.post("/api/generate", json=BODY)
        for round_ in range(3):
            connections = [tiny_server.connect() for _ in range(8)]
            for connection in connections:
                connection.sendall(request)
            if round_:
                connections[0].recv(100)
            for connection in connections:
                connection.close()
            deadline = time.monotonic() + 5
            while (queue := client.get("/health").json()["queue"])["running"] or queue["waiting"]:
                assert time.monotonic() < deadline, queue
                time.sleep(0.02)
        assert client.post("/api/generate", json=BODY).status_code == 200
    statuses = [json.loads(line).get("status") for line in tiny_server.lines()]
    assert 499 in statuses
    assert 500 not in statuses


def test_slow_bodies_are_cut(tiny_home: Path, start_server: StartServer) -> None:
    """Row 58, with a shorter patience than the usual 25 s."""
    served = start_server(tiny_home, SIZEWISE_BODY_TIMEOUT="1.5s")

    def drops() -> Any:
        for _ in range(20):
            time.sleep(0.25)
            yield b"x"

    start = time.monotonic()
    head = b"POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 99\r\n\r\n"
    answer = served.raw(head, body_after=drops())
    assert answer == b"" or b" 408 " in answer.split(b"\r\n")[0]
    assert time.monotonic() - start < 20
    statuses = [json.loads(line).get("status") for line in served.requests(1)]
    assert statuses == [408]


def test_idle_connections_do_not_matter(tiny_server: Served) -> None:
    """S16: 500 sockets that say nothing, or half a head."""
    idle = [tiny_server.connect() for _ in range(500)]
    for connection in idle[::2]:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: loc")
    try:
        with tiny_server.client() as client:
            assert client.get("/health").status_code == 200
            assert client.post("/api/generate", json=BODY).status_code == 200
    finally:
        for connection in idle:
            connection.close()


def test_a_full_queue_in_both_envelopes(tiny_home: Path, start_server: StartServer) -> None:
    """Row 59: with no queue at all and one place, the second request is refused."""
    served = start_server(tiny_home, "--parallel", "1", "--max-queue", "0", "--context", "256")
    for path in ("/api/generate", "/v1/completions"):
        answers = asyncio.run(_several(served.url, path))
        refused = [answer for answer in answers if answer.status_code == 503]
        assert refused
        assert any(answer.status_code == 200 for answer in answers)
        for answer in refused:
            assert int(answer.headers["Retry-After"]) >= 1
            error = answer.json()["error"]
            assert "busy" in (error["message"] if path.startswith("/v1") else error)


async def _several(url: str, path: str) -> list[httpx.Response]:
    body = {"model": "tiny", "prompt": "abc", "stream": False}
    body |= {"max_tokens": 20} if path.startswith("/v1") else {"options": {"num_predict": 20}}
    async with httpx.AsyncClient(base_url=url, timeout=120, trust_env=False) as client:
        return await asyncio.gather(*(client.post(path, json=body) for _ in range(6)))
