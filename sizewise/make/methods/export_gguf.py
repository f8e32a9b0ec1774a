"""A checkpoint as one GGUF file, for llama.cpp and Ollama, in any of the usual types.

First every weight is written as the checkpoint has it, and the file is compared with the checkpoint, each in its own
engine: tokens, template, log-probabilities, greedy answers. Only a faithful file is packed into fewer bits.
"""

from pathlib import Path
from typing import Any, Literal

from sizewise.core.events import Listener
from sizewise.core.model import Model
from sizewise.load.doors import checked_export, gguf_at
from sizewise.load.facts import GGUF_FILE
from sizewise.load.gguf.file import read_gguf
from sizewise.load.parity import require_same_text
from sizewise.make.method import Made, model_method
from sizewise.make.repack import Type, repack


@model_method
def export_gguf(
    base: Model, out: Path, listen: Listener, *, type: Literal["auto", Type] = "auto", dequantize: bool = False
) -> Made:
    """Write a checkpoint as a GGUF file with tokenizer and chat template, and prove that it is the same model.

    Args:
        base: a model of kind "checkpoint".
        out: folder for the new file.
        listen: hears the bytes written.
        type: name of the mix; auto keeps the checkpoint's own precision. Fewer bits are packed without data, as
            quantize-gguf does it.
        dequantize: allow a base that is quantized already; its rounding errors stay, its small size does not.

    Returns:
        One file, "model.gguf".

    Raises:
        BadModel: the file differs from the checkpoint in more than rounding; the message says in what.
        UsageError: the base is quantized, and `dequantize` was not asked for.
        Unsupported: the base is no checkpoint, or llama.cpp has no such architecture, setting or tokenizer.
    """
    target = out / GGUF_FILE
    exported, checked = checked_export(base, target, listen, dequantize=dequantize)
    figures: dict[str, Any] = {"parity": checked.parity.as_json()}
    quantization: str = exported.quantization
    if type != "auto" and type != quantization:
        plain = target.rename(out / "plain.gguf")
        figures |= repack(read_gguf(plain), target, type, listen)
        plain.unlink()
        require_same_text(checked.seen, gguf_at(target, f"the GGUF of {base.name}"))
        quantization = type
    notes = [note for note in (base.lineage.note, *exported.notes) if note]
    architecture = exported.architecture
    return Made("gguf", {GGUF_FILE: target}, quantization, exported.parameters, figures, "; ".join(notes), architecture)
