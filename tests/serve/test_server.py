"""Listening and ending: exposure, a taken port, drain, a second signal, secrets (S6, S18, S20, R8)."""

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from served import Served, StartServer


def run(home: Path, *arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OLLAMA_", "SIZEWISE_"))}
    command = [sys.executable, "-m", "sizewise", *arguments]
    environment |= {"SIZEWISE_HOME": str(home), **variables}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)


def test_other_machines_are_let_in_only_with_a_key(tiny_home: Path, start_server: StartServer) -> None:
    """S6: no listener without a key."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    for host in ("0.0.0.0", "::"):
        done = run(tiny_home, "serve", "--host", host, "--port", str(port))
        assert done.returncode == 2
        assert "SIZEWISE_API_KEY" in done.stderr
        assert done.stderr.count("\n") == 1
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port), timeout=5)
    assert run(tiny_home, "serve", "--port", "0", OLLAMA_HOST="0.0.0.0:1").returncode == 2
    served = start_server(tiny_home, "--host", "0.0.0.0", SIZEWISE_API_KEY="a-key")
    with httpx.Client(base_url=f"http://127.0.0.1:{served.port}", trust_env=False) as client:
        assert client.get("/api/tags").status_code == 401
        assert client.get("/api/tags", headers={"Authorization": "Bearer a-key"}).status_code == 200
        assert client.get("/", headers={"Host": "evil.com"}).status_code == 403


def test_a_taken_port_is_one_line(tiny_server: Served) -> None:
    done = run(tiny_server.home, "serve", "--port", str(tiny_server.port))
    assert done.returncode == 3
    assert done.stderr.count("\n") == 1
    assert "in use" in done.stderr


@pytest.mark.parametrize("variable", ["OLLAMA_HOST", "OLLAMA_KEEP_ALIVE", "OLLAMA_NUM_PARALLEL"])
def test_bad_settings_are_one_line(tiny_home: Path, variable: str) -> None:
    done = run(tiny_home, "serve", **{variable: "5 parsecs:x"})
    assert done.returncode == 2
    assert variable in done.stderr
    assert done.stderr.count("\n") == 1


def _stream(served: Served, results: list[Any], tokens: int) -> threading.Thread:
    """Read an answer to its end in a thread; what was read goes into `results`."""

    def read() -> None:
        body = {"model": "tiny", "prompt": "abc", "options": {"num_predict": tokens, "seed": 1}}
        lines = []
        with served.client() as client, client.stream("POST", "/api/generate", json=body) as answer:
            started.set()
            lines += [json.loads(line) for line in answer.iter_lines()]
        results.append(lines)

    started = threading.Event()
    thread = threading.Thread(target=read)
    thread.start()
    assert started.wait(60)
    return thread


def _group(served: Served) -> list[int]:
    """Processes of the server's process group."""
    found = []
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == served.pid and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process.pid)
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found


def test_a_first_signal_lets_answers_end(tiny_home: Path, start_server: StartServer) -> None:
    """R8: eight streams end whole, nobody new comes in, nothing is left."""
    served = start_server(tiny_home, "--parallel", "8", "--context", "256")
    results: list[Any] = []
    threads = [_stream(served, results, 200) for _ in range(8)]
    served.process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + 10
    while _status(served) == 200:
        assert time.monotonic() < deadline
    for thread in threads:
        thread.join(60)
    assert served.process.wait(40) == 0
    assert len(results) == 8
    for lines in results:
        assert lines[-1].get("done") is True, lines[-1]
    assert not _group(served)


def test_after_the_grace_streams_get_an_error(tiny_home: Path, start_server: StartServer) -> None:
    """R8: an engine that is stuck does not keep the server from ending."""
    served = start_server(tiny_home, "--context", "256", SIZEWISE_GRACE="100ms")
    results: list[Any] = []
    thread = _stuck(served, results)
    served.process.send_signal(signal.SIGTERM)
    assert served.process.wait(30) == 0
    thread.join(30)
    assert results == ["503 the server is shutting down"]
    assert not _group(served)


