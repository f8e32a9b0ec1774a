"""Anthropic's endpoints: messages, and the tokens that they would have."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import aclosing

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.serve.job import Job
from sizewise.serve.manager import Manager
from sizewise.serve.routes.asking import ask, lease
from sizewise.serve.routes.common import Item, json_answer, manager_of, read_fields, sse
from sizewise.serve.wire import anthropic
from sizewise.serve.wire.anthropic import AskedMessages, Messenger


async def messages(request: Request) -> Response:
    """POST /v1/messages."""
    asked, manager = anthropic.parse(await read_fields(request)), manager_of(request)
    job = asked.jobs(await asyncio.to_thread(manager.find, asked.model))[0]
    answer = Messenger(asked)
    if asked.stream:
        return sse(_events(manager, asked, job, answer), asked.warnings)
    async with aclosing(ask(manager, asked, [job])) as events:
        async for _, event in events:
            answer.add(event)
    return json_answer(answer.body(), asked.warnings)


async def _events(manager: Manager, asked: AskedMessages, job: Job, answer: Messenger) -> AsyncIterator[Item]:
    begun = False
    async with aclosing(ask(manager, asked, [job])) as events:
        async for _, event in events:
            if not begun:
                begun = True
                yield answer.begin()
            for told in answer.events(event):
                yield told


async def count_tokens(request: Request) -> Response:
    """POST /v1/messages/count_tokens."""
    asked = anthropic.parse(await read_fields(request), count=True)
    async with lease(manager_of(request), asked) as held:
        text = await held.session.render(asked.job)
        tokens = await held.session.tokenize(text, special=True, bos=True)
    return json_answer({"input_tokens": len(tokens)}, asked.warnings)


ROUTES = [
    Route("/v1/messages", messages, methods=["POST"]),
    Route("/v1/messages/count_tokens", count_tokens, methods=["POST"]),
]
