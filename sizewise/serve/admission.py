"""Who may come in: a bounded queue before each model's places, and a breaker for models whose process keeps dying."""

import asyncio
import math
import time
from collections import deque
from collections.abc import Callable
from contextvars import ContextVar

from sizewise.core.errors import Busy, Crashing

CRASHES, WINDOW_S = 3, 60.0


class Admission:
    """The whole server's queue: at most `max_queue` requests wait, for whichever model."""

    def __init__(self, max_queue: int) -> None:
        self.max_queue = max_queue
        self.waiting = 0
        self.running = 0
        self._seconds = 1.0  # how long a place was held of late: what a request that is turned away is told to wait

    @property
    def retry_after_s(self) -> int:
        """A guess at when a place will be free."""
        return max(1, min(60, math.ceil(self._seconds)))

    def held(self, seconds: float) -> None:
        """Remember how long a place was held."""
        self._seconds += 0.2 * (seconds - self._seconds)


class Line:
    """The places of one model, and the requests that wait for one, first come, first served."""

    def __init__(self, admission: Admission, places: int) -> None:
        self.admission, self.places = admission, places
        self.running = 0
        self.announced = 0  # requests that will come to this line in a moment; see `announce`
        self._waiting: deque[asyncio.Future[None]] = deque()

    @property
    def empty(self) -> bool:
        """True where nobody has or waits for a place."""
        return not self.running and not self._waiting

    @property
    def full(self) -> bool:
        """True where a request would have to wait."""
        return self.running >= self.places or bool(self._waiting)

    def announce(self, what: str) -> "Announced":
        """Count a request from its first sight on: a burst is refused before work is done for all of it.

        Raises:
            Busy: with those announced before, as many would wait as may.
        """
        over = self.running + self.announced - self.places
        if over >= 0 and self.admission.waiting + over >= self.admission.max_queue:
            raise Busy(what, self.admission.retry_after_s)
        return Announced(self)

    async def enter(self, what: str) -> float:
        """Wait for a place; returns the seconds waited. Cancelling gives the place in the queue back.

        Raises:
            Busy: as many requests wait as may.
        """
        if not self.full:
            self._take()
            return 0.0
        if self.admission.waiting >= self.admission.max_queue:
            raise Busy(what, self.admission.retry_after_s)
        start = time.monotonic()
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append(turn)
        self.admission.waiting += 1
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # its turn came at the moment at which it went
                self.leave()
            elif turn in self._waiting:
                self._waiting.remove(turn)
                self.admission.waiting -= 1
            raise
        return time.monotonic() - start

    def leave(self) -> None:
        """Give a place back; the next in the queue gets it."""
        self.running -= 1
        self.admission.running -= 1
        while self._waiting and self.running < self.places:
            turn = self._waiting.popleft()
            self.admission.waiting -= 1
            if not turn.cancelled():  # cancelled: who waited has gone, and is about to find out
                self._take()
                turn.set_result(None)

    def _take(self) -> None:
        self.running += 1
        self.admission.running += 1


class Announced:
    """A request on its way to a line. `settle` when it is there, or will not come; again does no harm."""

    def __init__(self, line: Line) -> None:
        self._line: Line | None = line
        line.announced += 1

    def settle(self) -> None:
        """It counts no more."""
        if self._line:
            self._line.announced -= 1
            self._line = None


ANNOUNCED: ContextVar[Announced | None] = ContextVar("announced", default=None)  # that of the request under way


class Breaker:
    """Stops starting a model whose process died `CRASHES` times within `WINDOW_S`, until the window has passed."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._crashes: deque[float] = deque(maxlen=CRASHES)

    def crashed(self) -> None:
        """The process died."""
        self._crashes.append(self._clock())

    def check(self, what: str) -> None:
        """Pass while the breaker is closed.

        Raises:
            Crashing: it is open; the message says for how long.
        """
        if len(self._crashes) < CRASHES:
            return
        left = self._crashes[0] + WINDOW_S - self._clock()
        if left > 0:
            raise Crashing(what, CRASHES, math.ceil(left))
