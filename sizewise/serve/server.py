"""Listening, and ending well: a first signal lets answers end, a second one does not."""

import asyncio
import errno
import os
import resource
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

import uvicorn

from sizewise.core.errors import StateError, StorageError, UsageError
from sizewise.load.store.store import Store
from sizewise.serve.app import create_app
from sizewise.serve.protocol import LimitedHttp
from sizewise.serve.settings import Settings, is_loopback

_LAST_WORDS_S = 2.0  # after the grace: for the error event of each stream


def serve(settings: Settings, store: Store | None = None, *, announce: Callable[[str], None] = print) -> int:
    """Serve until a signal comes.

    Args:
        settings: how.
        store: which models; None = the user's own.
        announce: gets the address, once it answers.

    Returns:
        The exit code.

    Raises:
        UsageError: others could connect, and no key is set.
        StateError: the port is taken.
    """
    check_exposure(settings)
    listener = listen(settings)
    _allow_many_sockets()
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    app = create_app(settings, store)
    config = uvicorn.Config(
        app,
        loop="uvloop" if sys.platform != "win32" else "asyncio",
        http=LimitedHttp,
        ws="none",
        lifespan="off",
        interface="asgi3",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=75,
    )
    server = _Server(config)
    server.ready = lambda: announce(f"sizewise listens at http://{shown}:{port}")
    loop_factory = config.get_loop_factory()
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(server.live(listener))


def check_exposure(settings: Settings) -> None:
    """Refuse to listen to others without a key.

    Raises:
        UsageError: no key is set, and the address is not one of the loopback interface.
    """
    if not is_loopback(settings.host) and not settings.api_keys:
        raise UsageError(
            f"--host {settings.host} lets other machines in: set SIZEWISE_API_KEY or --api-key, or listen at 127.0.0.1"
        )


def listen(settings: Settings) -> socket.socket:
    """A bound socket.

    Raises:
        StateError: another program has the port.
        StorageError: the port is for root only.
        UsageError: the host is no address of this machine.
    """
    host, port = settings.host, settings.port
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise UsageError(f"--host {host}: no such address") from error
    listener = socket.socket(family, kind, proto)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(2048)
    except OSError as error:
        listener.close()
        if error.errno == errno.EADDRINUSE:
            raise StateError(
                f"port {port} at {host} is in use, perhaps by another sizewise or Ollama: stop it, or choose --port"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM):
            raise StorageError(f"port {port}: permission denied; choose one above 1023") from error
        raise UsageError(f"cannot listen at {host}:{port}: {error.strerror}") from error
    listener.setblocking(False)
    return listener


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers, and with our way of ending."""

    ready: Callable[[], None]

    async def live(self, listener: socket.socket) -> int:
        """From the first connection to the last child's end."""
        loop = asyncio.get_running_loop()
        stop: asyncio.Queue[int] = asyncio.Queue()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.put_nowait, number)
        if not self.config.loaded:
            self.config.load()
        self.lifespan = self.config.lifespan_class(self.config)
        await self.startup(sockets=[listener])
        self.ready()
        sys.stdout.flush()
        beat = asyncio.ensure_future(self.main_loop())
        try:
            await stop.get()
            ending = asyncio.ensure_future(self._end())
            again = asyncio.ensure_future(stop.get())
            await asyncio.wait((ending, again), return_when=asyncio.FIRST_COMPLETED)
            if not ending.done():
                self._end_now()
            return 0
        finally:
            beat.cancel()

    async def _end(self) -> None:
        """Take nothing new, let what runs end, tell the rest, and stop the children."""
        state = self.config.app.state  # type: ignore[union-attr]
        grace = state.settings.grace_s
        state.traffic.draining = True
        for server in self.servers:
            server.close()
        for connection in list(self.server_state.connections):
            connection.shutdown()
        if not await state.traffic.ended(grace):
            state.traffic.stop()
            await state.traffic.ended(_LAST_WORDS_S)
        with suppress(TimeoutError):
            await asyncio.wait_for(state.manager.close(0.0), _LAST_WORDS_S)
        kill_children()  # those that were asked to end, and did not
        for _ in range(20):  # what was written last must reach the network
            if not self.server_state.connections:
                break
            await asyncio.sleep(0.05)
        watchdog = threading.Timer(_LAST_WORDS_S, self._end_now)  # a load that still runs holds a thread
        watchdog.daemon = True
        watchdog.start()

    def _end_now(self) -> None:
        """A second signal: kill the children, and go without a further word."""
        kill_children()
        os._exit(0)


def kill_children() -> None:
    """End every process that this one started, whatever it does."""
    import psutil

    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            child.kill()


def _allow_many_sockets() -> None:
    """As many open files as the system lets us have: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 65536), hard))
