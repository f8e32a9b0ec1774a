"""The door: what every request passes before any endpoint sees it, and what ends it when its client goes.

In this order: size of the head, Host, Origin, key, type of the body, its size and pace. None of it depends on the
route, so that a new one is guarded before anybody thinks of it.
"""

import asyncio
from collections.abc import MutableMapping
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sizewise.core.errors import SizewiseError
from sizewise.serve.access_log import Log
from sizewise.serve.errors import HttpError, ending, error_answer, status_of
from sizewise.serve.requesters import Requesters
from sizewise.serve.settings import Settings

MOST_HEADERS, MOST_HEADER_BYTES = 200, 64 * 2**10
OPEN_PATHS = ("/", "/health")  # answered without a key: they say nothing of models or users
_UPLOADS = "/api/blobs/"
_WITH_BODY = ("POST", "PUT", "PATCH", "DELETE")


class _Preflight(Exception):
    """A browser asks what its page may send."""


class Traffic:
    """Requests under way, and whether the server still takes new ones."""

    def __init__(self) -> None:
        self.draining = False  # no new requests
        self.stopped = False  # those under way have been told to end
        self.tasks: set[asyncio.Task[Any]] = set()

    def stop(self) -> None:
        """End all requests under way: streams get an error as their last item, others a 503."""
        self.stopped = True
        for task in list(self.tasks):
            task.cancel()

    async def ended(self, seconds: float) -> bool:
        """Wait until no request is under way; False where some still are after `seconds`."""
        if self.tasks:
            await asyncio.wait(list(self.tasks), timeout=seconds)
        return not self.tasks


class Guard:
    """ASGI middleware around everything but the access log."""

    def __init__(self, app: ASGIApp, settings: Settings, traffic: Traffic, log: Log) -> None:
        self.app, self.settings, self.traffic, self.log = app, settings, traffic, log
        self.requesters = Requesters(settings)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Refuse a request, or run its endpoint."""
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        answer = _Answer(send)
        try:
            receive = await self._admit(scope, receive, answer)
        except _Preflight:
            await Response(status_code=204)(scope, receive, answer)
            return
        except HttpError as error:
            answer.headers.append((b"connection", b"close"))  # a body that nobody read may follow
            await error_answer(scope["path"], error)(scope, receive, answer)
            return
        except ClientDisconnect:
            scope["sizewise.gone"] = True
            return
        await self._run(scope, receive, answer)

    async def _admit(self, scope: Scope, receive: Receive, answer: "_Answer") -> Receive:
        """Check a request; returns where its body is read from."""
        headers: list[tuple[bytes, bytes]] = scope["headers"]
        size = sum(len(name) + len(value) for name, value in headers)
        if len(headers) > MOST_HEADERS or size > MOST_HEADER_BYTES or len(scope["raw_path"] or b"") > MOST_HEADER_BYTES:
            raise HttpError(431, "the request's headers are too large")
        self.requesters.check_host(headers)
        answer.headers += self.requesters.cors(headers)
        if scope["method"] == "OPTIONS" and _first(headers, b"access-control-request-method"):
            answer.headers += self.requesters.preflight(headers)
            raise _Preflight
        if scope["path"] not in OPEN_PATHS or scope["method"] not in ("GET", "HEAD"):
            self.requesters.check_key(headers)
        if self.traffic.draining and scope["path"] != "/health":
            raise ending()
        # An answer in parts is of no use here, and reading long lists of ranges would be work for nothing.
        scope["headers"] = [pair for pair in headers if pair[0] != b"range"]
        if scope["method"] not in _WITH_BODY:
            return _Replay(b"", receive)
        return await self._body(scope, receive)

    async def _body(self, scope: Scope, receive: Receive) -> Receive:
        headers = scope["headers"]
        length = _length(headers)
        if length == 0:
            return _Replay(b"", receive)
        if (_first(headers, b"content-encoding") or b"identity").lower() != b"identity":
            raise HttpError(415, "Content-Encoding: compressed bodies are not taken")
        if scope["path"].startswith(_UPLOADS):
            return _Paced(receive, self.settings.body_timeout_s)
        self.requesters.check_type(headers)
        limit = self.settings.body_limit
        if length is not None and length > limit:
            raise HttpError(413, f"the body has {length} bytes; at most {limit} are taken")
        try:
            async with asyncio.timeout(self.settings.body_timeout_s):
                return _Replay(await _read(receive, limit), receive)
        except TimeoutError as error:
            raise HttpError(408, f"the body did not arrive within {self.settings.body_timeout_s:g} s") from error

    async def _run(self, scope: Scope, receive: Receive, answer: "_Answer") -> None:
        """Run the endpoint; cancel it when the client goes, so that a model stops working for nobody."""
        task = asyncio.current_task()
        assert task is not None
        gone = False

        async def watch() -> None:
            nonlocal gone
            while (await receive())["type"] != "http.disconnect":
                pass
            gone = True
            task.cancel()

        scope["sizewise.traffic"] = self.traffic
        scope["sizewise.note"] = lambda error: self._note(scope, error)
        watcher = None if isinstance(receive, _Paced) else asyncio.ensure_future(watch())
        self.traffic.tasks.add(task)
        try:
            await self.app(scope, receive.first if isinstance(receive, _Replay) else receive, answer)
        except ClientDisconnect:
            gone = True
        except asyncio.CancelledError:
            if not gone and not self.traffic.stopped:
                raise
            task.uncancel()
            if not gone and not answer.started:
                await error_answer(scope["path"], ending())(scope, receive, answer)
        except Exception as error:  # noqa: BLE001 (an endpoint's own fault: told without its details)
            self._note(scope, error)
            if not answer.started:
                await error_answer(scope["path"], error)(scope, receive, answer)
        finally:
            scope["sizewise.gone"] = gone
            if announced := scope.get("sizewise.announced"):
                announced.settle()
            self.traffic.tasks.discard(task)
            if watcher:
                watcher.cancel()

    def _note(self, scope: MutableMapping[str, Any], error: BaseException) -> None:
        """Log a fault of ours; what the client did wrong is in the status."""
        if not isinstance(error, SizewiseError):
            self.log.fault(error, path=scope["path"][:200])
        elif status_of(error) == 500:
            self.log.write("engine", message=str(error)[:500], path=scope["path"][:200])


class _Answer:
    """`send` with the headers that every answer carries."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False
        self.headers = [(b"x-content-type-options", b"nosniff")]

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            message["headers"] = [*message.get("headers", ()), *self.headers]
        await self._send(message)


