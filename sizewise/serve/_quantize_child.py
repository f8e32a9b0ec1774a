"""The process that packs the weights of one model."""

from pathlib import Path
from typing import Any

from sizewise.core.events import Progress
from sizewise.core.model import Model
from sizewise.load.child import Host
from sizewise.load.facts import GGUF_FILE


def main() -> None:
    """Answer the parent's calls until its end of the pipe closes."""
    host = Host()

    def hear(event: Progress) -> None:
        host.check()
        host.tell(done=event.done, total=event.total)

    def quantize(model: str, path: str, folder: str, type: Any) -> str:
        from sizewise.make.methods.quantize_gguf import quantize_gguf

        base = Model(model, "gguf", "", {GGUF_FILE: Path(path)}, Path(path).stat().st_size)
        return str(quantize_gguf(base, Path(folder), hear, type=type).files[GGUF_FILE])

    host.serve({"quantize": quantize})


if __name__ == "__main__":
    main()
