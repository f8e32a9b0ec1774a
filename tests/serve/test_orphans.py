"""Nothing stays behind: children of a server that was killed, and servers of tests that were killed."""

import json
import os
import subprocess
import sys
from pathlib import Path

import psutil
from served import Served, StartServer

SHORT = {"model": "tiny", "stream": False, "options": {"num_predict": 2}}
TEST = """
import sys
import threading
from pathlib import Path
from served import launch
served = launch(Path(sys.argv[1]), "--context", "256")
with served.client() as client:
    client.post("/api/generate", json={"model": "tiny", "prompt": "a", "options": {"num_predict": 2}})
print([served.pid, *(child.pid for child in served.children())], flush=True)
threading.Event().wait(100)
"""


def gone(family: list[psutil.Process], seconds: float) -> bool:
    """Whether all of them end in time."""
    _, alive = psutil.wait_procs(family, seconds)
    return not [one for one in alive if one.is_running() and one.status() != psutil.STATUS_ZOMBIE]


def busy(served: Served) -> list[psutil.Process]:
    """The children of a server that has had to do with engine, scorer and template."""
    with served.client() as client:
        assert client.post("/api/chat", json={**SHORT, "messages": [{"role": "user", "content": "a"}]}).is_success
        assert client.post("/api/embed", json={"model": "tiny", "input": "a"}).is_success
    return served.children()


def test_children_of_a_killed_server_end(tiny_home: Path, start_server: StartServer) -> None:
    served = start_server(tiny_home, "--context", "256")
    family = busy(served)
    assert len(family) >= 3
    long = {"model": "tiny", "prompt": "a", "options": {"num_predict": 10**6}}
    with served.client() as client, client.stream("POST", "/api/generate", json=long) as answer:
        assert next(answer.iter_lines())
        served.process.kill()
        served.process.wait()
    assert gone(family, 20)


def test_a_killed_test_leaves_no_server(tiny_home: Path) -> None:
    tests = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": f"{tests}{os.pathsep}{tests.parent}"}
    command = [sys.executable, "-c", TEST, str(tiny_home)]
    test = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    assert test.stdout is not None
    family = [psutil.Process(pid) for pid in json.loads(test.stdout.readline())]
    assert len(family) >= 2
    test.kill()
    test.wait()
    test.stdout.close()
    assert gone(family, 20)
