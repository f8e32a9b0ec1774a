"""Code of a model can do no harm: whatever it tries is contained, and nothing is left of it."""

import os
import secrets
import shutil
import socket
import subprocess
import sys
import textwrap
import threading
import time
import tracemalloc

import psutil
import pytest

from sizewise.measure.sandbox import Limits, run_tests, why_not

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))


def assert_contained(body: str, limits: Limits | None = None) -> None:
    """Run the body of a probe in the sandbox; it returns "contained", or what it got away with."""
    program = "def probe():\n" + textwrap.indent(textwrap.dedent(body), "    ")
    verdict = run_tests([program], "probe", tests="said = candidate()\nassert said == 'contained', said", limits=limits)
    assert verdict.passed, verdict.reason


def refused(action: str, errors: str = "OSError") -> str:
    """The body of a probe whose one action must fail."""
    return f"""
        try:
            got = {action}
        except ({errors}) as error:
            return "contained"
        return f"{{got!r}}"
    """


SYSCALL = "(lambda c: (_ for _ in ()).throw(OSError(c)) if c < 0 else c)(__import__('ctypes').CDLL(None).{call})"

PROBES = {
    "reach the internet": refused("__import__('socket').create_connection(('1.1.1.1', 53), 2)"),
    "look up a name": refused("__import__('socket').getaddrinfo('example.org', 80)"),
    "read the users": refused("open('/etc/passwd').read()"),
    "read this test": refused(f"open({__file__!r}).read()"),
    "see processes": refused("__import__('os').listdir('/proc')"),
    "see the devices": refused("open('/dev/mem', 'rb').read(1)"),
    "write at the root": refused("open('/mine', 'w')") if os.geteuid() == 0 else "return 'contained'",
    "write among the libraries": refused("open('/usr/lib/mine', 'w')"),
    "change the interpreter": refused("open(__import__('os').__file__, 'a')"),
    "run a program": refused("__import__('subprocess').run(['/bin/sh', '-c', 'id'])"),
    "kill our process": refused(f"__import__('os').kill({os.getpid()}, 9)"),
    "change the root": refused("__import__('os').chroot('/tmp')"),
    "make a device": refused("__import__('os').mknod('/tmp/d', 0o60666, 0x800)"),
    "mount": refused(SYSCALL.format(call="mount(b'x', b'/tmp', b'tmpfs', 0, None)")),
    "make the interpreter writable": refused(SYSCALL.format(call="mount(None, b'/usr/lib', None, 0x1020, None)")),
    "make a user namespace": refused(SYSCALL.format(call="unshare(0x10000000)")),
    "trace a process": refused(SYSCALL.format(call="ptrace(16, 1, 0, 0)")),
    "make memory that no limit counts": refused("__import__('os').memfd_create('x')"),
    "make shared memory": refused(SYSCALL.format(call="shmget(0, 1 << 30, 0o1600)")),
    "raise a limit": refused(
        "__import__('resource').setrlimit(__import__('resource').RLIMIT_AS, (-1, -1))", "ValueError"
    ),
    "take two gigabytes": refused("len(bytearray(2 << 30))", "MemoryError"),
    "rename the host": refused("__import__('socket').sethostname('mine')"),
    "import our packages": refused("__import__('numpy')", "ImportError"),
    "import us": refused("__import__('sizewise')", "ImportError"),
    "signal the first process": """
        import os, signal
        try:
            os.kill(1, signal.SIGKILL)
            os.kill(1, signal.SIGSTOP)
        except PermissionError:
            pass
        return "contained"
    """,
    "inherit files": """
        import os
        held = []
        for fd in range(1024):
            try:
                os.fstat(fd)
            except OSError:
                continue
            held.append(fd)
        return "contained" if held == [0, 1, 2, 4] else f"{held}"
    """,
    "read the environment": """
        import os, ctypes
        getenv = ctypes.CDLL(None).getenv
        getenv.restype = ctypes.c_char_p
        found = dict(os.environ), getenv(b"PROBE_SECRET"), getenv(b"PATH")
        return "contained" if found == ({}, None, None) else f"{found}"
    """,
    "fork without end": """
        import os, time
        for made in range(1000):
            try:
                if os.fork() == 0:
                    time.sleep(60)
                    os._exit(0)
            except OSError:
                return "contained" if made < 30 else f"{made} processes"
        return "1000 processes"
    """,
    "start threads without end": """
        import threading
        for made in range(1000):
            try:
                threading.Thread(target=threading.Event().wait, daemon=True).start()
            except RuntimeError:
                return "contained" if made < 30 else f"{made} threads"
        return "1000 threads"
    """,
    "fill the disk": """
        import os
        written = 0
        for number in range(100):
            try:
                with open(f"/tmp/{number}", "wb", buffering=0) as file:
                    for _ in range(100):
                        written += file.write(bytes(1 << 20))
            except OSError:
                if number > 4:
                    return "contained" if written <= 64 << 20 else f"{written} bytes"
        return f"{written} bytes"
    """,
}


