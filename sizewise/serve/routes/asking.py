"""How the endpoints ask a model: one lease for each job, several jobs of one request at the same time."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing

from sizewise.serve.job import Event, Job
from sizewise.serve.manager import Lease, Manager
from sizewise.serve.wire.openai import Asked

_WAITING = 64  # events that may wait for a slow client


def lease(manager: Manager, asked: Asked) -> Lease:
    """A hold on the model that a request names."""
    return manager.lease(asked.model, context=asked.context, keep_alive=asked.keep_alive)


async def ask(manager: Manager, asked: Asked, jobs: Sequence[Job]) -> AsyncGenerator[tuple[int, Event], None]:
    """The events of some jobs as they come, each with its job's place."""
    if len(jobs) == 1:
        async with aclosing(_events(manager, asked, jobs[0])) as events:
            async for event in events:
                yield 0, event
        return
    starts = [lambda job=job: _events(manager, asked, job) for job in jobs]
    async with aclosing(together(starts)) as pairs:
        async for pair in pairs:
            yield pair


async def _events(manager: Manager, asked: Asked, job: Job) -> AsyncGenerator[Event, None]:
    async with lease(manager, asked) as held, aclosing(held.stream(job)) as events:
        async for event in events:
            yield event


async def together(
    starts: Sequence[Callable[[], AsyncGenerator[Event, None]]],
) -> AsyncGenerator[tuple[int, Event], None]:
    """Several streams as one. The first error ends them all, and so does closing the iterator."""
    queue: asyncio.Queue[tuple[int, Event | Exception | None]] = asyncio.Queue(_WAITING)

    async def pump(index: int, start: Callable[[], AsyncGenerator[Event, None]]) -> None:
        try:
            async with aclosing(start()) as events:
                async for event in events:
                    await queue.put((index, event))
        except Exception as error:  # noqa: BLE001 (it is raised again by the reader)
            await queue.put((index, error))
        else:
            await queue.put((index, None))

    tasks = [asyncio.ensure_future(pump(index, start)) for index, start in enumerate(starts)]
    try:
        left = len(tasks)
        while left:
            index, item = await queue.get()
            if item is None:
                left -= 1
            elif isinstance(item, Exception):
                raise item
            else:
                yield index, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
