"""One model in the manager's book: its places, its session while it is loaded, and when it is to be unloaded."""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sizewise.core.model import Model
from sizewise.serve.admission import Admission, Breaker, Line
from sizewise.serve.session import Session


@dataclass(frozen=True, slots=True)
class Loaded:
    """A loaded model, as `ps` shows it."""

    name: str
    model: Model
    session: Session
    expires_at: datetime | None  # None: never
    memory_bytes: int
    context: int


class Resident:
    """A model that was asked for. `session` is changed only by who holds `changing`."""

    def __init__(self, model: Model, admission: Admission, places: int) -> None:
        self.model = model
        self.names = {model.name}
        self.line = Line(admission, places)
        self.breaker = Breaker()
        self.changing = asyncio.Lock()
        self.session: Session | None = None
        self.context = 0  # that of the session
        self.users = 0  # requests that use the session now
        self.used_at = time.monotonic()
        self.keep_alive_s: float | None = None
        self.expires_at: datetime | None = None
        self.memory_bytes = 0  # held right after the load
        self.cache_bytes = 0  # that earlier prompts may come to take on top
        self.waiting_since: float | None = None  # since when requests wait for the engine, and not for their clients
        self._waiting = 0
        self._idle = asyncio.Event()
        self._idle.set()
        self._timer: asyncio.TimerHandle | None = None

    @property
    def idle(self) -> bool:
        """True where it could be unloaded now without anybody noticing."""
        return self.session is not None and not self.users and self.line.empty and not self.changing.locked()

    @property
    def alive(self) -> bool:
        """True while its session can answer."""
        return self.session is not None and self.session.alive

    def take(self) -> Session:
        """Begin to use the session."""
        assert self.session is not None
        self.users += 1
        self._idle.clear()
        self.stop_timer()
        return self.session

    def give_back(self) -> None:
        """End using it."""
        self.users -= 1
        self.used_at = time.monotonic()
        if not self.users:
            self._idle.set()

    def begin_wait(self) -> None:
        """A request waits for the engine."""
        self._waiting += 1
        if self._waiting == 1:
            self.waiting_since = time.monotonic()

    def end_wait(self) -> None:
        """It got what it waited for."""
        self._waiting -= 1
        if not self._waiting:
            self.waiting_since = None

    async def wait_idle(self, seconds: float | None = None) -> None:
        """Until nobody uses the session, or for `seconds` at most."""
        if self.users:
            try:
                await asyncio.wait_for(self._idle.wait(), seconds)
            except TimeoutError:
                return

    def start_timer(self, expire: Callable[["Resident"], object]) -> None:
        """From now on it is kept for `keep_alive_s` seconds; then `expire` is called."""
        self.stop_timer()
        if self.keep_alive_s is None:
            self.expires_at = None
            return
        self.expires_at = datetime.now(UTC) + timedelta(seconds=self.keep_alive_s)
        self._timer = asyncio.get_running_loop().call_later(self.keep_alive_s, expire, self)

    def stop_timer(self) -> None:
        """It is in use, or being unloaded."""
        if self._timer:
            self._timer.cancel()
            self._timer = None

    def loaded(self) -> Loaded | None:
        """What `ps` shows of it; None where it is not loaded."""
        if self.session is None or not self.alive:
            return None
        expires = self.expires_at
        if self.users and self.keep_alive_s is not None:  # the time begins to run when it is done
            expires = datetime.now(UTC) + timedelta(seconds=self.keep_alive_s)
        return Loaded(self.model.name, self.model, self.session, expires, self.memory_bytes, self.context)
