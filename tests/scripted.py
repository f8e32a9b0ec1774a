"""A session that does what a test tells it, to see what the manager does with it. No process, no model."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from sizewise.core.errors import EngineFailed, TooLong
from sizewise.core.model import Model
from sizewise.serve.job import Done, Event, Job, Piece


class ScriptedSession:
    """Answers a prompt with its own words; `hold` keeps answers from ending."""

    parallel = 2
    capabilities = frozenset(("completion",))

    def __init__(self, model: Model, context: int) -> None:
        self.model, self.context = model, context
        self.alive = True
        self.closed = False
        self.hold = asyncio.Event()
        self.hold.set()

    async def stream(self, job: Job) -> AsyncIterator[Event]:
        words = (job.prompt or "").split()
        if len(words) >= self.context:
            raise TooLong(self.model.name, len(words), self.context)
        for word in words:
            yield Piece(word)
            await asyncio.sleep(0)
        while not self.hold.is_set():
            if not self.alive:
                raise EngineFailed(f"{self.model.name}: it died")
            await asyncio.sleep(0.005)
        yield Done("stop", len(words), len(words))

    def pids(self) -> list[int]:
        return []

    async def close(self) -> None:
        self.alive, self.closed = False, True

    async def render(self, job: Job) -> str:
        return job.prompt or ""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"a test of the manager has no use for {name}")


class Opener:
    """Makes scripted sessions and remembers them."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.opened: list[ScriptedSession] = []
        self.seconds = seconds
        self.failure: Exception | None = None

    async def __call__(
        self, model: Model, *, context: int, parallel: int, threads: int | None, load_timeout: float, cache_bytes: int
    ) -> Any:
        await asyncio.sleep(self.seconds)
        if self.failure:
            raise self.failure
        self.opened.append(ScriptedSession(model, context))
        self.cache_bytes = cache_bytes
        return self.opened[-1]

    @property
    def running(self) -> list[str]:
        """Names of the models that are loaded now."""
        return sorted(session.model.name for session in self.opened if not session.closed)
