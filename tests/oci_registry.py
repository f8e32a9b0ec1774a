"""Debian's `docker-registry`, the reference registry, on a port of this machine."""

import contextlib
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

_CONFIG = """\
version: 0.1
log: {{level: error, accesslog: {{disabled: true}}}}
storage:
  filesystem: {{rootdirectory: {root}}}
  delete: {{enabled: true}}
http: {{addr: "127.0.0.1:{port}", secret: for-these-tests}}
"""


class Registry:
    """One registry, which can be killed and started again with what it holds."""

    def __init__(self, folder: Path) -> None:
        binary = shutil.which("docker-registry")
        if not binary:
            pytest.skip("docker-registry is not installed")
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.root = folder / "data"
        self.config = folder / "config.yml"
        folder.mkdir(parents=True)
        self.config.write_text(_CONFIG.format(root=self.root, port=self.port))
        self.command = [binary, "serve", str(self.config)]
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start, and wait until it answers."""
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"http://{self.host}/v2/").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError("docker-registry does not answer")

    def kill(self) -> None:
        """kill -9."""
        if self.process:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()
            self.process = None

    def blobs(self) -> set[str]:
        """Digests of the blobs that it holds."""
        return {f"sha256:{path.parent.name}" for path in self.root.glob("docker/registry/v2/blobs/sha256/*/*/data")}


@contextlib.contextmanager
def oci_registry(folder: Path) -> Iterator[Registry]:
    """A registry that runs until the end of the block."""
    registry = Registry(folder)
    registry.start()
    try:
        yield registry
    finally:
        registry.kill()
