"""From a reference to something that runs: the engine is chosen by the kind of model, and only that one is imported."""

from sizewise.core.errors import UnknownName, Unsupported
from sizewise.core.model import Model
from sizewise.load.models import find_model
from sizewise.load.runner import Options, Runner
from sizewise.load.store.store import Store

ENGINES = {
    "gguf": ("llamacpp", "torch"),
    "checkpoint": ("torch",),
    "encoder": ("torch",),
    "linear": ("linear",),
    "endpoint": ("http",),
}  # kind of model -> engines that run it, the usual one first


def open_runner(
    model: str | Model,
    *,
    engine: str | None = None,
    options: Options = Options(),  # noqa: B008 (frozen)
    store: Store | None = None,
) -> Runner:
    """Load a model.

    Args:
        model: a reference, or a model that was found before.
        engine: "llamacpp", "torch", "linear" or "http"; None: the usual one for this kind of model.
        options: how it runs.
        store: where names are looked up; None: the user's own.

    Raises:
        UnknownName: no such engine, or no such model.
        Unsupported: the engine does not run this kind of model.
        BadModel: the file holds no model that the engine can load.
    """
    known = sorted({name for names in ENGINES.values() for name in names})
    if engine is not None and engine not in known:
        raise UnknownName("engine", engine, known)
    found = find_model(model, store) if isinstance(model, str) else model
    chosen = engine or ENGINES[found.kind][0]
    if chosen not in ENGINES[found.kind]:
        able = " or ".join(ENGINES[found.kind])
        raise Unsupported(f"{found.name} is a {found.kind} model, which {chosen} does not run: use {able}")
    if chosen == "linear":
        from sizewise.load.linear_model import encoder_of
        from sizewise.load.runners.linear import Linear

        return Linear(found, options, lambda: open_runner(encoder_of(found), options=options))
    if chosen == "http":
        from sizewise.load.runners.http import Http

        return Http(found, options)
    if chosen == "torch":
        from sizewise.load.runners.torch import Torch

        return Torch(found, options)
    from sizewise.load.runners.llamacpp import LlamaCpp

    return LlamaCpp(found, options)
