"""Engines that hang: a request waits for one whose processes have done nothing for a while.

A slow engine uses processor time, and a slow client is waited for by us, not by the engine: neither counts as a stall.
"""

import asyncio
import os
import signal
import time
from collections.abc import Callable, Iterable
from contextlib import suppress

from sizewise.measure.processes import exact_cpu_seconds
from sizewise.serve.resident import Resident

LOOK_S = 5.0
STALLED_S = 30.0
_WORKING_S = 0.05  # of processor time between two looks: more than an engine uses while it waits for requests


class StallWatch:
    """Kills the processes of models that hang, so that their requests end with an error; runs while any are asked."""

    def __init__(self, residents: Callable[[], Iterable[Resident]], note: Callable[[str], None]) -> None:
        self._residents, self._note = residents, note
        self._task: asyncio.Task[None] | None = None
        self._seen: dict[int, tuple[float, float]] = {}  # of a session: processor seconds, and since when unchanged

    def begin(self) -> None:
        """A request begins; the watch ends by itself when none is left."""
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._watch())

    def stop(self) -> None:
        """The server ends."""
        if self._task:
            self._task.cancel()

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            asked = [one for one in self._residents() if one.users and one.session]
            if not asked:
                self._seen.clear()
                return
            for resident in asked:
                self._look(resident, time.monotonic())

    def _look(self, resident: Resident, now: float) -> None:
        session = resident.session
        pids = [pid for pid in session.pids() if pid != os.getpid()] if session else []
        if not pids:
            return
        used = sum(exact_cpu_seconds(pid) or 0.0 for pid in pids)
        before, since = self._seen.get(id(session), (-1.0, now))
        if resident.waiting_since is None or used - before > _WORKING_S or used < before:
            self._seen[id(session)] = (used, now)
        elif now - max(since, resident.waiting_since) >= STALLED_S:
            self._note(resident.model.name)
            for pid in pids:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