@pytest.mark.parametrize("probe", PROBES)
def test_a_program_cannot(probe: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROBE_SECRET", "1234")
    assert_contained(PROBES[probe])


def test_the_probes_do_get_through_without_a_sandbox() -> None:
    """A probe that could never succeed would prove nothing: outside, most of them do."""
    outside = ("read the users", "read this test", "see processes", "run a program", "take two gigabytes", "import us")
    for name in outside:
        space: dict[str, object] = {}
        exec("def probe():\n" + textwrap.indent(textwrap.dedent(PROBES[name]), "    "), space)
        assert space["probe"]() != "contained", name  # type: ignore[operator]


@pytest.mark.parametrize("family", ["loopback", "abstract"])
def test_a_program_cannot_reach_a_server_on_this_machine(family: str) -> None:
    unix = family == "abstract"
    with socket.socket(socket.AF_UNIX if unix else socket.AF_INET) as server:
        server.bind(f"\0sizewise-{secrets.token_hex(8)}" if unix else ("127.0.0.1", 0))
        server.listen()
        server.settimeout(0.2)
        address = server.getsockname()
        kind = "AF_UNIX" if unix else "AF_INET"
        assert_contained(
            f"""
            import socket
            try:
                socket.socket(socket.{kind}).connect({address!r})
            except OSError:
                return "contained"
            return "connected"
            """
        )
        with pytest.raises(TimeoutError):
            server.accept()


def left_over(name: str) -> list[int]:
    return [process.pid for process in psutil.process_iter(["name"]) if process.info["name"] == name]


LINGERING = """
import ctypes, os, signal, time
def linger():
    ctypes.CDLL(None).prctl(15, b"NAME", 0, 0, 0)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            time.sleep(600)
        os._exit(0)
"""


@pytest.mark.parametrize("ending", ["return 1", "while True: pass", "import os; os._exit(0)", "time.sleep(600)"])
def test_nothing_is_left_of_a_program_that_hides_children(ending: str) -> None:
    name = "sw" + secrets.token_hex(5)
    program = LINGERING.replace("NAME", name) + f"    {ending}\n"
    verdict = run_tests([program], "linger", tests="assert candidate() == 1", limits=Limits(wall_s=2))
    assert verdict.passed == (ending == "return 1")
    assert left_over(name) == []
    assert not [child for child in psutil.Process().children() if "-I" in child.cmdline()]


def test_the_lingering_child_is_seen_while_it_lives() -> None:
    """So that the test above can fail: the name does show in the list of processes."""
    name = "sw" + secrets.token_hex(5)
    script = (
        f"import ctypes,sys; ctypes.CDLL(None).prctl(15, b'{name}', 0, 0, 0); print(1, flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert left_over(name) == [process.pid]
        process.communicate()


def test_nothing_is_left_when_we_are_killed() -> None:
    name = "sw" + secrets.token_hex(5)
    program = LINGERING.replace("NAME", name) + "    time.sleep(600)\n"
    script = f"from sizewise.measure.sandbox import *\nrun_tests([{program!r}], 'linger', tests='candidate()')"
    with subprocess.Popen([sys.executable, "-c", script]) as process:
        deadline = time.monotonic() + 30
        while not left_over(name) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert left_over(name)
        process.kill()
    deadline = time.monotonic() + 10
    while left_over(name) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left_over(name) == []


def test_many_processes_do_not_get_the_memory_of_many() -> None:
    """Each may have 512 MB; together they are stopped a little after twice that."""
    name = "sw" + secrets.token_hex(5)
    hungry = """
        for _ in range(20):
            if os.fork() == 0:
                held = b"x" * 300_000_000
                time.sleep(60)
        time.sleep(60)
    """
    program = LINGERING.replace("NAME", name) + textwrap.indent(textwrap.dedent(hungry), "    ")
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            held = 0
            for process in psutil.process_iter(["name", "memory_info"]):
                if process.info["name"] == name and process.info["memory_info"]:
                    held += process.info["memory_info"].rss
            peak[0] = max(peak[0], held)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        verdict = run_tests([program], "linger", tests="assert candidate() == 1", limits=Limits(wall_s=20))
    finally:
        done.set()
        watcher.join()
    assert "ended" in verdict.reason  # stopped, not timed out
    assert 500_000_000 < peak[0] < 3_500_000_000  # 6 GB without the watch


def test_a_program_that_prints_a_hundred_megabytes_costs_us_nothing() -> None:
    program = "import os\ndef f():\n    for _ in range(100):\n        os.write(1, b'x' * 1_000_000)\n"
    program += "        print('x' * 1_000_000)\n    return 1\n"
    tracemalloc.start()
    try:
        assert run_tests([program], "f", tests="assert candidate() == 1", limits=Limits(wall_s=60)).passed
        assert tracemalloc.get_traced_memory()[1] < 3_000_000
    finally:
        tracemalloc.stop()


def test_a_huge_or_endless_or_circular_value_is_a_failure_and_no_more() -> None:
    for body in (
        "'x' * 50_000_000",
        "iter(int, 1)",
        "(lambda a: (a.append(a), a)[1])([])",
        "eval('[' * 90 + ']' * 90)",
    ):
        verdict = run_tests([f"def f():\n    return {body}"], "f", tests="assert list(candidate()) == 1")
        assert not verdict.passed


def test_many_time_outs_leave_no_file_open() -> None:
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(5):
        assert not run_tests(["while True: pass"], "f", tests="candidate()", limits=Limits(wall_s=0.2)).passed
    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.skipif(not shutil.which("unshare"), reason="needs unshare to take namespaces away")
def test_where_there_are_no_namespaces_nothing_is_run() -> None:
    script = "from sizewise.measure.sandbox import why_not; print(why_not())"
    shell = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
    command = ["unshare", "-Ur", "sh", "-c", shell, sys.executable, script]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert "user namespaces" in done.stdout
    assert "unshare" in done.stdout
