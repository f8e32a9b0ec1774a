"""The queue before a model's places, and the breaker."""

import asyncio

import pytest

from sizewise.core.errors import Busy, Crashing
from sizewise.serve.admission import Admission, Breaker, Line


@pytest.mark.asyncio
async def test_places_then_queue_then_busy() -> None:
    line = Line(Admission(max_queue=2), places=2)
    assert [await line.enter("m"), await line.enter("m")] == [0.0, 0.0]
    waiting = [asyncio.create_task(line.enter("m")) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(Busy) as refused:
        await line.enter("m")
    assert refused.value.retry_after_s >= 1
    line.leave()
    await asyncio.sleep(0)
    assert [task.done() for task in waiting] == [True, False]  # first come, first served
    line.leave()
    await asyncio.gather(*waiting)
    line.leave()
    line.leave()
    assert line.empty
    assert (line.admission.running, line.admission.waiting) == (0, 0)


@pytest.mark.asyncio
async def test_who_goes_while_waiting_gives_the_place_back() -> None:
    line = Line(Admission(max_queue=9), places=1)
    await line.enter("m")
    first, second = (asyncio.create_task(line.enter("m")) for _ in range(2))
    await asyncio.sleep(0)
    line.leave()  # it is the first one's turn, but it goes at the same moment
    first.cancel()
    await asyncio.wait({first, second}, timeout=1)
    assert first.cancelled()
    assert second.done()
    line.leave()
    assert (line.admission.running, line.admission.waiting, line.empty) == (0, 0, True)


@pytest.mark.asyncio
async def test_who_goes_just_before_its_turn_is_passed_over() -> None:
    line = Line(Admission(max_queue=9), places=1)
    await line.enter("m")
    first, second = (asyncio.create_task(line.enter("m")) for _ in range(2))
    await asyncio.sleep(0)
    first.cancel()
    line.leave()  # before the first one has run again
    await asyncio.wait({first, second}, timeout=1)
    assert first.cancelled()
    assert second.done()
    line.leave()
    assert (line.admission.running, line.admission.waiting, line.empty) == (0, 0, True)


@pytest.mark.asyncio
async def test_a_burst_is_refused_before_it_comes_to_the_line() -> None:
    line = Line(Admission(max_queue=2), places=2)
    announced = [line.announce("m") for _ in range(4)]
    with pytest.raises(Busy):
        line.announce("m")
    for one in announced[:2]:
        one.settle()
        one.settle()
        await line.enter("m")
    with pytest.raises(Busy):
        line.announce("m")
    announced[2].settle()  # it will not come
    assert line.announce("m")
    line.leave()
    assert line.announce("m")


@pytest.mark.asyncio
async def test_the_queue_is_one_for_all_models() -> None:
    admission = Admission(max_queue=1)
    lines = [Line(admission, places=1) for _ in range(2)]
    for line in lines:
        await line.enter("m")
    task = asyncio.create_task(lines[0].enter("m"))
    await asyncio.sleep(0)
    with pytest.raises(Busy):
        await lines[1].enter("m")
    task.cancel()
    await asyncio.sleep(0)
    assert admission.waiting == 0


def test_the_breaker_opens_for_the_rest_of_the_window() -> None:
    now = 0.0
    breaker = Breaker(lambda: now)
    breaker.crashed()
    now = 10.0
    breaker.crashed()
    breaker.check("m")
    now = 20.0
    breaker.crashed()
    with pytest.raises(Crashing, match="40 s") as refused:
        breaker.check("m")
    assert refused.value.retry_after_s == 40
    now = 60.5
    breaker.check("m")
    breaker.crashed()  # 10, 20 and 60.5: the window moves on
    with pytest.raises(Crashing, match="10 s"):
        breaker.check("m")
