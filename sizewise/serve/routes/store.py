"""Ollama's endpoints that change the store: create, blobs, pull, push. Nothing here takes a path or a URL."""

import asyncio
import hashlib
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from pathlib import Path
from typing import Any, BinaryIO

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.core.errors import DigestMismatch, Unreachable, UsageError
from sizewise.core.events import Listener, Progress
from sizewise.core.model import Model
from sizewise.core.references import DEFAULT_HOST, is_loopback, parse_name
from sizewise.core.requests import Message, Role
from sizewise.load.create import CONFIG, Parts, create
from sizewise.load.home import registries
from sizewise.load.modelfile import VERSION
from sizewise.load.parameters import check_parameters
from sizewise.load.pull import here, pull, without_scheme
from sizewise.load.push import push
from sizewise.load.store import atomic
from sizewise.load.store.layout import check_digest, check_file_name
from sizewise.load.store.store import Store
from sizewise.serve.background import Finished, running
from sizewise.serve.body import BadField, Fields
from sizewise.serve.quantizing import quantizer
from sizewise.serve.routes.common import json_answer, manager_of, ndjson, read_fields
from sizewise.serve.settings import Settings
from sizewise.serve.wire.ollama import read_model

_ROLES: tuple[Role, ...] = ("system", "user", "assistant")
_MOST_TEXT = 4_000_000
_WRITE_BYTES = 1 << 20
Work = Callable[[Listener], Any]


async def create_model(request: Request) -> Response:
    """POST /api/create: a model from another one, or from uploaded blobs."""
    fields, store = await read_fields(request), manager_of(request).store
    name, stream = _name(fields), fields.boolean("stream", True)
    parts, kind = _parts(fields, store)
    fields.without_effect(("info",))
    fields.finish()
    parse_name(name)
    packer = quantizer(kind) if kind else None
    base = _allowed(parts.base, request.app.state.settings, insecure=False) if parts.base else ""

    def work(listen: Listener) -> Model:
        parts.base = here(base, store, listen=listen).name if base else ""
        return create(name, parts, store, quantizer=packer, listen=listen)

    return await _answer(work, stream, fields.warnings, before=(), after=())


async def has_blob(request: Request) -> Response:
    """HEAD /api/blobs/{digest}."""
    path = manager_of(request).store.blob(check_digest(request.path_params["digest"]))
    return Response(status_code=200 if path.is_file() else 404)


async def add_blob(request: Request) -> Response:
    """POST /api/blobs/{digest}: the bytes of that digest."""
    store, digest = manager_of(request).store, check_digest(request.path_params["digest"])
    if store.blob(digest).is_file():
        async for _ in request.stream():  # a connection closed before its body was read looks broken to clients
            pass
        return Response(status_code=200)
    length = request.headers.get("content-length", "")
    if length.isdecimal():
        await asyncio.to_thread(atomic.require_space, store.layout.blobs, int(length))
    await _keep(request.stream(), digest, store)
    return Response(status_code=201)


async def pull_model(request: Request) -> Response:
    """POST /api/pull: from the catalogue, or from a registry that is allowed."""
    fields, store = await read_fields(request), manager_of(request).store
    name, stream, insecure = _name(fields), fields.boolean("stream", True), fields.boolean("insecure", False)
    fields.without_effect(("username", "password"))
    fields.finish()
    asked = _allowed(name, request.app.state.settings, insecure=insecure)

    def work(listen: Listener) -> Model:
        try:
            return pull(asked, store=store, insecure=insecure, listen=listen)
        except DigestMismatch as error:
            raise Unreachable(str(error)) from error  # the fault lies there, not in the request

    after = ("verifying sha256 digest", "writing manifest")
    return await _answer(work, stream, fields.warnings, before=("pulling manifest",), after=after)


async def push_model(request: Request) -> Response:
    """POST /api/push: to the registry in the model's name."""
    fields, store = await read_fields(request), manager_of(request).store
    name, stream, insecure = _name(fields), fields.boolean("stream", True), fields.boolean("insecure", False)
    fields.without_effect(("username", "password"))
    fields.finish()
    asked = _allowed(name, request.app.state.settings, insecure=insecure)

    def work(listen: Listener) -> Any:
        return push(asked, store=store, insecure=insecure, listen=listen)

    return await _answer(work, stream, fields.warnings, before=(), after=())


ROUTES = [
    Route("/api/create", create_model, methods=["POST"]),
    Route("/api/blobs/{digest}", has_blob, methods=["HEAD"]),
    Route("/api/blobs/{digest}", add_blob, methods=["POST"]),
    Route("/api/pull", pull_model, methods=["POST"]),
    Route("/api/push", push_model, methods=["POST"]),
]


def _name(fields: Fields) -> str:
    """`model`, or `name` as older clients call it."""
    older: str = fields.text("name", "", most=1000)
    return older if older and not fields.raw("model") else read_model(fields)


def _allowed(name: str, settings: Settings, *, insecure: bool) -> str:
    """The name, if its host is one that a caller may send us to.

    Raises:
        UsageError: it is no name, or its host is not among those that are configured.
    """
    parsed = parse_name(without_scheme(name, insecure))
    ours = settings.loopback and is_loopback(parsed.host.partition(":")[0])
    if parsed.host != DEFAULT_HOST and not ours and parsed.host not in registries():
        raise UsageError(f"{parsed.host}: is not among the registries that SIZEWISE_REGISTRIES allows")
    return str(parsed)


