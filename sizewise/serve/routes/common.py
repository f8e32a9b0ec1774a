"""What all endpoints share: reading a body, and answers in one piece or as a stream."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from sizewise.serve.admission import ANNOUNCED
from sizewise.serve.body import Fields, parse_json
from sizewise.serve.errors import ending, error_answer, error_body
from sizewise.serve.manager import Manager

Item = dict[str, Any] | bytes | tuple[str, dict[str, Any]]
WARNING = "X-Sizewise-Warning"
_QUESTIONS = ("prompt", "messages", "input", "query", "questions")  # what asks a model has one of these
_SMALL_BODY = 64 * 2**10
_encoder = json.JSONEncoder(separators=(",", ":"), allow_nan=False)  # made once: this runs for each token


async def read_fields(request: Request) -> Fields:
    """The body as fields to be read strictly.

    Raises:
        UsageError: it is no JSON object.
        Busy: it asks a model whose queue is full.
    """
    data = await request.body()
    # A large body takes long to read, and other requests are to go on meanwhile.
    body = parse_json(data) if len(data) <= _SMALL_BODY else await asyncio.to_thread(parse_json, data)
    if isinstance(body.get("model"), str):
        request.scope["sizewise.model"] = body["model"][:200]  # for the access log
        if any(body.get(name) for name in _QUESTIONS):
            request.scope["sizewise.announced"] = announced = manager_of(request).announce(body["model"])
            ANNOUNCED.set(announced)
    return Fields(body)


def manager_of(request: Request) -> Manager:
    """The manager of the server that got this request."""
    found: Manager = request.app.state.manager
    return found


def dump(value: Any) -> bytes:
    """JSON in one line, ASCII only: some clients split lines at characters that JSON leaves as they are."""
    return _encoder.encode(value).encode()


def json_answer(body: dict[str, Any], warnings: Sequence[str] = (), status: int = 200) -> Response:
    """An answer in one piece; warnings go into its body and its header."""
    if warnings:
        body = {**body, "warnings": list(warnings)}
    return Response(dump(body), status, warning_headers(warnings), "application/json")


def warning_headers(warnings: Iterable[str]) -> dict[str, str]:
    """The header that repeats the body's warnings."""
    text = "; ".join(" ".join(warning.split()) for warning in warnings)
    return {WARNING: text.encode("ascii", "backslashreplace").decode()[:2000]} if text else {}


def ndjson(items: AsyncIterator[Item], warnings: Sequence[str] = ()) -> "Stream":
    """One JSON object in each line. An error after the first line becomes the last one."""
    return Stream(items, "application/x-ndjson", _line, warnings)


def sse(items: AsyncIterator[Item], warnings: Sequence[str] = ()) -> "Stream":
    """Server-sent events: an object, a named one (name, object), or bytes as they are, such as `b"[DONE]"`."""
    return Stream(items, "text/event-stream", _event, warnings)


def _line(item: Item) -> bytes:
    return item if isinstance(item, bytes) else dump(item) + b"\n"


def _event(item: Item) -> bytes:
    if isinstance(item, bytes):
        return b"data: " + item + b"\n\n"
    if isinstance(item, tuple):
        return b"event: " + item[0].encode() + b"\ndata: " + dump(item[1]) + b"\n\n"
    return b"data: " + dump(item) + b"\n\n"


class Stream(Response):
    """A streamed answer.

    Nothing is sent before the first item is there, so that an error until then has a status of its own; later errors
    become the stream's last item, in the envelope of the path. The iterator is closed however the stream ends.
    """

    def __init__(
        self,
        items: AsyncIterator[Item],
        media_type: str,
        encode: Callable[[Item], bytes],
        warnings: Sequence[str] = (),
    ) -> None:
        super().__init__(None, 200, warning_headers(warnings), media_type)
        del self.headers["content-length"]
        self.headers["cache-control"] = "no-cache"
        self.headers["x-accel-buffering"] = "no"
        self._items, self._encode = items, encode

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; see the class."""
        path = scope["path"]
        try:
            try:
                first = await anext(self._items, None)
            except Exception as error:  # noqa: BLE001 (whatever it is, the client gets its envelope)
                _note(scope, error)
                await error_answer(path, error)(scope, receive, send)
                return
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            try:
                if first is not None:
                    await _send(send, self._encode(first))
                    async for item in self._items:
                        await _send(send, self._encode(item))
            except Exception as error:  # noqa: BLE001 (the same, after the first byte)
                _note(scope, error)
                await _send(send, self._last(path, error))
            except asyncio.CancelledError:
                if not _stopped(scope):
                    raise
                await _send(send, self._last(path, ending()))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        finally:
            await _close(self._items)

    def _last(self, path: str, error: BaseException) -> bytes:
        body = error_body(path, error)
        return self._encode(("error", body) if body.get("type") == "error" else body)


async def _send(send: Send, data: bytes) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": True})


async def _close(items: AsyncIterator[Item]) -> None:
    close: Callable[[], Awaitable[None]] | None = getattr(items, "aclose", None)
    if close:
        with contextlib.suppress(RuntimeError):  # it is running: the task that ran it was cancelled and will end it
            await close()


def _stopped(scope: Scope) -> bool:
    """True where it is the server that ends this stream, and not its client."""
    traffic, task = scope.get("sizewise.traffic"), asyncio.current_task()
    if traffic is None or task is None or not traffic.stopped:
        return False
    task.uncancel()
    return True


def _note(scope: Scope, error: BaseException) -> None:
    note = scope.get("sizewise.note")
    if note:
        note(error)
