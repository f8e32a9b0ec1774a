"""Ollama's endpoints that ask a model: generate, chat, and embeddings new and old."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.core.errors import EngineFailed, TooLong
from sizewise.core.model import Model
from sizewise.serve.body import BadField, Fields
from sizewise.serve.errors import HttpError
from sizewise.serve.job import Done, Job, Piece
from sizewise.serve.lease import Lease
from sizewise.serve.manager import Manager
from sizewise.serve.routes.common import json_answer, manager_of, ndjson, read_fields
from sizewise.serve.session import Session
from sizewise.serve.wire.ollama import (
    Ask,
    EmbedAsk,
    job_of,
    read_chat,
    read_embed,
    read_embeddings,
    read_generate,
)
from sizewise.serve.wire.ollama_answer import Answer, embed_body

MOST_INPUTS = 4096


async def generate(request: Request) -> Response:
    """POST /api/generate: continue a prompt."""
    return await _answer(request, read_generate)


async def chat(request: Request) -> Response:
    """POST /api/chat: the next message of a conversation."""
    return await _answer(request, read_chat)


async def embed(request: Request) -> Response:
    """POST /api/embed: vectors of one text or of several."""
    start = time.monotonic()
    fields = await read_fields(request)
    ask = read_embed(fields)
    vectors, counts, lease = await _vectors(manager_of(request), ask, fields)
    body = embed_body(ask.model, vectors, sum(counts), time.monotonic() - start, lease.load_s)
    return json_answer(body, fields.warnings)


async def embeddings(request: Request) -> Response:
    """POST /api/embeddings: the older form, the vector of one text."""
    fields = await read_fields(request)
    vectors, _, _ = await _vectors(manager_of(request), read_embeddings(fields), fields)
    return json_answer({"embedding": vectors[0] if vectors else []}, fields.warnings)


async def _answer(request: Request, read: Callable[[Fields], Ask]) -> Response:
    start = time.monotonic()
    manager = manager_of(request)
    ask = read(await read_fields(request))
    if ask.template and not manager.settings.dev:
        raise BadField("template", "a template in a request is a program; refused unless the server runs with --dev")
    model = await asyncio.to_thread(manager.find, ask.model)
    warnings = [*ask.warnings, *_beyond(ask, model)]
    answer = Answer(ask.kind, ask.model, warnings)
    if ask.only_loads:
        return await _load(manager, ask, answer, start)
    lines = _lines(manager, ask, job_of(ask, model), answer, start)
    if ask.stream:
        return ndjson(lines, warnings)
    return await _whole(manager, ask, job_of(ask, model), answer, start)


async def _load(manager: Manager, ask: Ask, answer: Answer, start: float) -> Response:
    """Load the model without asking it anything, or unload it."""
    if ask.unloads:
        await manager.unload(ask.model)
        return _json(answer.loaded("unload", total_s=time.monotonic() - start, load_s=0.0))
    async with _lease(manager, ask) as lease:
        return _json(answer.loaded("load", total_s=time.monotonic() - start, load_s=lease.load_s))


async def _lines(manager: Manager, ask: Ask, job: Job, answer: Answer, start: float) -> AsyncIterator[dict[str, Any]]:
    """The answer, line by line. The lease ends with the iterator, however that ends."""
    async with _lease(manager, ask) as lease, aclosing(lease.stream(job)) as events:
        async for event in events:
            if isinstance(event, Piece):
                yield answer.line(event)
            else:
                yield answer.last(event, total_s=time.monotonic() - start, load_s=lease.load_s)


async def _whole(manager: Manager, ask: Ask, job: Job, answer: Answer, start: float) -> Response:
    """The answer in one object."""
    pieces: list[Piece] = []
    done: Done | None = None
    async with _lease(manager, ask) as lease, aclosing(lease.stream(job)) as events:
        async for event in events:
            if isinstance(event, Piece):
                pieces.append(event)
            else:
                done = event
    if done is None:
        raise EngineFailed(f"{ask.model}: the engine's answer ended in the middle")
    return _json(answer.whole(pieces, done, total_s=time.monotonic() - start, load_s=lease.load_s))


async def _vectors(manager: Manager, ask: EmbedAsk, fields: Fields) -> tuple[list[list[float]], list[int], Lease]:
    """Vectors of length 1, cut to `dimensions` first where that is asked, and the tokens of each text."""
    if len(ask.texts) > MOST_INPUTS:
        raise HttpError(413, f"input: {len(ask.texts)} texts in one request; at most {MOST_INPUTS} are taken")
    async with manager.lease(ask.model, context=ask.num_ctx, keep_alive=ask.keep_alive) as lease:
        if not ask.texts:
            return [], [], lease
        found, counts, cut = await lease.run(lambda session: _embedded(session, ask))
    if cut:  # cut texts have as many tokens as fit, and no text has more
        fields.warn(f"input: what did not fit was cut: only the first {max(counts)} tokens of a text count")
    wide = found.shape[1]
    if ask.dimensions is not None and ask.dimensions > wide:
        raise BadField("dimensions", f"is {ask.dimensions}; the model's vectors have {wide}")
    return await asyncio.to_thread(_cut, found, ask.dimensions), counts, lease


async def _embedded(session: Session, ask: EmbedAsk) -> tuple[Any, list[int], bool]:
    """Vectors, tokens of each text, and whether one was cut: that is told, so the whole texts are tried first."""
    try:
        return *(await session.embed(ask.texts, truncate=False)), False
    except TooLong:
        if not ask.truncate:
            raise
    return *(await session.embed(ask.texts, truncate=True)), True


def _cut(vectors: Any, dimensions: int | None) -> list[list[float]]:
    import numpy as np

    if dimensions is not None:
        vectors = vectors[:, :dimensions]
        vectors = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
    made: list[list[float]] = vectors.tolist()
    return made


def _lease(manager: Manager, ask: Ask) -> Lease:
    return manager.lease(ask.model, context=ask.num_ctx, keep_alive=ask.keep_alive)


def _beyond(ask: Ask, model: Model) -> list[str]:
    """A warning where a larger context is asked for than the model was trained with."""
    own = model.context_length
    if ask.num_ctx and own and ask.num_ctx > own:
        return [f"options.num_ctx is {ask.num_ctx}; the model's own context is {own}, and that is used"]
    return []


def _json(body: dict[str, Any]) -> Response:
    return json_answer(body, body.pop("warnings", ()))


ROUTES = [
    Route("/api/generate", generate, methods=["POST"]),
    Route("/api/chat", chat, methods=["POST"]),
    Route("/api/embed", embed, methods=["POST"]),
    Route("/api/embeddings", embeddings, methods=["POST"]),
]
