"""From a model to a session: the engine's own server for a GGUF file, a runner for everything else."""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import TypeVar

from sizewise.core.errors import BadModel, EngineFailed, SizewiseError, UsageError
from sizewise.core.model import Model
from sizewise.core.requests import Message
from sizewise.load.facts import GGUF_FILE
from sizewise.load.gguf.file import read_gguf
from sizewise.load.llama.server import MOST_CACHED, PLAIN, PROJECTOR_FILE, LlamaServer
from sizewise.load.open import open_runner
from sizewise.load.runner import Options
from sizewise.load.templates import render_chat
from sizewise.serve.capabilities import capabilities_of
from sizewise.serve.generic import GenericSession
from sizewise.serve.native import NativeSession
from sizewise.serve.session import Session

T = TypeVar("T")


async def open_session(
    model: Model,
    *,
    context: int,
    parallel: int,
    threads: int | None = None,
    load_timeout: float = 300.0,
    cache_bytes: int = MOST_CACHED,
) -> Session:
    """Load a model without holding up the event loop.

    Args:
        model: what to load.
        context: tokens that one request may use, prompt and answer together.
        parallel: requests that are answered at the same time.
        threads: of the engine's computation; None = one for each core.
        cache_bytes: memory for earlier prompts, where the engine keeps such.
        load_timeout: seconds after which loading is given up.

    Raises:
        BadModel: the file holds no model that the engine can load.
        DoesNotFit: there is not enough memory.
        EngineFailed: the engine died while it loaded, or took longer than `load_timeout`.
    """
    if model.kind == "gguf" and "completion" in await asyncio.to_thread(capabilities_of, model):
        make = partial(LlamaServer, model, context=context, parallel=parallel, threads=threads, cache_bytes=cache_bytes)
        server = await asyncio.to_thread(lambda: make(template=_engine_template(model)))
        await _in_time(server.load, model, load_timeout, server.kill)
        session = NativeSession(server)
        await session.prepare()
        return session
    options = Options(threads=threads, context=min(context, model.context_length or context), parallel=parallel)
    runner = await _in_time(lambda: open_runner(model, options=options), model, load_timeout, None)
    return GenericSession(runner, context=context, parallel=parallel)


def _engine_template(model: Model) -> str:
    """The template that the engine itself may render: the model's own where it is needed and did well in our sandbox.

    A template is a program by a stranger, and the engine runs it without limits on time. Most models need no more than
    our own rendering.
    """
    template = model.template or read_gguf(model.files[GGUF_FILE]).template
    wants = PROJECTOR_FILE in model.files or "thinking" in capabilities_of(model)
    if not template or not (wants or "tools" in template):
        return PLAIN
    try:
        render_chat(template, (Message("system", "s"), Message("user", "u"), Message("assistant", "a")))
    except BadModel:
        return PLAIN
    except UsageError:  # some want other turns; that they ran and said so is enough
        return template
    except SizewiseError:
        return PLAIN
    return template


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
