"""HTTP to a server that runs models: keys, patience and what each failure means. No wire format in here.

A key is read from the environment when it is needed, goes only over https or to this machine (or to the very host that
its variable names), and is never part of a message. `SIZEWISE_ENDPOINT_KEY` is not `SIZEWISE_API_KEY`: that one opens
our own server (`serve/settings.py`), and must not be sent to others.
"""

import email.utils
import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlsplit

import httpx

from sizewise.core.errors import EngineFailed, SizewiseError, Unreachable, UsageError

PATIENCE_S = 120.0  # the longest silence: a large prompt may take that long before its first token
RETRIES = 4
_BUSY = frozenset({408, 425, 429, 500, 502, 503, 504, 529})
_LONGEST_WAIT_S = 60.0
_LONGEST_LINE = 64_000_000


class NotFound(UsageError):
    """The server has no such model or path; which of the two, the caller knows better."""


class Refused(UsageError):
    """The server understood the request and does not accept it; `detail` is its own reason."""

    def __init__(self, message: str, detail: str) -> None:
        super().__init__(message)
        self.detail = detail


class Endpoint:
    """One server. Safe to use from several threads."""

    def __init__(self, url: str, key_variable: str, patience_s: float = PATIENCE_S) -> None:
        """`url`: what paths are appended to; `key_variable`: the variable that usually holds this kind of key."""
        self.url = url.rstrip("/")
        split = urlsplit(url)
        self.host = split.hostname or ""
        self.local = self.host in ("localhost", "::1") or self.host.startswith("127.")
        own = "SIZEWISE_ENDPOINT_KEY_" + re.sub(r"[^A-Z0-9]", "_", self.host.upper())
        self.variables = (own, "SIZEWISE_ENDPOINT_KEY", key_variable)
        private = self.local or split.scheme == "https"
        usable = self.variables if private else (own,)
        self._key = next((os.environ[name] for name in usable if os.environ.get(name)), "")
        headers = {"Authorization": f"Bearer {self._key}"} if self._key else {}
        timeout = httpx.Timeout(patience_s, connect=min(10.0, patience_s))
        self._patience_s = patience_s
        # a proxy from the environment is for other machines
        self._client = httpx.Client(headers=headers, timeout=timeout, trust_env=not self.local)
        self._closed = threading.Event()

    def close(self) -> None:
        """Drop all connections; requests that still run fail."""
        self._closed.set()
        self._client.close()

    def get(self, path: str) -> dict[str, Any]:
        """The JSON object at `path`."""
        return self._whole("GET", path, None)

    def post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        """The JSON object that answers `body`.

        Raises:
            EngineFailed: the server broke, or its answer is no JSON object.
            NotFound: 404.
            Refused: the request is not accepted.
            Unreachable: nobody answers, or only to say that it is busy.
            UsageError: the key is missing or wrong.
        """
        return self._whole("POST", path, body)

    @contextmanager
    def stream(self, path: str, body: dict[str, Any]) -> Iterator[Iterator[str]]:
        """The lines of a streamed answer, without empty ones; errors as in `post`."""
        with self._answer("POST", path, body) as response:
            yield self._lines(response)

    def parse(self, text: str) -> dict[str, Any]:
        """A JSON object from the server.

        Raises:
            EngineFailed: it is none.
        """
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            value = None
        if not isinstance(value, dict):
            raise EngineFailed(f"{self.url}: sent something that is no JSON object: {self._plain(text)[:80]!r}")
        return value

    def failure(self, error: Any) -> EngineFailed:
        """What an error in the middle of a good answer means."""
        return EngineFailed(f"{self.url}: failed while answering: {self._plain(_reason(error))}")

    def _whole(self, method: str, path: str, body: dict[str, Any] | None) -> dict[str, Any]:
        with self._answer(method, path, body) as response:
            return self.parse("\n".join(self._lines(response)))

    @contextmanager
    def _answer(self, method: str, path: str, body: dict[str, Any] | None) -> Iterator[httpx.Response]:
        """A response with status 200, asked for again while the server is busy."""
        for attempt in range(RETRIES + 1):
            try:
                response = self._client.send(
                    self._client.build_request(method, self.url + path, json=body), stream=True
                )
            except httpx.TransportError as error:
                if isinstance(error, httpx.ConnectError) or attempt == RETRIES or self._closed.is_set():
                    raise self._unreachable(error) from error
                self._wait(_backoff(attempt, None))
                continue
            try:
                if response.status_code in _BUSY and attempt < RETRIES:
                    self._wait(_backoff(attempt, response.headers.get("retry-after")))
                    continue
                if response.status_code != 200:
                    raise self._refusal(response)
                yield response
                return
            finally:
                response.close()

    def _wait(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise EngineFailed(f"{self.url}: closed")

    def _lines(self, response: httpx.Response) -> Iterator[str]:
        size = 0
        try:
            for line in response.iter_lines():
                size += len(line)
                if size > _LONGEST_LINE:
                    raise EngineFailed(f"{self.url}: sent more than {_LONGEST_LINE} characters in one answer")
                if line.strip():
                    yield line
        except (httpx.TransportError, httpx.StreamError) as error:
            reason = self._plain(str(error)) or type(error).__name__
            raise EngineFailed(f"{self.url}: the answer broke off: {reason}") from error

    def _unreachable(self, error: httpx.TransportError) -> Unreachable:
        if isinstance(error, httpx.TimeoutException):
            return Unreachable(f"{self.url}: no answer within {self._patience_s:.0f} s; is the server overloaded?")
        reason = self._plain(str(error)) or type(error).__name__
        return Unreachable(f"{self.url}: does not answer ({reason}); is the server running at this address?")

    def _refusal(self, response: httpx.Response) -> SizewiseError:
        """What a status other than 200 means."""
        try:
            text = response.read().decode("utf-8", "replace")
        except httpx.TransportError:
            text = ""
        status = response.status_code
        try:
            detail = self._plain(_reason(json.loads(text)))
        except (ValueError, RecursionError):
            detail = self._plain(text)
        says = f": {detail}" if detail else ""
        if status in (401, 403):
            names = f"{self.variables[-1]} or {self.variables[1]}"
            state = "does not accept the key" if self._key else "wants a key"
            return UsageError(f"{self.url}: {state} ({status}); put it into the environment as {names}{says}")
        if status == 404:
            return NotFound(f"{self.url}: not found (404){says}")
        if 300 <= status < 400:
            target = response.headers.get("location", "elsewhere")
            return Unreachable(f"{self.url}: moved to {self._plain(target)}; use that address")
        if status in (408, 425, 429, 502, 503, 504, 529):
            return Unreachable(f"{self.url}: still busy after {RETRIES + 1} attempts ({status}); try later{says}")
        if status >= 500:
            return EngineFailed(f"{self.url}: the server failed ({status}){says}")
        return Refused(f"{self.url}: refuses the request ({status}){says}", detail)

    def _plain(self, text: str) -> str:
        """One short line without the key."""
        line = " ".join(text.split())[:300]
        return line.replace(self._key, "***") if self._key else line


def _reason(error: Any) -> str:
    """The sentence within the ways in which servers write errors."""
    for _ in range(3):
        if not isinstance(error, dict):
            break
        error = error.get("error", error.get("message", error.get("detail", "")))
    return error if isinstance(error, str) else json.dumps(error)


def _backoff(attempt: int, wanted: str | None, now: Callable[[], float] = time.time) -> float:
    """Seconds until the next attempt: what the server asks for, else 0.5, 1, 2, 4."""
    if wanted:
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", wanted.strip()):
            return min(float(wanted), _LONGEST_WAIT_S)
        try:
            then = email.utils.parsedate_to_datetime(wanted).timestamp()
            return min(max(then - now(), 0.0), _LONGEST_WAIT_S)
        except ValueError:
            pass  # no date either: as if it were not there
    return float(0.5 * 2**attempt)
