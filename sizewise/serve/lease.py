"""A request's hold on a loaded model: from coming into the queue until the answer has ended, however it ends."""

import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar

from sizewise.core.errors import TooLong
from sizewise.serve.admission import ANNOUNCED
from sizewise.serve.job import Done, Event, Job
from sizewise.serve.session import Session

if TYPE_CHECKING:
    from sizewise.serve.manager import Manager
    from sizewise.serve.resident import Resident

T = TypeVar("T")
_ANSWER_ROOM = 1024  # tokens left for the answer where a context grows for a long prompt
_STEP = 1024


class Unset:
    """The request said nothing about it."""


UNSET = Unset()
KeepAlive = float | None | Unset


class Lease:
    """Use it as `async with manager.lease(name) as lease`, and ask through `stream` and `run`.

    They do what the session of the same name does; where a prompt is too long for a context that nobody asked for, they
    have the model loaded again with a larger one, if the model and the memory allow it.
    """

    session: Session

    def __init__(self, manager: "Manager", name: str, context: int | None, keep_alive: KeepAlive) -> None:
        self.name = name
        self.load_s = 0.0
        self.queued_s = 0.0
        self._manager, self._context, self._keep_alive = manager, context, keep_alive
        self._resident: Resident | None = None
        self._using = False
        self._entered = 0.0

    async def __aenter__(self) -> Self:
        self._resident = resident = self._manager.resident(self.name)
        if announced := ANNOUNCED.get():
            announced.settle()
        self.queued_s = await resident.line.enter(resident.model.name)
        self._entered = time.monotonic()
        try:
            await self._use(self._context)
        except BaseException:
            self._leave()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._leave()

    async def stream(self, job: Job) -> AsyncGenerator[Event, None]:
        """The session's answer; see `Session.stream`."""
        start, first, done = time.monotonic(), 0.0, None
        with self._manager.metrics.energy(self.session, self.name):
            try:
                async with aclosing(self._events(job)) as events:
                    async for event in events:
                        first = first or time.monotonic()
                        if isinstance(event, Done):
                            done = event
                        yield event
            finally:
                self._manager.metrics.answered(self.session.model.name, start, first, done)

    async def run(self, work: Callable[[Session], Awaitable[T]]) -> T:
        """`await work(session)`, once more with a larger context where the first was too small."""
        with self._manager.metrics.energy(self.session, self.name):
            while True:
                try:
                    return await self._engine(work(self.session))
                except TooLong as error:
                    await self._grow(error)

    async def _events(self, job: Job) -> AsyncGenerator[Event, None]:
        while True:
            begun = False
            try:
                async with aclosing(self.session.stream(job)) as events:  # type: ignore[type-var]
                    while (event := await self._engine(anext(events, None))) is not None:
                        begun = True
                        yield event
                return
            except TooLong as error:
                if begun or job.truncate:
                    raise
                await self._grow(error, job.draw.max_tokens)

    async def _engine(self, work: Awaitable[T]) -> T:
        """Wait for the engine, in sight of the watch for engines that hang."""
        resident = self._resident
        assert resident is not None
        resident.begin_wait()
        try:
            return await work
        finally:
            resident.end_wait()

    async def _grow(self, error: TooLong, answer: int | None = None) -> None:
        """Load the model with a larger context, or raise the error where there is none to be had."""
        assert self._resident is not None
        most = self._resident.model.context_length or 0
        wanted = error.tokens + min(answer or _ANSWER_ROOM, 4 * _ANSWER_ROOM)
        larger = min(most, max(2 * self.session.context, -(-wanted // _STEP) * _STEP))
        if larger <= max(self.session.context, error.tokens):
            raise error
        if not await self._manager.may_grow(self._resident, self._context, larger):
            raise error
        self._stop_using()
        await self._use(larger, grown=True)

    async def _use(self, context: int | None, *, grown: bool = False) -> None:
        assert self._resident is not None
        start = time.monotonic()
        self.session = await self._manager.ready(self._resident, context, grown=grown)
        self._using = True
        self._manager.set_keep_alive(self._resident, self._keep_alive)
        self.load_s += time.monotonic() - start

    def _stop_using(self) -> None:
        if self._using and self._resident:
            self._using = False
            self._manager.give_back(self._resident)

    def _leave(self) -> None:
        """Give everything back; runs however the request ended."""
        assert self._resident is not None
        self._resident.line.leave()
        self._stop_using()
        self._manager.admission.held(time.monotonic() - self._entered)
