"""Runs code that a model wrote, so that it can neither do harm nor see what it is judged by.

Code of a model is treated as an attacker's. A sandbox is a fresh interpreter in its own user, process, network, mount,
message and host-name namespaces: no network, no files but the interpreter's (read-only) and 64 MB of its own, no
environment, no other process to see or signal, limits on memory, processor time, processes and file sizes, and a filter
of system calls. Where the system cannot do that, nothing is run (`why_not` says why).

Two sandboxes judge an answer. One runs the answer. The other runs the tests, and calls the answer's function through a
pipe on which only values of built-in types travel. The expected values are never in the process that is judged: there
is no frame to peek at, no comparison to override and no verdict to write; it can only return values.
"""

import contextlib
import json
import os
import platform
import secrets
import select
import socket
import struct
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

from sizewise.core.errors import Unsupported

_HERE = Path(__file__).parent
_VERDICT_BYTES = 100_000
_BUILD_S = 60.0  # far more than a sandbox takes, however busy the machine
_MAX_PROGRAM = 1_000_000  # characters; no function is that long
_SYSTEM_LIBRARIES = ("/usr/lib", "/usr/lib64", "/lib", "/lib64")
_MOUNT_POINTS = ("/mnt", "/media", "/srv", "/opt", "/sys")  # the first that holds nothing we need is covered


