"""The manager's decisions: what is loaded when, for how long, and what goes. Sessions are scripted."""

import asyncio
from pathlib import Path

import pytest
from scripted import Opener
from served import save_tiny

from sizewise.core.errors import Busy, Crashing, DoesNotFit, EngineFailed, TooLong, UnknownName, UsageError
from sizewise.load.store.store import Store
from sizewise.serve import memory
from sizewise.serve.errors import HttpError
from sizewise.serve.job import Done, Job
from sizewise.serve.manager import UNSET, KeepAlive, Manager
from sizewise.serve.settings import Settings

pytestmark = pytest.mark.asyncio


@pytest.fixture(autouse=True)
def plenty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is not what these tests are about, unless they say so."""
    monkeypatch.setattr(memory, "available", lambda pids=(): 10**12)


def make(home: Path, opener: Opener | None = None, **settings: object) -> tuple[Manager, Opener]:
    opener = opener or Opener()
    told = Settings(parallel=2, **settings)  # type: ignore[arg-type]
    return Manager(told, Store(home / "models"), opener=opener), opener


async def ask(
    manager: Manager, name: str, prompt: str = "a b", context: int | None = None, keep_alive: KeepAlive = UNSET
) -> Done:
    async with manager.lease(name, context=context, keep_alive=keep_alive) as lease:
        events = [event async for event in lease.stream(Job(prompt=prompt))]
    assert isinstance(events[-1], Done)
    return events[-1]


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0.005)


async def test_first_requests_at_once_load_once(tiny_home: Path) -> None:
    manager, opener = make(tiny_home, Opener(seconds=0.05))
    await asyncio.gather(*(ask(manager, "tiny") for _ in range(10)))
    assert len(opener.opened) == 1
    assert (manager.admission.running, manager.admission.waiting) == (0, 0)


@pytest.mark.parametrize(
    "name", ["../tiny", "/etc/passwd", "./x.gguf", "hf://a/b", "openai://m@http://h/v1", "", "a b"]
)
async def test_only_names_are_taken(tiny_home: Path, name: str) -> None:
    manager, opener = make(tiny_home)
    with pytest.raises(UsageError):
        await ask(manager, name)
    with pytest.raises(UnknownName):
        await ask(manager, "absent.gguf")
    assert not opener.opened


async def test_a_name_in_another_case_is_the_same_model(tiny_home: Path) -> None:
    manager, opener = make(tiny_home)
    for name in ("tiny", "TINY", "Tiny:Latest", "library/tiny"):
        await ask(manager, name)
    assert len(opener.opened) == 1


async def test_a_load_outlives_the_request_that_began_it(tiny_home: Path) -> None:
    manager, opener = make(tiny_home, Opener(seconds=0.05))
    first = asyncio.create_task(ask(manager, "tiny"))
    second = asyncio.create_task(ask(manager, "tiny"))
    await asyncio.sleep(0.01)
    first.cancel()
    assert (await second).finish == "stop"
    assert len(opener.opened) == 1
    await settle()
    assert (manager.admission.running, manager.admission.waiting) == (0, 0)
    assert await manager.unload("tiny")  # nobody is left who uses it


@pytest.mark.parametrize(("keep_alive", "stays"), [(0.0, False), (None, True), (UNSET, True), (60.0, True)])
async def test_keep_alive_of_the_request(tiny_home: Path, keep_alive: KeepAlive, stays: bool) -> None:
    manager, opener = make(tiny_home)
    await ask(manager, "tiny", keep_alive=keep_alive)
    await settle()
    assert [one.name for one in manager.loaded()] == (["tiny"] if stays else [])
    if stays:
        assert (manager.loaded()[0].expires_at is None) == (keep_alive is None)
    assert opener.opened[0].closed == (not stays)


async def test_keep_alive_of_the_settings_and_touch(tiny_home: Path) -> None:
    manager, _ = make(tiny_home, keep_alive_s=0.05)
    await ask(manager, "tiny")
    assert len(manager.loaded()) == 1
    await asyncio.sleep(0.2)
    assert not manager.loaded()
    await ask(manager, "tiny")
    manager.touch("tiny", None)
    await asyncio.sleep(0.2)
    assert manager.loaded()[0].expires_at is None


async def test_a_model_in_use_is_not_unloaded_by_its_timer(tiny_home: Path) -> None:
    manager, _ = make(tiny_home)
    async with manager.lease("tiny", keep_alive=0.0):
        await ask(manager, "tiny", keep_alive=0.0)
        await settle()
        assert manager.loaded()
    await settle()
    assert not manager.loaded()


async def test_least_recently_used_goes_first(tiny_home: Path) -> None:
    manager, opener = make(tiny_home, max_loaded=2)
    for name in ("tiny", "tiny2", "tiny", "tiny3"):
        await ask(manager, name)
    assert opener.running == ["tiny", "tiny3"]


async def test_models_take_turns_where_only_one_may_be_loaded(tiny_home: Path) -> None:
    manager, opener = make(tiny_home, max_loaded=1)
    names = ["tiny", "tiny2", "tiny3"] * 4
    done = await asyncio.wait_for(asyncio.gather(*(ask(manager, name) for name in names)), 20)
    assert len(done) == 12
    assert len(opener.running) == 1


async def test_idle_models_go_for_memory_and_then_it_does_not_fit(
    tiny_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    manager, opener = make(tiny_home)
    each = memory.estimate(manager.find("tiny"), 256, 2)

    def free(pids: object = ()) -> int:
        return int(2.5 * each) - each * len(opener.running)

    monkeypatch.setattr(memory, "available", free)
    for name in ("tiny", "tiny2", "tiny3"):
        await ask(manager, name)
    assert opener.running == ["tiny2", "tiny3"]
    monkeypatch.setattr(memory, "available", lambda pids=(): each // 2)
    with pytest.raises(DoesNotFit, match=r"tiny needs .* but .* free"):
        await ask(manager, "tiny")
    assert manager.admission.running == 0


async def test_an_automatic_context_shrinks_and_an_asked_one_does_not(
    tiny_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sizewise.serve.manager.LEAST_CONTEXT", 64)
    manager, opener = make(tiny_home)
    model = manager.find("tiny")
    monkeypatch.setattr(memory, "available", lambda pids=(): memory.estimate(model, 128, 2))
    await ask(manager, "tiny")
    assert opener.opened[0].context == 128
    with pytest.raises(DoesNotFit):
        await ask(manager, "tiny2", context=256)


async def test_a_long_prompt_has_an_automatic_context_grow(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sizewise.serve.manager.DEFAULT_CONTEXT", 64)
    manager, opener = make(tiny_home)
    long = "x " * 100
    assert (await ask(manager, "tiny", long)).prompt_tokens == 100
    assert [session.context for session in opener.opened] == [64, 256]
    with pytest.raises(TooLong, match=r"300 tokens.* 256"):
        await ask(manager, "tiny", "x " * 300)  # more than the model's own context
    with pytest.raises(TooLong, match=r"100 tokens.* 64"):
        await ask(manager, "tiny", long, context=64)  # the context was asked for
    async with manager.lease("tiny2") as lease:
        task = asyncio.create_task(ask(manager, "tiny2", long))
        await settle()
        assert not task.done()  # it waits for the other request to end
        assert [event async for event in lease.stream(Job(prompt="a"))]
    await task


async def test_two_long_prompts_grow_it_once(tiny_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sizewise.serve.manager.DEFAULT_CONTEXT", 64)
    manager, opener = make(tiny_home)
    await asyncio.wait_for(asyncio.gather(*(ask(manager, "tiny", "x " * 100) for _ in range(2))), 10)
    assert len(opener.opened) == 2


async def test_unload_waits_for_answers_and_later_requests_load_again(tiny_home: Path) -> None:
    manager, opener = make(tiny_home)
    await ask(manager, "tiny")
    opener.opened[0].hold.clear()
    running = asyncio.create_task(ask(manager, "tiny"))
    await settle()
    unloading = asyncio.create_task(manager.unload("tiny"))
    await settle()
    late = asyncio.create_task(ask(manager, "tiny"))
    await settle()
    assert not unloading.done()
    opener.opened[0].hold.set()
    await asyncio.wait_for(asyncio.gather(running, unloading, late), 5)
    assert unloading.result()
    assert len(opener.opened) == 2
    assert not await manager.unload("absent")


async def test_a_dead_process_is_replaced_until_the_breaker_opens(tiny_home: Path) -> None:
    manager, opener = make(tiny_home)
    for _ in range(3):
        await ask(manager, "tiny")
        opener.opened[-1].hold.clear()
        running = asyncio.create_task(ask(manager, "tiny"))
        await settle()
        opener.opened[-1].alive = False
        with pytest.raises(EngineFailed):
            await running
        await settle()
        assert not manager.loaded()
    with pytest.raises(Crashing) as refused:
        await ask(manager, "tiny")
    assert 0 < refused.value.retry_after_s <= 60
    assert (await ask(manager, "tiny2")).finish == "stop"  # other models are not concerned
    assert manager.admission.running == 0


async def test_a_load_that_fails_gives_the_place_back(tiny_home: Path) -> None:
    manager, opener = make(tiny_home)
    opener.failure = EngineFailed("no")
    for _ in range(2):
        with pytest.raises(EngineFailed):
            await ask(manager, "tiny")
    opener.failure = None
    assert (await ask(manager, "tiny")).finish == "stop"
    assert manager.admission.running == 0


async def test_more_than_the_queue_holds_is_refused_at_once(tiny_home: Path) -> None:
    manager, opener = make(tiny_home, max_queue=3)
    await ask(manager, "tiny")
    opener.opened[0].hold.clear()
    tasks = [asyncio.create_task(ask(manager, "tiny")) for _ in range(10)]
    await settle()
    refused = [task for task in tasks if task.done()]
    assert len(refused) == 5  # two are answered, three wait
    assert all(isinstance(task.exception(), Busy) for task in refused)
    tasks[3].cancel()
    opener.opened[0].hold.set()
    await asyncio.wait(tasks)
    assert (manager.admission.running, manager.admission.waiting) == (0, 0)


async def test_close_waits_then_ends_everything(tiny_home: Path) -> None:
    manager, opener = make(tiny_home)
    await ask(manager, "tiny2")
    async with manager.lease("tiny"):
        closing = asyncio.create_task(manager.close(5.0))
        await settle()
        assert not opener.opened[1].closed
        with pytest.raises(HttpError):
            await ask(manager, "tiny2")
    await asyncio.wait_for(closing, 5)
    assert not opener.running


async def test_a_name_that_means_another_model_now(tiny_home: Path, tmp_path: Path) -> None:
    store = Store(tmp_path / "models")
    save_tiny(store, tmp_path, "mine", 1)
    opener = Opener()
    manager = Manager(Settings(), store, opener=opener)
    await ask(manager, "mine")
    save_tiny(store, tmp_path, "mine", 2)
    await ask(manager, "mine")
    await settle()
    assert len(opener.opened) == 2
    assert opener.opened[0].closed
    assert opener.opened[0].model.digest != opener.opened[1].model.digest