def test_a_second_signal_ends_it_at_once(tiny_home: Path, start_server: StartServer) -> None:
    served = start_server(tiny_home, "--context", "256")
    results: list[Any] = []
    thread = _stuck(served, results)
    served.process.send_signal(signal.SIGINT)
    time.sleep(0.3)
    assert served.process.poll() is None  # it waits for the answer
    start = time.monotonic()
    served.process.send_signal(signal.SIGINT)
    served.process.wait(20)
    assert time.monotonic() - start < 5  # the line is one second on an idle machine
    thread.join(30)
    assert results == ["cut"]
    deadline = time.monotonic() + 5
    while _group(served) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not _group(served)


def _status(served: Served) -> int:
    try:
        with served.client() as client:
            return client.get("/health").status_code
    except httpx.HTTPError:
        return 0


def _stuck(served: Served, results: list[Any]) -> threading.Thread:
    """A request to an engine that is stopped in its tracks; how it ended goes into `results`."""
    body = {"model": "tiny", "prompt": "abc", "options": {"num_predict": 3}}

    def read() -> None:
        try:
            with served.client() as client:
                answer = client.post("/api/generate", json=body)
            results.append(f"{answer.status_code} {answer.json()['error']}")
        except httpx.HTTPError:
            results.append("cut")

    with served.client() as client:
        assert client.post("/api/generate", json=body).status_code == 200
        for child in served.children():
            child.suspend()
        thread = threading.Thread(target=read)
        thread.start()
        deadline = time.monotonic() + 30
        while not client.get("/health").json()["queue"]["running"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    return thread


def test_secrets_stay_out_of_the_log(tiny_home: Path, start_server: StartServer) -> None:
    """S18: prompts, keys and tokens are in no log line, whatever goes wrong."""
    canary, key, token = "canary-prompt-7391", "canary-key-7391", "canary-token-7391"
    served = start_server(tiny_home, "--context", "256", "--dev", SIZEWISE_API_KEY=key, HF_TOKEN=token)
    headers = {"Authorization": f"Bearer {key}"}
    messages = [{"role": "user", "content": canary}]
    bodies: list[tuple[str, dict[str, Any]]] = [
        ("/api/generate", {"model": "tiny", "prompt": canary, "options": {"num_predict": 2}}),
        ("/api/generate", {"model": "tiny", "prompt": canary * 99}),
        ("/api/generate", {"model": "tiny", "prompt": canary, "options": {"temperature": canary}}),
        ("/api/chat", {"model": "tiny", "messages": messages, "options": {"num_predict": 2}}),
        ("/api/chat", {"model": "tiny", "messages": messages, "format": {"type": canary}}),
        ("/api/embed", {"model": "tiny", "input": canary}),
        ("/v1/chat/completions", {"model": "tiny", "messages": messages, "max_tokens": 2}),
        ("/v1/completions", {"model": "absent", "prompt": canary}),
        (f"/api/{canary[:0]}nope", {"prompt": canary}),
    ]
    with served.client() as client:
        for path, body in bodies:
            client.post(path, json=body, headers=headers)
            client.post(path, json=body, headers={"Authorization": f"Bearer {key}-wrong"})
        client.post(
            "/api/chat", content=b"{" + canary.encode(), headers={**headers, "Content-Type": "application/json"}
        )
    text = "\n".join(served.requests(2 * len(bodies) + 1))
    assert text.count('"event": "request"') == 2 * len(bodies) + 1
    for secret in (canary, key, token):
        assert secret not in text
    shown = " ".join(word for child in [psutil.Process(served.pid), *served.children()] for word in child.cmdline())
    assert key not in shown


def test_log_lines_cannot_be_forged(tiny_server: Served) -> None:
    """S18: what a client sends stays within its line."""
    before = len(tiny_server.lines())
    with tiny_server.client() as client:
        client.get("/api/x%0a%7b%22event%22%3a%22forged%22%7d%1b%5b2J")
        client.post("/api/generate", json={"model": 'x\n{"event": "forged"}\x1b[2J', "prompt": "x"})
    new = tiny_server.requests(2, after=before)
    assert [json.loads(line)["event"] for line in new] == ["request", "request"]
    assert "\x1b" not in "".join(new)
