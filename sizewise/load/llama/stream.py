"""One completion from the engine's native server: streamed where somebody listens, else in one piece.

The server is on the loopback and sends server-sent events. The standard library's client reads them with less work
for each token than a general one, and is imported in less time; both count when a token takes five milliseconds. On two
cores, waking server and reader for every token takes some 6 % of the tokens per second, hence the one piece.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPConnection, HTTPException, HTTPResponse
from typing import Any

from sizewise.core.errors import EngineFailed
from sizewise.core.requests import Finish, Reply, Sampling


@dataclass(slots=True)
class Connections:
    """The streams under way, so that all can be ended at once from another thread."""

    address: str  # host:port
    key: str
    closed: bool = False
    _open: set[HTTPConnection] = field(default_factory=set)

    def connect(self) -> HTTPConnection:
        """A new connection; counted until `release`."""
        connection = HTTPConnection(self.address)
        self._open.add(connection)
        return connection

    def release(self, connection: HTTPConnection) -> None:
        """Close one connection; the server then stops working on its request."""
        self._open.discard(connection)
        connection.close()

    def close(self) -> None:
        """End all streams: their readers get an error at once."""
        self.closed = True
        for connection in list(self._open):
            if connection.sock:
                with contextlib.suppress(OSError):  # it ended by itself in this moment
                    connection.sock.shutdown(socket.SHUT_RDWR)


def complete(
    connections: Connections, tokens: list[int], limit: int, sampling: Sampling, on_text: Callable[[str], None] | None
) -> Reply:
    """Continue `tokens` by at most `limit` tokens.

    Raises:
        EngineFailed: the server died or answered nonsense.
    """
    began = time.perf_counter()
    connection = connections.connect()
    try:
        body = json.dumps(_body(tokens, limit, sampling, stream=on_text is not None))
        headers = {"Authorization": f"Bearer {connections.key}", "Content-Type": "application/json"}
        connection.request("POST", "/completion", body, headers)
        response = connection.getresponse()
        if response.status != 200:
            raise EngineFailed(f"the engine answers {response.status}: {_reason(response.read(4096))}")
        return _stream(response, began, on_text) if on_text else _whole(response.read(), began)
    except (OSError, HTTPException) as error:
        raise EngineFailed(f"the connection to the engine broke: {type(error).__name__}") from error
    finally:
        connections.release(connection)


def _body(tokens: list[int], limit: int, sampling: Sampling, *, stream: bool) -> dict[str, Any]:
    return {
        "prompt": tokens,
        "n_predict": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
        "seed": sampling.seed,
        "stop": list(sampling.stop),
        "stream": stream,
        "cache_prompt": True,
    }


def _whole(body: bytes, began: float) -> Reply:
    """An answer in one piece. The engine's clock says how long its tokens took; what is left came before the first."""
    answer = json.loads(body)
    if "error" in answer:
        raise EngineFailed(f"the engine stopped: {_reason(body)}")
    total, tokens = time.perf_counter() - began, answer["tokens_predicted"]
    decoding = answer["timings"]["predicted_ms"] / 1000
    first = max(0.0, total - decoding * (tokens - 1) / tokens) if tokens else None
    return Reply(answer["content"], _finish(answer), answer["tokens_evaluated"], tokens, first, total)


def _stream(response: HTTPResponse, began: float, on_text: Callable[[str], None]) -> Reply:
    parts: list[str] = []
    first: float | None = None
    for line in response:
        if not line.startswith(b"data: "):
            if line.startswith(b"error: "):
                raise EngineFailed(f"the engine stopped: {_reason(line[7:])}")
            continue  # an empty line, or a sign of life
        event = json.loads(line[6:])
        if "error" in event:
            raise EngineFailed(f"the engine stopped: {_reason(line[6:])}")
        if first is None and event.get("tokens_predicted"):
            first = time.perf_counter() - began
        if text := event["content"]:
            parts.append(text)
            on_text(text)
        if event["stop"]:
            counts = event["tokens_evaluated"], event["tokens_predicted"]
            return Reply("".join(parts), _finish(event), *counts, first, time.perf_counter() - began)
    raise EngineFailed("the engine's answer ended in the middle")


def _finish(event: dict[str, Any]) -> Finish:
    return "length" if event.get("stop_type") == "limit" else "stop"


def _reason(body: bytes) -> str:
    """The server's own words, in one line."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text).get("error", text)
    except ValueError:
        error = text
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:300]
