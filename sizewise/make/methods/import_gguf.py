"""A GGUF file as a checkpoint that transformers loads: the way back from llama.cpp to training and pruning.

Quantized weights are unpacked into the numbers that llama.cpp computes with; their rounding errors stay, and the
lineage says so. The checkpoint is compared with the file, each in its own engine, before it is kept.
"""

from pathlib import Path
from typing import Literal

from sizewise.core.events import Listener
from sizewise.core.model import Model
from sizewise.load.doors import checked_import
from sizewise.make.method import Made, model_method

_NAMES = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}


@model_method
def import_gguf(
    base: Model,
    out: Path,
    listen: Listener,
    *,
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto",
) -> Made:
    """Write a GGUF as a checkpoint, dequantized where it is quantized, and prove that it is the same model.

    Args:
        base: a model of kind "gguf", one file.
        out: folder for the checkpoint.
        listen: hears the tensors done.
        dtype: of the weights; auto keeps F16 and BF16, and takes 32 bits for what is unpacked.

    Returns:
        The checkpoint's files.

    Raises:
        BadModel: the checkpoint differs from the file in more than rounding; the message says in what.
        Unsupported: an architecture, tokenizer or type that cannot be imported; the message names it.
    """
    imported, checked = checked_import(base, out / "checkpoint", dtype=dtype, listen=listen)
    figures = {"parity": checked.parity.as_json()}
    note = imported.note or base.lineage.note
    quantization = _NAMES[imported.dtype]
    return Made("checkpoint", imported.files, quantization, imported.parameters, figures, note, imported.architecture)