def _parts(fields: Fields, store: Store) -> tuple[Parts, str]:
    """What the model is made of, and the type to quantize to, if any."""
    parts = Parts(
        base=fields.text("from", "", most=1000),
        files=_blobs(fields, "files", store),
        adapters=_blobs(fields, "adapters", store),
        template=fields.text("template", "", most=_MOST_TEXT),
        system=fields.text("system", "", most=_MOST_TEXT),
        licenses=tuple(fields.strings("license", [], most=100)),
        messages=tuple(_message(fields, place) for place in range(len(fields.items("messages", [], most=10_000)))),
        config={key: value for key in CONFIG if (value := fields.text(key, "", most=100))},
    )
    if not parts.base and not parts.files:
        raise UsageError("neither 'from' nor 'files' was specified")
    if parts.base and parts.files:
        raise UsageError("both 'from' and 'files' were specified; a model is made from one of them")
    if "requires" in parts.config and not VERSION.fullmatch(parts.config["requires"]):
        raise BadField("requires", f"is {parts.config['requires']!r}; expected a version such as 0.14.0")
    parts.parameters, warnings = check_parameters(fields.mapping("parameters", {}))
    for text in (*warnings, *(f"{key} is kept for Ollama and has no effect here" for key in parts.config)):
        if not text.startswith("requires"):
            fields.warn(text)
    return parts, fields.text("quantize", "", most=100) or fields.text("quantization", "", most=100)


def _blobs(fields: Fields, key: str, store: Store) -> dict[str, Path]:
    """File name -> path of the uploaded blob."""
    found = {}
    for title, digest in fields.mapping(key, {}).items():
        path = store.blob(check_digest(digest))
        if not path.is_file():
            raise BadField(f"{key}.{title[:80]}", f"{digest} is not here; upload it to /api/blobs first")
        found[check_file_name(title)] = path
    return found


def _message(fields: Fields, place: int) -> Message:
    item = fields.items("messages")[place]
    if not isinstance(item, dict):
        raise BadField(f"messages[{place}]", "must be an object")
    message = Fields(item, f"messages[{place}]")
    role: Role = message.choice("role", _ROLES)
    made = Message(role, message.text("content", "", most=_MOST_TEXT))
    message.finish()
    return made


async def _answer(
    work: Work, stream: bool, warnings: list[str], *, before: tuple[str, ...], after: tuple[str, ...]
) -> Response:
    """Run the work; its progress line by line, or the end alone."""
    if stream:
        return ndjson(_lines(work, warnings, before, after), warnings)
    async for event in running(work):
        if isinstance(event, Finished):
            warnings += [text for text in getattr(event.value, "warnings", ()) if text not in warnings]
    return json_answer({"status": "success"}, warnings)


async def _lines(
    work: Work, warnings: list[str], before: tuple[str, ...], after: tuple[str, ...]
) -> AsyncGenerator[dict[str, Any], None]:
    """Status lines as Ollama writes them. The first waits for the work to begin: until then errors have a status."""
    events = running(work)
    first = await anext(events)
    try:
        for text in before:
            yield {"status": text}
        if isinstance(first, Progress):
            yield _line(first)
        async for event in events:
            first = event
            if isinstance(event, Progress):
                yield _line(event)
    finally:
        await events.aclose()
    for text in after:
        yield {"status": text}
    value = first.value if isinstance(first, Finished) else None
    warnings = [*warnings, *(text for text in getattr(value, "warnings", ()) if text not in warnings)]
    yield {"status": "success"} | ({"warnings": warnings} if warnings else {})


def _line(event: Progress) -> dict[str, Any]:
    line: dict[str, Any] = {"status": event.what}
    if event.unit == "bytes" and event.total:
        line |= ({"digest": event.digest} if event.digest else {}) | {"total": int(event.total)}
        line["completed"] = int(event.done)
    return line


async def _keep(chunks: AsyncIterator[bytes], digest: str, store: Store) -> None:
    """Write an upload to a file of its own, and give it its name when all of it is there and right.

    Raises:
        DigestMismatch: the bytes have another digest; nothing is kept.
        DiskFull: there is no room; nothing is kept.
    """
    folder = store.layout.blobs
    temp = atomic.temporary(folder)
    sha = hashlib.sha256()

    def write(file: BinaryIO, data: bytes) -> None:
        sha.update(data)
        file.write(data)

    def finish(file: BinaryIO) -> None:
        file.flush()
        os.fsync(file.fileno())
        if "sha256:" + sha.hexdigest() != digest:
            raise DigestMismatch(f"digest mismatch: the bytes have sha256:{sha.hexdigest()}, not {digest}")
        atomic.publish(temp, store.blob(digest))

    with atomic.storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        try:
            with temp.open("xb") as file:
                waiting = b""
                async for chunk in chunks:
                    waiting += chunk
                    if len(waiting) >= _WRITE_BYTES:
                        await asyncio.to_thread(write, file, waiting)
                        waiting = b""
                await asyncio.to_thread(write, file, waiting)
                await asyncio.to_thread(finish, file)
        finally:
            temp.unlink(missing_ok=True)
