"""One line of JSON for each request and each fault of ours, on stderr or in a file. Never a prompt or a key."""

import json
import sys
import time
import traceback
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, TextIO

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from sizewise.serve.metrics import Metrics

GONE = 499  # the client went before the answer ended


class Log:
    """Writes lines. JSON escapes what could end a line or drive a terminal."""

    def __init__(self, file: TextIO | None = None, *, dev: bool = False) -> None:
        self._file, self.dev = file, dev

    def write(self, event: str, **fields: Any) -> None:
        """One event."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        line = json.dumps({"time": now, "event": event, **fields})
        print(line, file=self._file or sys.stderr, flush=True)

    def fault(self, error: BaseException, **fields: Any) -> None:
        """A fault of ours: where it arose, and its whole way in development."""
        last = traceback.extract_tb(error.__traceback__)[-1:]
        where = f"{last[0].name}:{last[0].lineno}" if last else ""
        more = {"trace": traceback.format_exception(error)} if self.dev else {}
        self.write("fault", error=type(error).__name__, message=str(error)[:300], where=where, **fields, **more)


class AccessLog:
    """Outermost layer: times every request."""

    def __init__(self, app: ASGIApp, log: Log, metrics: Metrics, templates: Mapping[Any, str]) -> None:
        self.app, self.log, self.metrics, self.templates = app, log, metrics, templates

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on, and note how it ended."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status, size = time.monotonic(), 0, 0

        async def note(message: Message) -> None:
            nonlocal status, size
            if message["type"] == "http.response.start":
                status = message["status"]
            else:
                size += len(message.get("body", b""))
            await send(message)

        try:
            await self.app(scope, receive, note)
        finally:
            seconds = time.monotonic() - start
            shown = GONE if scope.get("sizewise.gone") else status or GONE
            self.metrics.finished(self.templates.get(scope.get("endpoint"), "other"), shown, seconds)
            client = scope.get("client")
            self.log.write(
                "request",
                method=scope["method"],
                path=scope["path"][:200],
                status=shown,
                ms=round(seconds * 1e3, 1),
                bytes=size,
                client=client[0] if client else None,
                model=scope.get("sizewise.model"),
            )