class _Replay:
    """A body that has been read: `first` gives it to the endpoint, calling this waits for the client to go."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._body: bytes | None = body
        self._receive = receive

    async def first(self) -> Message:
        """The body once, whole; then what the connection says."""
        if self._body is not None:
            body, self._body = self._body, None
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()  # the watcher reads from the connection, and cancels this
        raise AssertionError

    async def __call__(self) -> Message:
        return await self._receive()


class _Paced:
    """A body that an endpoint reads as it comes, and that may not stop coming."""

    def __init__(self, receive: Receive, seconds: float) -> None:
        self._receive, self._seconds, self._whole = receive, seconds, False

    async def __call__(self) -> Message:
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._seconds):
                message = await self._receive()
        except TimeoutError as error:
            raise HttpError(408, f"nothing came for {self._seconds:g} s") from error
        self._whole = not message.get("more_body", False)
        return message


async def _read(receive: Receive, limit: int) -> bytes:
    parts, size = [], 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientDisconnect
        part = message.get("body", b"")
        size += len(part)
        if size > limit:
            raise HttpError(413, f"the body has more than {limit} bytes, which is the most that is taken")
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


def _length(headers: list[tuple[bytes, bytes]]) -> int | None:
    """Bytes of the body; None where it comes in chunks; 0 where there is none."""
    told = _first(headers, b"content-length")
    if told is None:
        return None if _first(headers, b"transfer-encoding") else 0
    if not told.isdigit() or len(told) > 15:
        raise HttpError(400, "Content-Length is no number")
    return int(told)


def _first(headers: list[tuple[bytes, bytes]], name: bytes) -> bytes | None:
    return next((value for key, value in headers if key == name), None)
