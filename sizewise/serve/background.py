"""Long blocking work for one request: in a thread of its own, its progress as it comes, stopped when nobody listens."""

import asyncio
import threading
import time
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from sizewise.core.errors import Busy
from sizewise.core.events import Listener, Progress

T = TypeVar("T")
_MOST = 16  # jobs at once; each has a thread
_EVERY_S = 0.1  # between two reports on one and the same step
_running = threading.BoundedSemaphore(_MOST)


class Gone(BaseException):
    """The client went: the work ends at its next report. No handler of errors may take it for a failure."""


@dataclass(frozen=True, slots=True)
class Finished(Generic[T]):
    """The last event: what the work gave."""

    value: T


async def running(work: Callable[[Listener], T]) -> AsyncGenerator[Progress | Finished[T], None]:
    """Run `work(listen)`; what it reports, thinned out, then its value or its error.

    Raises:
        Busy: as many jobs run as may.
    """
    if not _running.acquire(blocking=False):
        raise Busy("the store", 5)
    loop, gone = asyncio.get_running_loop(), threading.Event()
    events: asyncio.Queue[Progress | Finished[T] | BaseException] = asyncio.Queue()

    def send(event: Progress | Finished[T] | BaseException) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(events.put_nowait, event)

    def run() -> None:
        try:
            send(Finished(work(_Reports(send, gone))))
        except BaseException as error:  # noqa: BLE001 (whatever it is, it is raised where the work was asked for)
            send(error)
        finally:
            _running.release()

    threading.Thread(target=run, name="store", daemon=True).start()
    try:
        while True:
            event = await events.get()
            if isinstance(event, BaseException):
                raise event
            yield event
            if isinstance(event, Finished):
                return
    finally:
        gone.set()


class _Reports:
    """The listener: passes on each new step, and of one step the first, the last and some between."""

    def __init__(self, send: Callable[[Progress], None], gone: threading.Event) -> None:
        self.send, self.gone = send, gone
        self.what, self.next_s = "", 0.0

    def __call__(self, event: Progress) -> None:
        if self.gone.is_set():
            raise Gone
        now = time.monotonic()
        if event.what != self.what or now >= self.next_s or event.done == event.total:
            self.what, self.next_s = event.what, now + _EVERY_S
            self.send(event)
