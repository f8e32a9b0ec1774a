"""Packing the weights of a model that is being made: the names of the types, and a process of its own for the work."""

from pathlib import Path
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.core.events import Listener, Progress
from sizewise.core.model import Model
from sizewise.load.create import Quantizer


def quantizer(type: str) -> Quantizer:
    """What `load.create` needs to pack weights into a type, whose name may be in lower case as Ollama writes it.

    Raises:
        UsageError: there is no such type; the message lists those that are.
    """
    from sizewise.make.gguf_mix import MIXES

    known = {name.lower(): name for name in MIXES}
    found = known.get(type.strip().lower())
    if found is None:
        raise UsageError(f"unknown quantization {type[:40]!r}; known: {', '.join(known.values())}")

    def run(model: Model, folder: Path, listen: Listener) -> Path:
        return _in_child(model, folder, found, listen)

    return Quantizer(found, run)


def _in_child(model: Model, folder: Path, type: str, listen: Listener) -> Path:
    """Native code does the rounding: where that dies, this process stays."""
    from sizewise.load.child import Child

    def hear(event: dict[str, Any]) -> None:
        listen(Progress(f"quantizing to {type}", event["done"], event["total"], "bytes"))

    child = Child("sizewise.serve._quantize_child", model.name)
    try:
        path, _ = child.call(
            "quantize",
            hear,
            model=model.name,
            path=str(next(iter(model.files.values()))),
            folder=str(folder),
            type=type,
        )
        return Path(path)
    finally:
        child.close()
