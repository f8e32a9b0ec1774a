"""A child process: what it prints, raises or dies of reaches the parent as an answer or as one line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from sizewise.core.errors import DoesNotFit, EngineFailed, UsageError
from sizewise.load.child import Child

CODE = """
import os, sys, time
from sizewise.core.errors import BadRow, DoesNotFit
from sizewise.load.child import Host

host = Host()

def add(a, b):
    print("a library that prints", a)
    os.write(1, b"native code that prints")
    return a + b

def array(size):
    return {"size": size}, b"\\0\\1" * size

def refuse():
    raise DoesNotFit("needs 9 GB, 2 GB are free")

def row():
    raise BadRow("train.jsonl", 3, "no label")

def fail():
    raise RuntimeError("first line\\nsecond line")

def die():
    sys.stderr.write("terminate called: ggml assertion\\n")
    sys.stderr.flush()
    os.abort()

def count(to):
    for at in range(to):
        host.check()
        host.tell(at=at)
        time.sleep(0.001)
    return to

def busy():
    host.tell(started=True)
    while True:
        pass

host.serve({f.__name__: f for f in (add, array, refuse, row, fail, die, count, busy)})
"""


@pytest.fixture
def child(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    (tmp_path / "helper_of_a_test.py").write_text(CODE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    made = Child("helper_of_a_test", "tiny")
    yield made
    made.close()


def test_answers_whatever_is_printed(child: Child) -> None:
    assert child.call("add", a=1, b=2) == (3, b"")
    assert child.call("array", size=100_000) == ({"size": 100_000}, b"\0\1" * 100_000)
    assert child.call("add", a="é", b="東京 \ud800") == ("é東京 \ud800", b"")


def test_errors_cross_with_their_class_and_message(child: Child) -> None:
    with pytest.raises(DoesNotFit, match="needs 9 GB, 2 GB are free"):
        child.call("refuse")
    with pytest.raises(UsageError, match=r"train\.jsonl:3: no label"):
        child.call("row")
    with pytest.raises(EngineFailed, match=r"RuntimeError: first line$"):
        child.call("fail")
    assert child.call("add", a=1, b=1)[0] == 2


def test_a_crash_is_one_line_and_so_is_every_call_after_it(child: Child) -> None:
    for _ in range(2):
        with pytest.raises(EngineFailed, match=r"tiny: .* ended with signal SIGABRT: terminate called: ggml assertion"):
            child.call("die")
    assert not child.alive


def test_being_killed_is_told_apart(child: Child) -> None:
    child.call("add", a=1, b=1)
    os.kill(child.pid, signal.SIGKILL)
    with pytest.raises(EngineFailed, match=r"SIGKILL \(out of memory\?\)"):
        child.call("add", a=1, b=1)


def test_events_arrive_in_order_and_an_error_in_the_listener_cancels(child: Child) -> None:
    seen: list[int] = []
    assert child.call("count", lambda event: seen.append(event["at"]), to=5)[0] == 5
    assert seen == [0, 1, 2, 3, 4]

    def stop(event: dict[str, Any]) -> None:
        if event["at"] == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        child.call("count", stop, to=1_000_000)
    assert child.call("add", a=2, b=2)[0] == 4


def test_closing_ends_a_computation(child: Child) -> None:
    process = psutil.Process(child.pid)
    child.call("add", a=1, b=1)
    child.close()
    child.close()
    assert not process.is_running()
    with pytest.raises(EngineFailed, match="closed"):
        child.call("add", a=1, b=1)


def test_no_orphan_is_left_when_the_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "helper_of_a_test.py").write_text(CODE)
    code = (
        "from sizewise.load.child import Child; child = Child('helper_of_a_test', 'tiny')\n"
        "child.call('busy', lambda event: print(child.pid, flush=True))"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    orphan = psutil.Process(int(parent.stdout.readline()))
    parent.kill()
    parent.wait()
    parent.stdout.close()
    for _ in range(600):
        if not orphan.is_running() or orphan.status() == psutil.STATUS_ZOMBIE:
            break
        time.sleep(0.05)
    else:
        orphan.kill()
        pytest.fail("the child still runs although its parent is dead")
