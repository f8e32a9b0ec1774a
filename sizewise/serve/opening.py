"""From a model to a session: the engine's own server for a GGUF file, a runner for everything else."""

import asyncio

from sizewise.core.errors import EngineFailed
from sizewise.core.model import Model
from sizewise.serve.session import Session


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
    from sizewise.load.llama.server import LlamaServer
    from sizewise.serve.native import NativeSession

    def load() -> LlamaServer:
        return LlamaServer(model, context=context, parallel=parallel, threads=threads)

    task = asyncio.ensure_future(asyncio.to_thread(load))
    try:
        return NativeSession(await asyncio.wait_for(asyncio.shield(task), load_timeout))
    except TimeoutError as error:
        raise EngineFailed(f"{model.name}: loading took longer than {load_timeout:g} s") from error
