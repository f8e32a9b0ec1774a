"""A child process that holds one model, and the calls that go to it: a crash of native code is an error message.

Frames go both ways through two pipes of their own, so that what a library prints cannot mix with them:

    8 bytes n, 8 bytes m, n bytes of JSON, m bytes of raw data (an array, where there is one)

    parent -> child   {"call": name, "arguments": {...}}   {"cancel": true}
    child -> parent   {"event": {...}}*  then one of  {"result": ...}  {"error": class name, "message": one line}

The child ends when its pipe closes, so a killed parent leaves no orphan. It ignores Ctrl-C: the parent decides.
"""

import contextlib
import json
import os
import queue
import signal
import struct
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from sizewise.core import errors
from sizewise.core.errors import EngineFailed, SizewiseError

_HEAD = struct.Struct("<QQ")
_GRACE_S = 10.0  # how long a child may take to end by itself, or to notice that a call was cancelled
OnEvent = Callable[[dict[str, Any]], None]


class Cancelled(Exception):
    """Raised in the child, between two steps of a call that the parent no longer wants."""


_DEFAULTS = {
    # Threads that wait spin for microseconds, then sleep: as fast as endless spinning on an idle machine, and ten times
    # as fast beside other work. Sleeping at once (OMP_WAIT_POLICY=PASSIVE) costs three quarters of it. See LOG.md.
    "GOMP_SPINCOUNT": "10000",
    "GGML_NO_BACKTRACE": "1",  # an abort must end the process, not start a debugger on it
}


class Child:
    """The parent's end: one process, one call at a time."""

    def __init__(self, module: str, what: str, environment: Mapping[str, str] | None = None) -> None:
        """Start `python -m module`; `what` names the model in error messages."""
        self.what = what
        self._lock = threading.Lock()
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 (lives as long as the child)
        requests, to_child = os.pipe()
        from_child, replies = os.pipe()
        package = str(Path(__file__).parent.parent.parent)
        paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
        self._process = subprocess.Popen(
            # -P: a file named like a library in the working folder is not what gets imported
            [sys.executable, "-P", "-m", module, str(requests), str(replies)],
            stdin=subprocess.DEVNULL,
            stdout=self._stderr,
            stderr=self._stderr,
            pass_fds=(requests, replies),
            env={**_DEFAULTS, **os.environ, **(environment or {}), "PYTHONPATH": os.pathsep.join(paths)},
        )
        os.close(requests)
        os.close(replies)
        self._to = os.fdopen(to_child, "wb")
        self._from = os.fdopen(from_child, "rb")

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether calls can still be answered."""
        return self._process.poll() is None and not self._to.closed

    def call(self, name: str, on_event: OnEvent | None = None, **arguments: Any) -> tuple[Any, bytes]:
        """Run one of the child's functions.

        Args:
            name: which function.
            on_event: sees what the function tells while it runs; if it raises, the call is cancelled.
            arguments: JSON values.

        Returns:
            The function's JSON value, and the raw bytes beside it (empty where it gave none).

        Raises:
            SizewiseError: the one that the function raised.
            EngineFailed: the child died, or failed in a way that it does not know.
        """
        with self._lock:
            if not self.alive:
                raise self._death()
            try:
                _write(self._to, {"call": name, "arguments": arguments})
                return self._answer(on_event)
            except (BrokenPipeError, EOFError) as error:
                raise self._death() from error

    def kill(self) -> None:
        """End the child at once, whatever it does; a call that waits for it raises EngineFailed."""
        self._process.kill()

    def close(self) -> None:
        """End the child. Safe to call twice."""
        if not self._to.closed:
            with contextlib.suppress(BrokenPipeError):  # gone already, which is what is wanted
                self._to.close()
        try:
            self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._from.close()
        self._stderr.close()

    def _answer(self, on_event: OnEvent | None) -> tuple[Any, bytes]:
        while True:
            try:
                frame, data = _read(self._from)
            except KeyboardInterrupt:
                self._process.kill()  # half a frame may be lost, so that no later answer could be understood
                raise
            if "event" not in frame:
                return _result(frame), data
            if on_event:
                try:
                    on_event(frame["event"])
                except BaseException:  # passed on as soon as the child has stopped
                    self._cancel()
                    raise

    def _cancel(self) -> None:
        """Have the child stop the call, and read what it still sends; end a child that does not listen."""
        watchdog = threading.Timer(_GRACE_S, self._process.kill)
        watchdog.start()
        try:
            _write(self._to, {"cancel": True})
            while "event" in _read(self._from)[0]:
                pass
        except (BrokenPipeError, EOFError):
            pass  # it died instead of stopping: the next call says so
        finally:
            watchdog.cancel()

    def _death(self) -> EngineFailed:
        """Why there is no answer, in one line."""
        try:
            code = self._process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        if self._stderr.closed:
            return EngineFailed(f"{self.what}: the model was closed")
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        reason = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        hint = " (out of memory?)" if code == -signal.SIGKILL else ""
        return EngineFailed(
            f"{self.what}: the process that runs the model ended with {reason}{hint}"
            + (f": {lines[-1][:300]}" if lines else "")
        )


class Host:
    """The child's end: answers calls with `functions`, until the parent closes the pipe."""

    def __init__(self) -> None:
        self._from, self._to = os.fdopen(int(sys.argv[1]), "rb"), os.fdopen(int(sys.argv[2]), "wb")
        self._calls: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._cancelled = threading.Event()
        signal.signal(signal.SIGINT, signal.SIG_IGN)

    def tell(self, **event: Any) -> None:
        """Send something while a call runs."""
        _write(self._to, {"event": event})

    def check(self) -> None:
        """To be called between steps.

        Raises:
            Cancelled: the parent does not want the answer any more.
        """
        if self._cancelled.is_set():
            raise Cancelled

    def serve(self, functions: Mapping[str, Callable[..., Any]]) -> None:
        """Answer calls, one at a time. A function returns a JSON value, or (a JSON value, bytes)."""
        threading.Thread(target=self._listen, daemon=True).start()
        while True:
            request = self._calls.get()
            self._cancelled.clear()
            frame, data = _run(functions[request["call"]], request["arguments"])
            _write(self._to, frame, data)

    def _listen(self) -> None:
        try:
            while True:
                frame, _ = _read(self._from)
                if "cancel" in frame:
                    self._cancelled.set()
                else:
                    self._calls.put(frame)
        except EOFError:
            os._exit(0)  # the parent is gone; a computation that still runs has nobody to answer