@dataclass(frozen=True, slots=True)
class Limits:
    """What one sandboxed program may use."""

    wall_s: float = 10.0  # for all tests of one answer together
    memory_bytes: int = 512 << 20  # address space of each process
    disk_bytes: int = 64 << 20
    processes: int = 24  # threads count


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether an answer passed its tests, and if not, why."""

    passed: bool
    reason: str = ""


@lru_cache(maxsize=1)
def why_not() -> str | None:
    """Why this system cannot run code safely, or None if it can. Tried once, by building a sandbox."""
    if sys.platform != "linux":
        return f"a sandbox needs Linux namespaces, this is {platform.system()}"
    try:
        with _Sandbox(Limits(), {}) as box:
            box.wait_until_built(time.monotonic() + _BUILD_S)
    except Unsupported as error:
        return str(error)
    return None


def run_tests(
    programs: Sequence[str], entry: str, *, setup: str = "", tests: str = "", limits: Limits | None = None
) -> Verdict:
    """Judge a function by test code, or by the examples in its docstring.

    Args:
        programs: ways to read the answer as a program, best first; the first that compiles is run.
        entry: the function of it that is judged.
        setup: code that the tests need; the function's own docstring is looked for here where there are no tests.
        tests: code that asserts things of `candidate` (or of the function by its name), and may define
            `check(candidate)`; empty: the examples in the docstring.
        limits: what each side may use.

    Returns:
        The verdict. Whatever the answer does, it is a verdict and no error.

    Raises:
        Unsupported: this system cannot build a sandbox, with the reason.
    """
    limits = limits or Limits()
    if any(len(program) > _MAX_PROGRAM for program in programs):
        return Verdict(False, f"a program of more than {_MAX_PROGRAM:,} characters")
    ours, theirs = socket.socketpair()
    nonce = secrets.token_hex(16)
    judge = {"role": "tests", "entry": entry, "setup": setup, "tests": tests, "examples": not tests, "nonce": nonce}
    with ours, theirs:
        candidate = {"role": "candidate", "programs": list(programs), "entry": entry}
        with _Sandbox(limits, candidate, theirs) as answer, _Sandbox(limits, judge, ours) as tester:
            # Only the two sandboxes may hold the ends: each must see the other's death.
            ours.close()
            theirs.close()
            try:
                for box in (answer, tester):
                    box.wait_until_built(time.monotonic() + _BUILD_S)
                deadline = time.monotonic() + limits.wall_s  # a busy machine builds slowly; that is not the answer's
                answer.order()
                tester.order()
                said = tester.receive(deadline)
            except TimeoutError:
                return Verdict(False, f"not done after {limits.wall_s:g} s")
            except EOFError:
                return Verdict(False, "the tests ended without a verdict")
    if said.get("nonce") != nonce:
        return Verdict(False, "the tests ended without a verdict")
    return Verdict(said.get("passed") is True, str(said.get("reason", "")))


class _Sandbox:
    """One sandboxed interpreter, from its start to the end of all that it started."""

    def __init__(self, limits: Limits, order: dict[str, Any], link: socket.socket | None = None) -> None:
        self._order = order
        self._control, inside = socket.socketpair()
        with inside, contextlib.ExitStack() as stack:
            if link is None:
                spare, link = socket.socketpair()
                stack.enter_context(spare)
                stack.enter_context(link)
            # The keeper finds its ends at fixed numbers; the shell-less way to put them there is to pass them on and
            # let it move them. Standard input is how it learns that we are done, or dead.
            command = [sys.executable, "-I", "-S", "-c", _MOVE.format(control=inside.fileno(), link=link.fileno())]
            self._keeper = subprocess.Popen(
                [*command, _settings(limits)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=(inside.fileno(), link.fileno()),
                start_new_session=True,  # Ctrl-C is for us to handle
                env={},
            )

    def wait_until_built(self, deadline: float) -> None:
        """Wait for the interpreter inside to say that it runs; until then nothing of the model's is there.

        Raises:
            Unsupported: the sandbox could not be built.
        """
        try:
            first = self.receive(deadline)
        except (EOFError, TimeoutError):
            raise Unsupported("no sandbox for the model's code: the interpreter did not start in it") from None
        if "hello" not in first:
            reason = str(first.get("refused", "unknown"))
            raise Unsupported(f"no sandbox for the model's code ({reason}); use a Linux that allows user namespaces")

    def order(self) -> None:
        """Say what to run."""
        data = json.dumps(self._order).encode()
        with contextlib.suppress(OSError):  # it may have died; then there is nothing to receive
            self._control.sendall(struct.pack(">I", len(data)) + data)

    def receive(self, deadline: float) -> dict[str, Any]:
        """One message.

        Raises:
            EOFError: the other side ended, or sent what is no message.
            TimeoutError: nothing came in time.
        """
        (size,) = struct.unpack(">I", self._exactly(4, deadline))
        if size > _VERDICT_BYTES:
            raise EOFError
        try:
            message = json.loads(self._exactly(size, deadline))
        except (ValueError, RecursionError):
            raise EOFError from None
        if not isinstance(message, dict):
            raise EOFError
        return message

    def _exactly(self, size: int, deadline: float) -> bytes:
        data = b""
        while len(data) < size:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._control], [], [], left)[0]:
                raise TimeoutError
            part = self._control.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return data

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """End everything inside. The keeper is the last to go; it has reaped the rest by then."""
        self._control.close()
        if self._keeper.stdin:
            self._keeper.stdin.close()
        try:
            self._keeper.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._keeper.kill()
            self._keeper.wait()


# Puts the two channels at 3 and 4, above them nothing, and goes on as the keeper.
_MOVE = (
    "import os,sys,fcntl\n"
    "a=fcntl.fcntl({control},fcntl.F_DUPFD,100);b=fcntl.fcntl({link},fcntl.F_DUPFD,101)\n"
    "os.dup2(a,3);os.dup2(b,4);os.closerange(5,1024)\n"
    "import json\n"
    "exec(compile(json.loads(sys.argv[1])['keeper'],'keeper','exec'))\n"
)


def _settings(limits: Limits) -> str:
    """What the keeper must know, as JSON."""
    folders, files, links = _interpreter()
    return json.dumps(
        {
            "wall_s": limits.wall_s + 2 * _BUILD_S,  # a last resort; we watch the time ourselves
            "cpu_s": int(limits.wall_s) + 2,
            "memory_bytes": limits.memory_bytes,
            "disk_bytes": limits.disk_bytes,
            "processes": limits.processes,
            "root": _mount_point([*folders, *files]),
            "folders": folders,
            "files": files,
            "links": links,
            "python": os.path.realpath(sys.executable),
            "source": _source("_sandbox_host.py"),
            "keeper": _source("_sandbox_init.py"),
        }
    )


@lru_cache(maxsize=2)
def _source(name: str) -> str:
    return (_HERE / name).read_text(encoding="utf-8")


def _interpreter() -> tuple[list[str], list[str], dict[str, str]]:
    """Folders, files and symbolic links that a Python needs to start: its own, and the system's libraries."""
    executable = os.path.realpath(sys.executable)
    # Of the Python that a virtual environment was made from; the environment's packages are not for the model's code.
    own = [os.path.dirname(os.__file__), sysconfig.get_config_var("DESTSHARED"), sysconfig.get_config_var("LIBDIR")]
    wanted = [path for path in (*_SYSTEM_LIBRARIES, *own) if path and os.path.isdir(path)]
    links = {path: os.readlink(path) for path in wanted if os.path.islink(path)}
    folders = sorted({path for path in wanted if path not in links and os.path.realpath(path) == path})
    outermost = [path for path in folders if not any(path.startswith(other + "/") for other in folders)]
    files = [executable, *(["/etc/ld.so.cache"] if os.path.exists("/etc/ld.so.cache") else [])]
    return outermost, [file for file in files if not any(file.startswith(path + "/") for path in outermost)], links


def _mount_point(needed: Sequence[str]) -> str:
    """A folder to cover with the new root, as seen by the sandbox alone."""
    for path in _MOUNT_POINTS:
        if os.path.isdir(path) and not any(each.startswith(path + "/") for each in needed):
            return path
    raise Unsupported("no sandbox for the model's code: none of the folders to build it on exists")


def unfence(text: str, entry: str = "") -> Iterator[str]:
    """The pieces of a reply that may be code: the fenced blocks, those that define `entry` first; without any, all."""
    blocks = []
    for number, part in enumerate(text.split("```")):
        if number % 2:
            first, _, rest = part.partition("\n")
            blocks.append(rest if first.strip().isalnum() or not first.strip() else part)
    blocks.sort(key=lambda block: f"def {entry}" not in block)
    yield from blocks
    if not blocks:
        yield text
