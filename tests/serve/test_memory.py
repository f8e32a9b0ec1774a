"""The estimate before a load against what the processes then hold (R11)."""

import asyncio
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from served import save_smollm2
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import DoesNotFit
from sizewise.core.recipe import Lineage
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
