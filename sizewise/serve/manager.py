"""Loaded models: one session each, loaded on demand, kept for a while, pushed out when memory or places are wanted.

    lease -> a place in the queue -> a place at the model -> its session, loaded if it is not -> the answer -> all back

What changes a session (loading, unloading, a larger context) happens under the model's own lock, one change at a time,
and loads happen one after the other, so that memory measured before a load is true when it begins.
"""

import asyncio
import time
from collections.abc import Awaitable, Coroutine, Sequence
from typing import Any, Protocol, TypeVar

from sizewise.core.errors import EngineFailed
from sizewise.core.model import Model
from sizewise.core.references import parse_name
from sizewise.load.models import find_stored
from sizewise.load.store.store import Store
from sizewise.serve import memory
from sizewise.serve.admission import Admission, Announced
from sizewise.serve.body import BadField
from sizewise.serve.errors import ending
from sizewise.serve.lease import UNSET, KeepAlive, Lease, Unset
from sizewise.serve.metrics import Metrics
from sizewise.serve.resident import Loaded, Resident
from sizewise.serve.session import Session
from sizewise.serve.settings import Settings, parse_duration
from sizewise.serve.stalls import StallWatch

__all__ = ["UNSET", "KeepAlive", "Lease", "Loaded", "Manager"]
T = TypeVar("T")
DEFAULT_CONTEXT = 8192
LEAST_CONTEXT = 1024  # an automatic context is not made smaller than this


class Opener(Protocol):
    """How a model becomes a session."""

    def __call__(
        self, model: Model, *, context: int, parallel: int, threads: int | None, load_timeout: float, cache_bytes: int
    ) -> Awaitable[Session]: ...


async def _open(model: Model, **how: Any) -> Session:
    from sizewise.serve.opening import open_session

    return await open_session(model, **how)


