"""Tokenize, detokenize and count, under /v1 and under /api."""

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.serve.routes.common import json_answer, manager_of, read_fields
from sizewise.serve.session import Session
from sizewise.serve.wire import tokens as wire
from sizewise.serve.wire.tokens import AskedTokens


async def tokenize(request: Request) -> Response:
    """POST /v1/tokenize: `{"tokens": [...], "count": n}`, and with `pieces` the text of each token."""
    asked = wire.parse(await read_fields(request))
    async with manager_of(request).lease(asked.model, context=asked.context, keep_alive=asked.keep_alive) as held:
        found = await _tokens(held.session, asked)
        body = {"model": asked.model, "tokens": found, "count": len(found)}
        if asked.pieces:
            body["pieces"] = [await held.session.detokenize([token]) for token in found]
    return json_answer(body)


async def detokenize(request: Request) -> Response:
    """POST /v1/detokenize: `{"text": "..."}`."""
    asked = wire.parse_ids(await read_fields(request))
    async with manager_of(request).lease(asked.model, context=asked.context, keep_alive=asked.keep_alive) as held:
        text = await held.session.detokenize(asked.tokens)
    return json_answer({"model": asked.model, "text": text})


async def count(request: Request) -> Response:
    """POST /v1/count: `{"count": n, "context": m}`; what is left of the context is for the answer."""
    asked = wire.parse(await read_fields(request))
    async with manager_of(request).lease(asked.model, context=asked.context, keep_alive=asked.keep_alive) as held:
        found = await _tokens(held.session, asked)
        return json_answer({"model": asked.model, "count": len(found), "context": held.session.context})


async def _tokens(session: Session, asked: AskedTokens) -> list[int]:
    text = await session.render(asked.job) if asked.job else asked.text or ""
    return await session.tokenize(text, special=asked.special, bos=asked.bos)


ROUTES = [
    Route(f"/{root}/{name}", endpoint, methods=["POST"])
    for root in ("v1", "api")
    for name, endpoint in (("tokenize", tokenize), ("detokenize", detokenize), ("count", count))
]
