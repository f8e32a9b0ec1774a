"""What the benchmarks of serving share: our server as a process, the engine's own server, one client for both."""

import asyncio
import contextlib
import json
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from sizewise.load.llama.server import LlamaServer
from sizewise.load.models import find_model
from sizewise.serve.upstream import Upstream

STORY = "A long story about a lighthouse keeper and the sea, number {}. Once upon a time,"


@dataclass(frozen=True)
class Timed:
    """One streamed answer, timed at the client."""

    tokens: int
    first_s: float
    seconds: float


@contextmanager
def ours(threads: int, parallel: int, context: int) -> Iterator[Upstream]:
    """`sizewise serve` over the user's store, on a free port."""
    command = [sys.executable, "-m", "sizewise", "serve", "--port", "0", "--keep-alive", "-1"]
    command += ["--threads", str(threads), "--parallel", str(parallel), "--context", str(context)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert process.stdout
        host, _, port = process.stdout.readline().strip().rpartition("http://")[2].partition(":")
        yield Upstream(host, int(port), "none")
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def engine(model: str, threads: int, parallel: int, context: int) -> Iterator[Upstream]:
    """The engine's own server with the same settings, asked directly."""
    server = LlamaServer(find_model(model), context=context, parallel=parallel, threads=threads)
    server.load()
    try:
        yield Upstream(server.host, server.port, server.key)
    finally:
        server.close()


@contextmanager
def llama_cpp_python(python: str, model: str, threads: int, context: int) -> Iterator[Upstream]:
    """llama-cpp-python's server, which answers one request at a time; `python` has it installed."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    file = next(iter(find_model(model).files.values()))
    command = [python, "-m", "llama_cpp.server", "--model", str(file), "--port", str(port), "--n_ctx", str(context)]
    command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--interrupt_requests", "false"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        for _ in range(300):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            time.sleep(0.2)
        yield Upstream("127.0.0.1", port, "none")
    finally:
        process.terminate()
        process.wait(60)


async def answer(server: Upstream, model: str, prompt: str, tokens: int) -> Timed:
    """Stream one completion of so many tokens; both servers speak OpenAI's form of it."""
    body = {"model": model, "prompt": prompt, "max_tokens": tokens, "temperature": 0, "stream": True}
    body["stream_options"] = {"include_usage": True}  # an event may hold several tokens
    began, first, made, events = time.perf_counter(), 0.0, 0, 0
    async for batch in server.stream("/v1/completions", body):
        for data in batch:
            if data.strip() == b"[DONE]":
                continue
            event = json.loads(data)
            if any(choice.get("text") for choice in event.get("choices", ())):
                first = first or time.perf_counter() - began
                events += 1
            made = (event.get("usage") or {}).get("completion_tokens", made)
    return Timed(made or events, first, time.perf_counter() - began)  # who tells no usage sends token by token


async def together(server: Upstream, model: str, prompts: list[str], tokens: int) -> tuple[list[Timed], float]:
    """All prompts at once, and how long all took."""
    began = time.perf_counter()
    found = await asyncio.gather(*(answer(server, model, prompt, tokens) for prompt in prompts))
    return list(found), time.perf_counter() - began


async def one_by_one(server: Upstream, model: str, prompts: list[str], tokens: int) -> tuple[list[Timed], float]:
    """All prompts asked at once of a server that answers one at a time: each waits for those before it."""
    began = time.perf_counter()
    found = []
    for prompt in prompts:
        waited = time.perf_counter() - began
        timed = await answer(server, model, prompt, tokens)
        found.append(Timed(timed.tokens, waited + timed.first_s, waited + timed.seconds))
    return found, time.perf_counter() - began
