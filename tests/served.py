"""Servers as real processes, and the models that they get."""

import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import httpx
import psutil
from tiny_gguf import write_tiny_llama

from sizewise.core.recipe import Lineage
from sizewise.load.models import save_model
from sizewise.load.store.store import Store

CHAT = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant:"
_OURS = ("OLLAMA_", "SIZEWISE_", "OPENAI_", "HF_")


@dataclass
class Served:
    """A `sizewise serve` process with a home of its own."""

    process: "subprocess.Popen[str]"
    url: str
    home: Path
    log: Path
    environment: dict[str, str] = field(repr=False)

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def host(self) -> str:
        """`127.0.0.1:port`, as in OLLAMA_HOST."""
        return self.url.removeprefix("http://")

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def store(self) -> Store:
        return Store(self.home / "models")

    def children(self) -> list[psutil.Process]:
        """Everything that it started and that still runs."""
        return [one for one in psutil.Process(self.pid).children(recursive=True) if one.status() != "zombie"]

    def engines(self) -> list[psutil.Process]:
        """The processes of its models."""
        return [one for one in self.children() if any("_llamacpp_child" in word for word in one.cmdline())]

    def client(self, seconds: float = 120.0) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=seconds, trust_env=False)

    def raw(self, data: bytes, *, body_after: Iterable[bytes] = ()) -> bytes:
        """Send bytes and return all that comes until the server closes the connection."""
        with self.connect() as connection:
            connection.sendall(data)
            for part in body_after:
                try:
                    connection.sendall(part)
                except OSError:  # it has been refused already
                    break
            received = b""
            while True:
                try:
                    part = connection.recv(65536)
                except ConnectionResetError:
                    return received
                if not part:
                    return received
                received += part

    def connect(self) -> socket.socket:
        """A raw connection, for what no HTTP client would send."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=40)

    def lines(self) -> list[str]:
        """Its log."""
        return self.log.read_text().splitlines()

    def requests(self, count: int, *, after: int = 0) -> list[str]:
        """Its log from a line on, once `count` requests are in it: one is logged after its answer has gone out."""
        deadline = time.monotonic() + 20
        while True:
            lines = self.lines()[after:]
            if sum('"event": "request"' in line for line in lines) >= count or time.monotonic() > deadline:
                return lines
            time.sleep(0.02)

    def stop(self) -> None:
        """End it, by its own pid, and what it left behind."""
        if self.process.poll() is None:
            family = self.children()
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(40)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()
            for one in family:
                if one.is_running():
                    one.kill()


StartServer = Callable[..., Served]


_LIBC = ctypes.CDLL(None)


def _end_with(parent: int) -> None:
    """In a new process: be killed when the thread that started it ends, so that killed tests leave no servers."""
    _LIBC.prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def launch(home: Path, *arguments: str, within: Iterable[str] = (), **variables: str) -> Served:
    """Start a server on a free port with the store in `home` and wait until it answers; `within`: a command around."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
    environment |= {"SIZEWISE_HOME": str(home), "HF_HOME": str(home / "hf"), **variables}
    log = home / f"serve-{time.monotonic_ns()}.log"
    command = [*within, sys.executable, "-m", "sizewise", "serve", "--port", "0", "--threads", "1", *arguments]
    with log.open("w") as stderr:
        process = subprocess.Popen(
            command,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
            start_new_session=True,
            preexec_fn=partial(_end_with, os.getpid()),
        )
    assert process.stdout
    ready = process.stdout.readline()
    assert "http://" in ready, f"no server: {ready} {log.read_text()[-500:]}"
    address = "http://" + ready.partition("http://")[2].strip()
    return Served(process, address, home, log, environment)


def save_smollm2(home: Path, file: Path, name: str = "smollm2") -> None:
    """Put SmolLM2 into the store of a home, where it lies."""
    save_model(
        name, "gguf", {"model.gguf": file}, lineage=Lineage(recipe=None), store=Store(home / "models"), link=True
    )


def save_tiny(store: Store, folder: Path, name: str = "tiny", seed: int = 0) -> None:
    """Put a random Llama of a few kilobytes into a store."""
    file = write_tiny_llama(folder / f"{name}-{seed}.gguf", seed=seed)
    save_model(name, "gguf", {"model.gguf": file}, template=CHAT, lineage=Lineage(recipe=None), store=store)
