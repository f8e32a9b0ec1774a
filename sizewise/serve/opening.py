"""From a model to a session: the engine's own server for a GGUF file, a runner for everything else."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

from sizewise.core.errors import EngineFailed
from sizewise.core.model import Model
from sizewise.load.llama.server import LlamaServer
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.serve.capabilities import capabilities_of
from sizewise.serve.generic import GenericSession
from sizewise.serve.native import NativeSession
from sizewise.serve.session import Session

T = TypeVar("T")


async def open_session(
    model: Model, *, context: int, parallel: int, threads: int | None = None, load_timeout: float = 300.0
) -> Session:
    """Load a model without holding up the event loop.

    Args:
        model: what to load.
        context: tokens that one request may use, prompt and answer together.
        parallel: requests that are answered at the same time.
        threads: of the engine's computation; None = one for each core.
        load_timeout: seconds after which loading is given up.

    Raises:
        BadModel: the file holds no model that the engine can load.
        DoesNotFit: there is not enough memory.
        EngineFailed: the engine died while it loaded, or took longer than `load_timeout`.
    """
    if model.kind == "gguf" and "completion" in await asyncio.to_thread(capabilities_of, model):
        server = await asyncio.to_thread(LlamaServer, model, context=context, parallel=parallel, threads=threads)
        await _in_time(server.load, model, load_timeout, server.kill)
        return NativeSession(server)
    options = Options(threads=threads, context=min(context, model.context_length or context), parallel=parallel)
    runner = await _in_time(lambda: open_runner(model, options=options), model, load_timeout, None)
    return GenericSession(runner, context=context, parallel=parallel)


async def _in_time(load: Callable[[], T], model: Model, seconds: float, stop: Callable[[], None] | None) -> T:
    """Load in a thread; give up after some time, or when nobody wants it any more."""
    task = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return await asyncio.wait_for(asyncio.shield(task), seconds)
    except (TimeoutError, asyncio.CancelledError) as error:
        if stop:
            stop()
        task.add_done_callback(_drop)
        if isinstance(error, TimeoutError):
            raise EngineFailed(f"{model.name}: loading took longer than {seconds:g} s") from error
        raise


def _drop(task: "asyncio.Future[T]") -> None:
    """What was loaded too late is closed again."""
    late = None if task.cancelled() or task.exception() else task.result()
    if late is not None and hasattr(late, "close"):
        asyncio.get_running_loop().run_in_executor(None, late.close)
