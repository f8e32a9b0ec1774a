"""Engines that hang are killed; slow ones and those that nobody waits for are not."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from scripted import ScriptedSession

from sizewise.core.model import Model
from sizewise.serve import stalls
from sizewise.serve.admission import Admission
from sizewise.serve.resident import Resident

pytestmark = pytest.mark.asyncio
HANGS, WORKS = "import time\ntime.sleep(60)", "while True: pass"


class Session(ScriptedSession):
    """One with a process."""

    process: "subprocess.Popen[bytes]"

    def pids(self) -> list[int]:
        return [self.process.pid]


@pytest.fixture
def resident(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Resident]:
    monkeypatch.setattr(stalls, "LOOK_S", 0.1)
    monkeypatch.setattr(stalls, "STALLED_S", 1.0)
    monkeypatch.setattr(stalls, "_WORKING_S", 0.002)
    model = Model("m", "gguf", "d", {"model.gguf": Path("m")}, 1)
    session = Session(model, 8)
    session.process = subprocess.Popen([sys.executable, "-c", request.param])
    made = Resident(model, Admission(1), 1)
    made.session = cast(Any, session)
    made.take()
    yield made
    session.process.kill()
    session.process.wait()


async def _ended(resident: Resident, seconds: float) -> bool:
    killed: list[str] = []
    watch = stalls.StallWatch(lambda: [resident], killed.append)
    watch.begin()
    process = cast(Any, resident.session).process
    try:
        await asyncio.to_thread(process.wait, seconds)
    except subprocess.TimeoutExpired:
        return bool(killed)
    finally:
        watch.stop()
    return killed[0] == "m"


@pytest.mark.parametrize("resident", [HANGS], indirect=True)
async def test_one_that_hangs_is_killed(resident: Resident) -> None:
    resident.begin_wait()
    assert await _ended(resident, 20)


@pytest.mark.parametrize("resident", [WORKS], indirect=True)
async def test_one_that_works_is_not(resident: Resident) -> None:
    resident.begin_wait()
    assert not await _ended(resident, 2.5)


@pytest.mark.parametrize("resident", [HANGS], indirect=True)
async def test_one_that_nobody_waits_for_is_not(resident: Resident) -> None:
    resident.begin_wait()
    resident.end_wait()
    assert not await _ended(resident, 2.5)
