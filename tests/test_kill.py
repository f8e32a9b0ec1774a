"""kill -9 at random moments: the doctor finds nothing wrong, and the same command run again gives the clean result.

`SIZEWISE_KILLS=20` kills each command that often (default 3); `SIZEWISE_KILL_SEED` replays a failing run.
"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

KILLS = int(os.environ.get("SIZEWISE_KILLS", "3"))
SEED = int(os.environ.get("SIZEWISE_KILL_SEED", "0"))
ROOT = Path(__file__).parent.parent
LONGEST_S = 900  # of one command, on a machine with much else to do
pytestmark = [pytest.mark.model, pytest.mark.slow, pytest.mark.timeout(2 * LONGEST_S + 120 * KILLS)]


def command(home: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = os.environ | {"SIZEWISE_HOME": str(home)}
    return subprocess.Popen(
        [sys.executable, "-m", "sizewise", *arguments],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def run(home: Path, *arguments: str) -> str:
    with command(home, *arguments) as process:
        try:
            out, error = process.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    assert process.returncode == 0, error
    return out


def kill_at(home: Path, moment: float, *arguments: str) -> None:
    """Start a command, kill -9 its own process after `moment` seconds; its children must go by themselves."""
    process = command(home, *arguments)
    try:
        process.wait(moment)
        process.communicate()
        return
    except subprocess.TimeoutExpired:
        children = psutil.Process(process.pid).children(recursive=True)
        process.kill()
        process.communicate()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert not alive, f"left behind: {alive}"


def same(text: str, kind: str) -> Any:
    """What of a result may not depend on when it was interrupted."""
    body = json.loads(text)
    if kind == "pull":
        return body["digest"], body["bytes"]
    if kind == "eval":
        return [(row["value"], row["low"], row["high"], row["n"], row["unanswered"]) for row in body]
    decision = body["decision"]
    return decision["status"], decision["model"], [(c["model"], c["dev"], c["test"]) for c in body["candidates"]]


def task(folder: Path) -> str:
    """A small part of the sentiment task."""
    for part, rows in (("train", 300), ("test", 120)):
        lines = (ROOT / "examples" / "data" / f"sentiment_{part}.jsonl").read_text(encoding="utf-8").splitlines()
        (folder / f"{part}.jsonl").write_text("\n".join(lines[:rows]) + "\n", encoding="utf-8")
    text = (ROOT / "examples" / "sentiment.toml").read_text(encoding="utf-8")
    text = text.replace("data/sentiment_train", "train").replace("data/sentiment_test", "test")
    (folder / "task.toml").write_text(text, encoding="utf-8")
    return str(folder / "task.toml")


@pytest.mark.parametrize("kind", ["pull", "eval", "fit"])
def test_killed_commands_lose_nothing(kind: str, tmp_path: Path, smollm2: Path) -> None:
    clean, home = tmp_path / "clean", tmp_path / "home"
    arguments = {
        "pull": ("pull", str(smollm2), "--name", "m", "--json"),
        "eval": ("eval", task(tmp_path), "m", "--shots", "4", "--json"),
        "fit": ("fit", task(tmp_path), "m", "--json"),
    }[kind]
    for folder in (clean, home):
        if kind != "pull":
            run(folder, "pull", str(smollm2), "--name", "m")
    start = time.monotonic()
    expected = same(run(clean, *arguments), kind)
    length = time.monotonic() - start
    moments = random.Random(SEED)
    for _ in range(KILLS):
        kill_at(home, moments.uniform(0.1, length), *arguments)
        run(home, "doctor")
    assert same(run(home, *arguments), kind) == expected
    run(home, "doctor")
