"""`serve`, `ps` and `stop` as commands."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from served import Served, launch, save_tiny

from sizewise.cli.serving import _processor, _until
from sizewise.load.store.store import Store


def run(*arguments: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OLLAMA_")}
    command = [sys.executable, "-m", "sizewise", *arguments]
    return subprocess.run(
        command, env={**environment, **variables}, capture_output=True, text=True, timeout=120, check=False
    )


def test_without_a_server_it_is_one_line() -> None:
    for arguments in (("ps",), ("stop", "m")):
        done = run(*arguments, OLLAMA_HOST="127.0.0.1:9")
        assert done.returncode == 3
        assert done.stderr == ("sizewise: no server answers at http://127.0.0.1:9; `sizewise serve` starts one\n")


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    save_tiny(Store(tmp_path / "models"), tmp_path)
    running = launch(tmp_path, "--context", "256", SIZEWISE_API_KEY="a-key")
    yield running
    running.stop()


def test_ps_and_stop(served: Served) -> None:
    told = {"OLLAMA_HOST": served.host, "OLLAMA_API_KEY": "a-key"}
    assert run("ps", "--json", **told).stdout == "[]\n"
    body = {"model": "tiny", "prompt": "a", "stream": False, "keep_alive": "10m", "options": {"num_predict": 1}}
    with served.client() as client:
        assert client.post("/api/generate", json=body, headers={"x-api-key": "a-key"}).status_code == 200
    table = run("ps", **told).stdout
    assert table.split("\n")[1].split() == ["NAME", "ID", "SIZE", "PROCESSOR", "CONTEXT", "UNTIL"]
    assert "tiny" in table
    assert "minutes from now" in table
    (shown,) = json.loads(run("ps", "--json", **told).stdout)
    assert shown["context_length"] == 256
    done = run("stop", "tiny", **told)
    assert (done.returncode, done.stdout) == (0, "stopped tiny\n")
    assert run("ps", "--json", **told).stdout == "[]\n"
    missing = run("stop", "absent", **told)
    assert missing.returncode == 2
    assert missing.stderr.count("\n") == 1
    assert run("ps", OLLAMA_HOST=served.host).returncode == 2  # no key


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(299, "5 minutes from now"), (90_000, "1 day from now"), (-5, "Stopping..."), (59, "59 seconds from now")],
)
def test_until(seconds: int, shown: str) -> None:
    assert _until((datetime.now(UTC) + timedelta(seconds=seconds + 0.4)).isoformat()) == shown


def test_for_ever_and_where() -> None:
    assert _until(None) == _until("9999-12-31T23:59:59Z") == "Forever"
    assert (_processor(10, 0), _processor(10, 10), _processor(100, 40)) == ("100% CPU", "100% GPU", "60%/40% CPU/GPU")