def _run(function: Callable[..., Any], arguments: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    try:
        value = function(**arguments)
    except Cancelled:
        return {"error": "Cancelled", "message": "cancelled"}, b""
    except SizewiseError as error:
        return {"error": type(error).__name__, "message": str(error)}, b""
    except Exception as error:  # noqa: BLE001 (a library may raise anything; the parent gets it as one line)
        lines = str(error).strip().splitlines() or [""]
        return {"error": "EngineFailed", "message": f"{type(error).__name__}: {lines[0][:500]}"}, b""
    if isinstance(value, tuple):
        return {"result": value[0]}, value[1]
    return {"result": value}, b""


def _result(frame: dict[str, Any]) -> Any:
    if "result" in frame:
        return frame["result"]
    kind = getattr(errors, frame["error"], EngineFailed)
    # Some classes build their message from parts, but only the message crosses the pipe: raise their nearest parent.
    raise next(base for base in kind.__mro__ if "__init__" not in vars(base))(frame["message"])


def _write(file: BinaryIO, frame: dict[str, Any], data: bytes = b"") -> None:
    text = json.dumps(frame).encode()
    file.write(_HEAD.pack(len(text), len(data)) + text)
    file.write(data)
    file.flush()


def _read(file: BinaryIO) -> tuple[dict[str, Any], bytes]:
    text_size, data_size = _HEAD.unpack(_exactly(file, _HEAD.size))
    frame = json.loads(_exactly(file, text_size))
    return frame, _exactly(file, data_size)


def _exactly(file: BinaryIO, size: int) -> bytes:
    data = file.read(size)
    if len(data) != size:
        raise EOFError("the pipe was closed")
    return data
