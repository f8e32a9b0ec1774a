"""OpenAI's endpoints: chat, completions, embeddings, models and responses."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from sizewise.core.errors import SizewiseError
from sizewise.core.model import Model
from sizewise.core.references import parse_name
from sizewise.serve.errors import openai_body
from sizewise.serve.job import Done, Event, Job, TokenLogprob
from sizewise.serve.manager import Manager
from sizewise.serve.routes.asking import ask, lease
from sizewise.serve.routes.common import Item, json_answer, manager_of, read_fields, sse
from sizewise.serve.session import Session
from sizewise.serve.wire import openai_chat, openai_completions, openai_embeddings, responses
from sizewise.serve.wire.openai_completions import AskedCompletion, Completion, Prompt


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    asked, manager = openai_chat.parse(await read_fields(request)), manager_of(request)
    model = await asyncio.to_thread(manager.find, asked.model)
    answer = openai_chat.Chat(asked, model, int(time.time()))
    jobs = asked.jobs(model)
    if asked.stream:
        return sse(_chat_chunks(manager, answer, jobs), asked.warnings)
    async with aclosing(ask(manager, asked, jobs)) as events:
        async for index, event in events:
            answer.add(index, event)
    return json_answer(answer.body(), asked.warnings)


async def _chat_chunks(manager: Manager, answer: openai_chat.Chat, jobs: list[Job]) -> AsyncIterator[Item]:
    async with aclosing(ask(manager, answer.asked, jobs)) as events:
        async for index, event in events:
            for chunk in answer.chunks(index, event):
                yield chunk
    for chunk in answer.end():
        yield chunk


async def completions(request: Request) -> Response:
    """POST /v1/completions."""
    asked, manager = openai_completions.parse(await read_fields(request)), manager_of(request)
    model = await asyncio.to_thread(manager.find, asked.model)
    answer = Completion(asked, model, int(time.time()))
    if asked.stream:
        return sse(_completion_chunks(manager, answer, model), asked.warnings)
    async with aclosing(_complete(manager, answer, model)) as events:
        async for index, event in events:
            answer.add(index, event)
    return json_answer(answer.body(), asked.warnings)


async def _completion_chunks(manager: Manager, answer: Completion, model: Model) -> AsyncIterator[Item]:
    async with aclosing(_complete(manager, answer, model)) as events:
        async for index, event in events:
            for chunk in answer.chunks(index, event):
                yield chunk
    for item in answer.end():
        yield item


async def _complete(manager: Manager, answer: Completion, model: Model) -> AsyncGenerator[tuple[int, Event], None]:
    asked = answer.asked
    counts = await _echo(manager, answer) if asked.echo else []
    if asked.generates:
        jobs = [job for prompt in asked.prompts for job in _for_prompt(asked, prompt, model)]
        async with aclosing(ask(manager, asked, jobs)) as events:
            async for pair in events:
                yield pair
        return
    for index, count in enumerate(counts):
        yield index, Done("length", count, 0)


def _for_prompt(asked: AskedCompletion, prompt: Prompt, model: Model) -> list[Job]:
    jobs = asked.jobs(model)
    if isinstance(prompt, str):
        return [replace(job, prompt=prompt) for job in jobs]
    return [replace(job, prompt=None, tokens=prompt) for job in jobs]


async def _echo(manager: Manager, answer: Completion) -> list[int]:
    """Put the prompts in front of the answers, with their log-probabilities where these were asked for.

    Returns:
        The number of tokens of the prompt of each answer.
    """
    asked = answer.asked

    async def read(session: Session) -> list[tuple[str, int, list[TokenLogprob]]]:
        found = []
        for prompt in asked.prompts:
            if isinstance(prompt, str):
                text, tokens = prompt, await session.tokenize(prompt, special=True, bos=True)
            else:
                text, tokens = await session.detokenize(prompt), list(prompt)
            told = [] if asked.logprobs is None else await session.prompt_logprobs(tokens, max(1, asked.logprobs))
            found.append((text, len(tokens), told))
        return found

    async with lease(manager, asked) as held:
        echoed = await held.run(read)
    for place, (text, _, told) in enumerate(echoed):
        for index in range(place * asked.n, (place + 1) * asked.n):
            answer.prompts[index], answer.prompt_logprobs[index] = text, told
    return [count for _, count, _ in echoed for _ in range(asked.n)]


async def respond(request: Request) -> Response:
    """POST /v1/responses."""
    asked, manager = responses.parse(await read_fields(request)), manager_of(request)
    model = await asyncio.to_thread(manager.find, asked.model)
    answer, job = responses.Responder(asked, model, int(time.time())), asked.jobs(model)[0]
    if asked.stream:
        return sse(_response_events(manager, asked, job, answer), asked.warnings)
    async with aclosing(ask(manager, asked, [job])) as events:
        async for _, event in events:
            for _ in answer.events(event):
                pass
    return json_answer(answer.body(), asked.warnings)


async def _response_events(
    manager: Manager, asked: responses.AskedResponse, job: Job, answer: responses.Responder
) -> AsyncIterator[Item]:
    begun = False
    try:
        async with aclosing(ask(manager, asked, [job])) as events:
            async for _, event in events:
                for told in (*(() if begun else answer.begin()), *answer.events(event)):
                    yield told
                begun = True
    except SizewiseError as error:
        if not begun:
            raise
        yield answer.fail(openai_body(error)["error"])
        return
    for told in answer.end():
        yield told


async def embeddings(request: Request) -> Response:
    """POST /v1/embeddings."""
    asked = openai_embeddings.parse(await read_fields(request))

    async def work(session: Session) -> tuple[NDArray[np.float32], list[int]]:
        texts = [text if isinstance(text, str) else await session.detokenize(text) for text in asked.inputs]
        return await session.embed(texts, truncate=False)

    async with manager_of(request).lease(asked.model, context=asked.context, keep_alive=asked.keep_alive) as held:
        vectors, counts = await held.run(work)
    shorter = openai_embeddings.shorten(vectors, asked.dimensions)
    return json_answer(openai_embeddings.body(asked, shorter, counts), asked.warnings)


async def models(request: Request) -> Response:
    """GET /v1/models."""
    store = manager_of(request).store
    data = [_listed(str(manifest.name), manifest.modified_at) for manifest in await asyncio.to_thread(store.list)]
    return json_answer({"object": "list", "data": data})


async def model(request: Request) -> Response:
    """GET /v1/models/{id}."""
    manager = manager_of(request)
    found = await asyncio.to_thread(manager.find, request.path_params["id"])
    manifest = manager.store.get(parse_name(found.name))
    return json_answer(_listed(str(manifest.name), manifest.modified_at))


def _listed(name: str, modified: float) -> dict[str, Any]:
    namespace = parse_name(name).namespace
    return {"id": name, "object": "model", "created": int(modified), "owned_by": namespace}


ROUTES = [
    Route("/v1/chat/completions", chat, methods=["POST"]),
    Route("/v1/completions", completions, methods=["POST"]),
    Route("/v1/responses", respond, methods=["POST"]),
    Route("/v1/embeddings", embeddings, methods=["POST"]),
    Route("/v1/models", models, methods=["GET"]),
    Route("/v1/models/{id:path}", model, methods=["GET"]),
]
