"""The estimate before a load against what the processes then hold (R11)."""

import asyncio
import random
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from scripted import Opener
from served import save_smollm2
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import DoesNotFit
from sizewise.core.recipe import Lineage
from sizewise.core.requests import ScoreRequest
from sizewise.load.models import save_model
from sizewise.load.store.store import Store
from sizewise.measure.meters.memory import high_water_bytes
from sizewise.serve import memory
from sizewise.serve.job import Draw, Job
from sizewise.serve.manager import Manager
from sizewise.serve.settings import Settings

TYPES: dict[str, tuple[Any, Any]] = {
    "f32": (np.float32, None),
    "f16": (np.float16, None),
    "q8_0": (np.float32, gguf.GGMLQuantizationType.Q8_0),
    "q4_0": (np.float32, gguf.GGMLQuantizationType.Q4_0),
}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Random models of 47 million weights in four types."""
    folder = tmp_path_factory.mktemp("sizes")
    store = Store(folder / "models")
    for name, (dtype, packed) in TYPES.items():
        file = write_tiny_llama(
            folder / f"{name}.gguf",
            width=768,
            layers=7,
            heads=12,
            kv_heads=4,
            hidden=2048,
            dtype=dtype,
            quantization=packed,
        )
        save_model(name, "gguf", {"model.gguf": file}, lineage=Lineage(recipe=None), store=store, move=True)
    return store


async def _peak(store: Store, name: str, context: int, parallel: int, words: int) -> tuple[int, int]:
    manager = Manager(Settings(parallel=parallel, threads=2), store)
    try:
        async with manager.lease(name, context=context) as lease:
            job = Job(prompt="ab " * words, draw=Draw(max_tokens=2))
            assert [event async for event in lease.stream(job)]
            session = lease.session
            held = sum(high_water_bytes(pid) or 0 for pid in session.pids())
            return memory.estimate(session.model, session.context, parallel), held
    finally:
        await manager.close(0.0)


@pytest.mark.parametrize(
    ("name", "context", "parallel"),
    [(name, context, parallel) for name in TYPES for context, parallel in ((128, 1), (256, 16))],
)
def test_the_estimate_is_near_the_peak(store: Store, name: str, context: int, parallel: int) -> None:
    estimate, peak = asyncio.run(_peak(store, name, context, parallel, words=30))
    assert -0.10 <= estimate / peak - 1 <= 0.25, (estimate, peak)


@pytest.mark.model
@pytest.mark.parametrize(("context", "parallel"), [(512, 1), (2048, 4), (8192, 1), (8192, 4)])
def test_the_estimate_for_a_real_model(smollm2: Path, tmp_path: Path, context: int, parallel: int) -> None:
    save_smollm2(tmp_path, smollm2)
    estimate, peak = asyncio.run(_peak(Store(tmp_path / "models"), "smollm2", context, parallel, words=60))
    assert -0.10 <= estimate / peak - 1 <= 0.25, (estimate, peak)


async def _later(store: Store, name: str) -> tuple[int, int, int, int]:
    """Growth with earlier prompts and what was promised for them; memory of the scorer's own and its estimate."""
    manager, draw = Manager(Settings(parallel=2, threads=2), store), random.Random(6)
    try:
        async with manager.lease(name, context=256) as lease:
            session = lease.session
            for turn in range(12):
                job = Job(prompt="".join(draw.choices("abcdefgh", k=200)), draw=Draw(max_tokens=2))
                assert [event async for event in lease.stream(job)]
                if turn == 3:  # every slot has been used
                    before = memory.held(session.pids())
            grown, first = memory.held(session.pids()) - before, set(session.pids())
            await session.score([ScoreRequest("the " * 50, (" film", " sun"))])
            await session.embed(["a b c"])
            (second,) = set(session.pids()) - first
            status = Path(f"/proc/{second}/status").read_text()
            own = int(status.split("RssAnon:")[1].split()[0]) * 1024  # the file's pages are the first process's, too
            promised = memory.prompts(session.model, session.context, 2)
            return grown, promised, own, memory.scorer(session.model)
    finally:
        await manager.close(0.0)


@pytest.mark.parametrize("name", ["f16", "q4_0"])
def test_what_comes_after_the_load_is_counted_too(store: Store, name: str) -> None:
    """Earlier prompts that are kept, and the process for scores and embeddings."""
    grown, promised, own, scorer = asyncio.run(_later(store, name))
    assert grown <= promised + 4 * 2**20, (grown, promised)
    assert own / 1.1 <= scorer <= 2 * own, (own, scorer)


def test_what_is_promised_is_not_given_twice(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Room for earlier prompts of a loaded model counts as taken, and where there is little, little is promised."""
    opener = Opener()
    manager = Manager(Settings(parallel=2), store, opener=opener)
    need = memory.estimate(manager.find("f16"), 256, 2)
    promised = memory.prompts(manager.find("f16"), 256, 2)
    monkeypatch.setattr(memory, "available", lambda pids=(): need + promised // 2)

    async def load(name: str) -> None:
        async with manager.lease(name, context=256):
            pass

    asyncio.run(load("f16"))
    assert opener.cache_bytes == promised // 2
    assert sum(one.cache_bytes for one in manager._residents.values()) == promised // 2
    other = memory.estimate(manager.find("f32"), 256, 2)
    monkeypatch.setattr(memory, "available", lambda pids=(): other + promised // 2 - 1)
    asyncio.run(load("f32"))
    assert opener.running == ["f32"]  # the other had to go


def test_no_room_for_a_scorer_is_told(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Manager(Settings(), store).find("q4_0")
    memory.check_scorer(model)
    monkeypatch.setattr(memory, "available", lambda pids=(): memory.scorer(model) - 1)
    with pytest.raises(DoesNotFit, match=r"q4_0 needs .* for scores and embeddings, but .* are free"):
        memory.check_scorer(model)


def test_what_can_never_fit_is_refused_before_it_is_loaded(store: Store) -> None:
    manager = Manager(Settings(parallel=10**7), store)

    async def ask() -> None:
        async with manager.lease("f16", context=256):
            pass

    with pytest.raises(DoesNotFit, match=r"f16 needs .*B of memory with a context of 256 tokens, but .*B are free"):
        asyncio.run(ask())
    assert not manager.pids()


def test_memory_of_this_process_is_seen() -> None:
    import os

    assert memory.held([os.getpid()]) > 10**6
    assert 0 < memory.mapped([os.getpid()]) < 10**10
    assert memory.held([2**22 + 1]) == memory.mapped([2**22 + 1]) == 0
    assert memory.available([os.getpid()]) <= memory.available()