class Manager:
    """All models of one server. Lives in one event loop."""

    def __init__(
        self, settings: Settings, store: Store, *, metrics: Metrics | None = None, opener: Opener = _open
    ) -> None:
        self.settings, self.store = settings, store
        self.metrics = metrics or Metrics()
        self.admission = Admission(settings.max_queue)
        self.closing = False
        self._opener = opener
        self._residents: dict[str, Resident] = {}  # by digest
        self._loading = asyncio.Lock()
        self._freed = asyncio.Event()
        self._stalls = StallWatch(self._residents.values, self.metrics.stalled)
        self._loads: set[asyncio.Future[Any]] = set()
        self._chores: set[asyncio.Future[Any]] = set()

    def find(self, name: str) -> Model:
        """The model of a name in the store; never a path or an address.

        Raises:
            UsageError: the name is empty or has no valid form.
            UnknownName: the store has no such model.
        """
        if not name:
            raise BadField("model", "is required")
        return find_stored(parse_name(name), self.store)

    def announce(self, name: str) -> Announced | None:
        """Count a request that is going to ask for a lease; None where its model has not been asked for before.

        Raises:
            Busy: the queue is full, and so are the model's places.
        """
        spelled = name.lower().removesuffix(":latest")
        found = next((one for one in self._residents.values() if spelled in one.names), None)
        return found.line.announce(found.model.name) if found else None

    def lease(self, name: str, *, context: int | None = None, keep_alive: KeepAlive = UNSET) -> Lease:
        """Hold a model for one request, loading it if need be.

        Args:
            name: a name in the store.
            context: tokens that the request asks for; None = the model's or the server's default.
            keep_alive: seconds that the model stays after the request; None = for ever.

        Raises (on entering):
            UnknownName: the store has no such model.
            Busy: the queue is full.
            DoesNotFit: there is no memory for it, and nothing idle that could go.
            BadModel, EngineFailed, Crashing: it cannot be loaded.
        """
        return Lease(self, name, context, keep_alive)

    def touch(self, name: str, keep_alive: KeepAlive) -> None:
        """Set how long a loaded model stays, from now."""
        resident = self._residents.get(self.find(name).digest)
        if resident and resident.session:
            self.set_keep_alive(resident, keep_alive)
            if not resident.users:
                resident.start_timer(self._expire)

    async def unload(self, name: str) -> bool:
        """Unload a model when its requests have ended; False where it was not loaded."""
        spelled = str(parse_name(name)).removesuffix(":latest")
        unloaded = False
        for resident in [one for one in self._residents.values() if spelled in one.names]:
            if resident.session is None and not resident.changing.locked():
                continue
            async with resident.changing:  # requests that come meanwhile wait, and then have it loaded again
                await resident.wait_idle(self.settings.grace_s)
                unloaded |= resident.session is not None
                await self._discard(resident)
        return unloaded

    def loaded(self) -> list[Loaded]:
        """Loaded models, those that stay longest first."""
        found = [one for resident in self._residents.values() if (one := resident.loaded())]
        return sorted(found, key=lambda one: one.expires_at.timestamp() if one.expires_at else 1e18, reverse=True)

    def pids(self) -> list[int]:
        """The processes of all models."""
        return [pid for one in self._residents.values() if one.session for pid in one.session.pids()]

    async def close(self, grace_s: float) -> None:
        """Let requests end for `grace_s` seconds, then unload everything; what still runs ends with EngineFailed."""
        self.closing = True
        deadline = time.monotonic() + grace_s
        for resident in list(self._residents.values()):
            await resident.wait_idle(max(0.0, deadline - time.monotonic()))
        self._stalls.stop()
        for task in self._loads:
            task.cancel()
        await asyncio.gather(*(self._discard(one) for one in list(self._residents.values())))
        if running := [*self._loads, *self._chores]:
            await asyncio.wait(running, timeout=2.0)

    # What leases ask for

    def resident(self, name: str) -> Resident:
        """The book's page for a name."""
        if self.closing:
            raise ending()
        model = self.find(name)
        resident = self._residents.get(model.digest)
        if resident is None:
            resident = self._residents[model.digest] = Resident(model, self.admission, self.settings.parallel)
        for other in self._residents.values():
            if model.name in other.names and other is not resident:  # the name means another model now
                other.names.discard(model.name)
                if other.session and not other.names:
                    self._expire(other)
        resident.names.add(model.name)
        return resident

    async def ready(self, resident: Resident, context: int | None, *, grown: bool = False) -> Session:
        """The session, with one more user; loaded, or loaded again with another context, where it must be."""
        self._stalls.begin()
        wanted, explicit = self._context(resident.model, context)
        if not resident.changing.locked() and self._suits(resident, wanted, explicit):
            return resident.take()
        task = _keep(self._loads, self._change(resident, wanted, explicit, grown=grown))
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            # The load goes on for those who wait for it; it only loses this user.
            task.add_done_callback(lambda done: self._undo(done, resident))
            raise

    def give_back(self, resident: Resident) -> None:
        """A user has ended."""
        resident.give_back()
        if resident.users:
            return
        if resident.session and not resident.alive:
            _keep(self._chores, self._bury(resident))
        elif resident.session:
            resident.start_timer(self._expire)

    def set_keep_alive(self, resident: Resident, keep_alive: KeepAlive) -> None:
        """From the request, else the model, else the settings."""
        own = resident.model.defaults.get("keep_alive")
        if not isinstance(keep_alive, Unset):
            resident.keep_alive_s = keep_alive
        else:
            resident.keep_alive_s = self.settings.keep_alive_s if own is None else parse_duration(own)

    async def may_grow(self, resident: Resident, context: int | None, larger: int) -> bool:
        """Whether a context may be made larger: nobody asked for this one, and there is memory."""
        if self._context(resident.model, context)[1]:
            return False
        others = [pid for pid in self.pids() if not resident.session or pid not in resident.session.pids()]
        mine = resident.memory_bytes
        need = await asyncio.to_thread(memory.estimate, resident.model, larger, self.settings.parallel)
        return need <= memory.available(others) + mine

    # Changes

    def _context(self, model: Model, asked: int | None) -> tuple[int, bool]:
        """The context to load with, and whether somebody asked for just this one."""
        stored = model.defaults.get("num_ctx")
        told = asked or (stored if isinstance(stored, int) and stored > 0 else None) or self.settings.context
        most = model.context_length or told or DEFAULT_CONTEXT
        return min(told or DEFAULT_CONTEXT, most), told is not None

    def _suits(self, resident: Resident, wanted: int, explicit: bool) -> bool:
        """Whether the session can be used as it is: an automatic context takes what is there."""
        return resident.alive and (resident.context == wanted if explicit else True)

    async def _change(self, resident: Resident, wanted: int, explicit: bool, *, grown: bool) -> Session:
        async with resident.changing:
            if grown and resident.alive and resident.context >= wanted:  # another request has made it larger
                return resident.take()
            if not grown and self._suits(resident, wanted, explicit):
                return resident.take()
            await resident.wait_idle()
            await self._discard(resident)
            resident.breaker.check(resident.model.name)
            async with self._loading:
                await self._load(resident, wanted, may_shrink=not explicit and not grown)
            return resident.take()

    async def _load(self, resident: Resident, wanted: int, *, may_shrink: bool) -> None:
        context, spare = await self._make_room(resident, wanted, may_shrink=may_shrink)
        start = time.monotonic()
        settings = self.settings
        kept = await asyncio.to_thread(memory.prompts, resident.model, context, settings.parallel)
        cache_bytes = min(kept, spare)
        try:
            session = await self._opener(
                resident.model,
                context=context,
                parallel=settings.parallel,
                threads=settings.threads,
                load_timeout=settings.load_timeout_s,
                cache_bytes=cache_bytes,
            )
        except EngineFailed:
            resident.breaker.crashed()
            self.metrics.crashed(resident.model.name)
            raise
        if self.closing:
            await session.close()
            raise ending()
        resident.session, resident.context, resident.cache_bytes = session, session.context, cache_bytes
        resident.memory_bytes = await asyncio.to_thread(memory.held, session.pids())
        self.metrics.loaded(resident.model.name, time.monotonic() - start)

    async def _make_room(self, resident: Resident, wanted: int, *, may_shrink: bool) -> tuple[int, int]:
        """Push out idle models, least recently used first, until there is room.

        Returns:
            The context that fits, and the bytes that are left with it.
        """
        model, settings = resident.model, self.settings
        while True:
            need = await asyncio.to_thread(memory.estimate, model, wanted, settings.parallel)
            others = [one for one in self._residents.values() if one.session and one is not resident]
            have = memory.available(self.pids()) - await asyncio.to_thread(_unclaimed, others)
            crowded = settings.max_loaded is not None and len(others) >= settings.max_loaded
            if need <= have and not crowded:
                return wanted, have - need
            idle = [one for one in others if one.idle]
            if idle:
                await self._evict(min(idle, key=lambda one: one.used_at))
            elif need > have and need > have + sum(one.memory_bytes for one in others):
                if not may_shrink or wanted <= LEAST_CONTEXT:
                    raise memory.does_not_fit(model, need, have, wanted)
                wanted = max(LEAST_CONTEXT, wanted // 2)
            elif free := [one for one in others if not one.changing.locked()]:
                await self._evict(min(free, key=lambda one: one.used_at))
            else:  # all others are about to be unloaded or loaded again: the latter wait for us
                self._freed.clear()
                await self._freed.wait()

    async def _evict(self, resident: Resident) -> None:
        """Unload a model once its requests have ended; those that come later wait, and then have it loaded again."""
        async with resident.changing:
            await resident.wait_idle()
            await self._discard(resident)
        self.metrics.evicted(resident.model.name)

    async def _discard(self, resident: Resident) -> None:
        """End the session. The caller holds `changing`, or the server ends."""
        resident.stop_timer()
        session, resident.session = resident.session, None
        if session is None:
            return
        if not session.alive:
            resident.breaker.crashed()
            self.metrics.crashed(resident.model.name)
        await session.close()
        resident.memory_bytes = 0
        self._freed.set()

    async def _bury(self, resident: Resident) -> None:
        async with resident.changing:
            if resident.session and not resident.alive and not resident.users:
                await self._discard(resident)

    def _expire(self, resident: Resident) -> None:
        _keep(self._chores, self._unload_idle(resident))

    async def _unload_idle(self, resident: Resident) -> None:
        async with resident.changing:
            if not resident.users and resident.line.empty:
                await self._discard(resident)

    def _undo(self, done: "asyncio.Future[Session]", resident: Resident) -> None:
        if not done.cancelled() and not done.exception():
            self.give_back(resident)


def _unclaimed(residents: Sequence[Resident]) -> int:
    """What loaded models may still come to take for earlier prompts: free now, but promised."""
    total = 0
    for one in residents:
        if one.cache_bytes and one.session:
            taken = max(0, memory.held(one.session.pids()) - one.memory_bytes)
            total += max(0, one.cache_bytes - taken)
    return total


def _keep(tasks: set[asyncio.Future[Any]], work: Coroutine[Any, Any, T]) -> "asyncio.Task[T]":
    """Start a task that is held until it has ended."""
    task = asyncio.get_running_loop().create_task(work)
    tasks.add(task)
    task.add_done_callback(tasks.discard)
    return task
