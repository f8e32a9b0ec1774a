"""A client for the engine's server on the loopback: one connection for each request, read with little work.

While tokens stream, this runs once for each of them and shares the machine with the engine, so it is a protocol without
layers: bytes come in and are cut into server-sent events. Where a pace is set, the first words are handed over at once
and those after them in steps of `PACE_S`, all that came meanwhile together: more often than eyes can follow, and less
often than a fast model makes tokens, each of which would stop the engine's threads for as long as handing it on takes.
Closing the connection is how the engine learns that an answer is not wanted any more.
"""

import asyncio
import json
import socket
import struct
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, cast

from sizewise.core.errors import EngineFailed

PACE_S = 0.025
_MOST_HEAD = 1 << 16
_ENDS = (b'"stop":true', b"[DONE]")  # what the last event of an answer holds: it never waits


class Refused(Exception):
    """The engine answers with an error; `status` and its words."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status, self.message = status, message


class Broken(EngineFailed):
    """The connection ended in the middle: most likely the engine's process did."""


class Upstream:
    """The address of one engine."""

    def __init__(self, host: str, port: int, key: str, pace_s: float = 0.0) -> None:
        """`pace_s`: least seconds between words of one answer, except for its first and its last; see above."""
        self._host, self._port, self._pace_s = host, port, pace_s
        self._head = (
            f"Host: {host}:{port}\r\nAuthorization: Bearer {key}\r\nContent-Type: application/json\r\n"
            "Connection: close\r\n"
        )

    async def ask(self, path: str, body: dict[str, Any] | None = None) -> Any:
        """The JSON answer to one request; without a body, to a GET.

        Raises:
            Refused: the engine says no.
            Broken: the engine is gone.
        """
        exchange = await self._send(path, body)
        try:
            return json.loads(await exchange.whole())
        except ValueError as error:
            raise EngineFailed("the engine's answer is no JSON") from error
        finally:
            exchange.abort()

    async def stream(self, path: str, body: dict[str, Any]) -> AsyncGenerator[list[bytes], None]:
        """The data of the server-sent events that answer a request, in lists of those that came together.

        Raises:
            Refused: the engine says no.
            Broken: the engine is gone, or ends the stream before it is over.
        """
        exchange = await self._send(path, body)
        try:
            while events := await exchange.events():
                yield events
        finally:
            exchange.abort()

    async def _send(self, path: str, body: dict[str, Any] | None) -> "_Exchange":
        data = b"" if body is None else json.dumps(body, ensure_ascii=False).encode("utf-8", "replace")
        head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\n{self._head}Content-Length: {len(data)}\r\n\r\n"
        loop = asyncio.get_running_loop()
        try:
            new = partial(_Exchange, self._pace_s)
            transport, exchange = await loop.create_connection(new, self._host, self._port)
        except OSError as error:
            raise Broken("the engine takes no connections any more") from error
        transport.write(head.encode() + data)
        return exchange


class _Exchange(asyncio.Protocol):
    """One request's answer as it comes: head, then chunks or bytes of a known number, then the end."""

    def __init__(self, pace_s: float) -> None:
        self.status = 0
        self._pace_s = pace_s
        self._raw = bytearray()  # what came and is not understood yet
        self._body = bytearray()  # without the marks of chunks
        self._chunked = False
        self._left = -1  # bytes of the body, or of the chunk, that are still to come; -1: unknown
        self._ended = False
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport | None = None
        self._handed_s = 0.0  # when words were last handed over
        self._timer: asyncio.TimerHandle | None = None  # runs while something waits to be

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        # uvloop's transports do what asyncio's do without being instances of them: never ask for the class.
        self._transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        """Called by the loop: cut what came and wake the reader, unless it was woken just before."""
        self._raw += data
        loop = asyncio.get_running_loop()
        wait_s = self._handed_s + self._pace_s - loop.time() if self._pace_s and self._handed_s else 0.0
        if wait_s <= 0 or any(end in data for end in _ENDS):
            self._take()
        elif self._timer is None:
            self._timer = loop.call_later(wait_s, self._take)

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self._take()
        self._lost = True
        if self.status and not self._chunked and self._left < 0:
            self._ended = True  # an answer without a length ends with its connection
        self._wake()

    def abort(self) -> None:
        """Drop the connection at once; the engine then stops working on the request."""
        if self._transport is None:
            return
        plug = self._transport.get_extra_info("socket")
        if plug is not None and not self._lost:  # a reset instead of a polite end: the engine's next write then fails
            plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()

    async def whole(self) -> bytes:
        """The body, once it is complete."""
        while not self._ended:
            await self._more()
        if self.status != 200:
            raise Refused(self.status, reason(bytes(self._body)))
        return bytes(self._body)

    async def events(self) -> list[bytes]:
        """The next events' data: at least one, or none at the end of the answer."""
        while True:
            if self.status and self.status != 200:
                await self.whole()
            if b"\n\n" in self._body:
                *blocks, rest = self._body.split(b"\n\n")
                self._body = rest
                found = [bytes(block[6:]) for block in blocks if block.startswith(b"data: ")]
                for block in blocks:
                    if block.startswith(b"error: "):
                        raise Refused(500, reason(bytes(block[7:])))
                if found:
                    if b'"prompt_progress"' not in found[-1]:
                        self._handed_s = asyncio.get_running_loop().time()
                    return found
            elif self._ended:
                return []
            else:
                await self._more()

    async def _more(self) -> None:
        if self._lost:
            raise Broken("the connection to the engine broke")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _take(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self.status or self._read_head():
            self._read_body()
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _read_head(self) -> bool:
        end = self._raw.find(b"\r\n\r\n")
        if end < 0:
            if len(self._raw) > _MOST_HEAD:
                self.abort()
            return False
        lines = bytes(self._raw[:end]).lower().split(b"\r\n")
        del self._raw[: end + 4]
        self.status = int(lines[0].split()[1])
        for line in lines[1:]:
            name, _, value = line.partition(b":")
            if name == b"transfer-encoding" and b"chunked" in value:
                self._chunked = True
            elif name == b"content-length":
                self._left = int(value)
        return True

    def _read_body(self) -> None:
        if not self._chunked:
            self._body += self._raw
            self._raw.clear()
            self._ended = 0 <= self._left <= len(self._body)
            return
        raw, at = self._raw, 0
        while not self._ended:
            line = raw.find(b"\r\n", at)
            if line < 0:
                break
            size = int(raw[at:line].split(b";")[0] or b"0", 16)
            if len(raw) < line + 4 + size:  # the size, its line's end, the chunk and that one's end
                break
            self._body += raw[line + 2 : line + 2 + size]
            at = line + 4 + size
            self._ended = size == 0
        del raw[:at]


def reason(body: bytes) -> str:
    """The engine's own words, in one line."""
    text = body.decode("utf-8", "replace").strip()
    try:
        error = json.loads(text)
        error = error.get("error", error) if isinstance(error, dict) else error
    except ValueError:
        error = text
    said = error.get("message", error) if isinstance(error, dict) else error
    return " ".join(str(said).split())[:300]
