"""Errors as HTTP answers: the status of each, and the two envelopes that clients read."""

import re
from typing import Any

from starlette.responses import JSONResponse, Response

from sizewise.core.errors import (
    BadModel,
    Busy,
    Crashing,
    DigestMismatch,
    DiskFull,
    DoesNotFit,
    Locked,
    SizewiseError,
    StateError,
    TooLong,
    UnknownName,
    Unreachable,
    Unsafe,
    UnsafeModel,
    UsageError,
)

_STATUS: tuple[tuple[type[SizewiseError], int], ...] = (  # the first that fits counts
    (BadModel, 422),
    (UsageError, 400),
    (Busy, 503),
    (Crashing, 503),
    (Locked, 409),
    (Unreachable, 502),
    (StateError, 503),
    (DoesNotFit, 507),
    (DiskFull, 507),
    (DigestMismatch, 400),
    (UnsafeModel, 422),
    (Unsafe, 400),
)
_PATH = re.compile(r"(?<![\w:/.])(?:file://)?(?:/[^\s/:;,'\"()<>]+){2,}/?|(?<!\w)[A-Za-z]:\\[^\s;,'\"]+")
_TYPES = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 503: "overloaded_error"}


class HttpError(SizewiseError):
    """A request that is refused for its form: the status is told, the rest is in the message."""

    def __init__(self, status: int, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.headers = status, headers or {}


def ending() -> HttpError:
    """The answer to requests that come, or still run, while the server ends."""
    return HttpError(503, "the server is shutting down", {"Retry-After": "5"})


def status_of(error: BaseException) -> int:
    """The HTTP status that an error is answered with; 500 for what is nobody's fault but ours."""
    if isinstance(error, HttpError):
        return error.status
    if isinstance(error, UnknownName) and "model" in error.kind:
        return 404
    return next((status for kind, status in _STATUS if isinstance(error, kind)), 500)


def message_of(error: BaseException) -> str:
    """One line for the client: no path, no traceback, and nothing of a fault that is not ours to tell."""
    if not isinstance(error, SizewiseError):
        return "internal error; the server's log says more"
    if isinstance(error, UnknownName) and "model" in error.kind:
        hint = f"; did you mean {error.nearest!r}?" if error.nearest else ""
        return clean(f"model {error.name!r} not found, try pulling it first{hint}")
    return clean(str(error))


def clean(text: str) -> str:
    """A text in one line, without absolute paths and control characters."""
    line = " ".join(_PATH.sub(_last_part, text).split())
    return "".join(char if char.isprintable() else f"\\x{ord(char):02x}" for char in line)[:2000]


def _last_part(found: re.Match[str]) -> str:
    return re.split(r"[/\\]", found.group().rstrip("/\\"))[-1]


def ollama_body(error: BaseException) -> dict[str, Any]:
    """`{"error": "..."}`: also the line that ends a stream."""
    return {"error": message_of(error)}


def openai_body(error: BaseException) -> dict[str, Any]:
    """`{"error": {message, type, param, code}}`: also the event that ends a stream."""
    status = status_of(error)
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    code: str | None = None
    if isinstance(error, TooLong):
        code = "context_length_exceeded"
    elif isinstance(error, UnknownName) and status == 404:
        code = "model_not_found"
    elif status == 401:
        code = "invalid_api_key"
    details = {"message": message_of(error), "type": kind, "param": getattr(error, "field", None), "code": code}
    return {"error": details}


def anthropic_body(error: BaseException) -> dict[str, Any]:
    """`{"type": "error", "error": {type, message}}`."""
    status = status_of(error)
    kind = _TYPES.get(status) or ("invalid_request_error" if status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": message_of(error)}}


def ollama_error(error: BaseException) -> Response:
    """The answer to a request of Ollama's API."""
    return JSONResponse(ollama_body(error), status_of(error), headers_of(error))


def openai_error(error: BaseException) -> Response:
    """The answer to a request of OpenAI's API."""
    return JSONResponse(openai_body(error), status_of(error), headers_of(error))


def error_answer(path: str, error: BaseException) -> Response:
    """The answer in the envelope that belongs to a path."""
    return JSONResponse(error_body(path, error), status_of(error), headers_of(error))


def error_body(path: str, error: BaseException) -> dict[str, Any]:
    """The envelope that belongs to a path."""
    if path.startswith("/v1/messages"):
        return anthropic_body(error)
    return openai_body(error) if path.startswith("/v1/") and path != "/v1/systemone" else ollama_body(error)


def headers_of(error: BaseException) -> dict[str, str]:
    """`Retry-After` where waiting helps; `x-should-retry: false` where asking again cannot."""
    headers = dict(error.headers) if isinstance(error, HttpError) else {}
    wait = getattr(error, "retry_after_s", None)
    if wait is not None:
        headers["Retry-After"] = str(max(1, round(wait)))
    elif status_of(error) in (409, 507):
        headers["x-should-retry"] = "false"
    return headers
