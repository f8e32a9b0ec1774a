"""Pack the weights of a GGUF into fewer bits, or unpack them again, without data.

Every row is cut into blocks of 32 or 256 weights that share a scale (and, in the k-formats, scales that share a scale).
The mixes with a suffix spend more bits where it matters: see `make.gguf_mix`. Rounding is done by llama.cpp's own C
code, so a file made here equals one made by its tool, except that no importance matrix is used.
"""

from pathlib import Path

from sizewise.core.errors import Unsupported, UsageError
from sizewise.core.events import Listener
from sizewise.core.model import Model
from sizewise.load.gguf.file import GgufInfo, read_gguf
from sizewise.make.method import Made, model_method
from sizewise.make.repack import Type, repack


@model_method
def quantize_gguf(
    base: Model,
    out: Path,
    listen: Listener,
    *,
    type: Type = "Q4_K_M",
    requantize: bool = False,
) -> Made:
    """Repack the weights of a GGUF model; F32, F16 and BF16 dequantize a quantized one.

    Args:
        base: a model of kind "gguf".
        out: folder for the new file.
        listen: hears the bytes written.
        type: name of the mix, from most to fewest bits per weight; rows that do not fit its blocks get the nearest type
            that does. IQ4_NL and IQ4_XS search for each block's scale and take some twenty times as long as the others.
        requantize: allow a quantized base; its rounding errors stay, and new ones are added.

    Returns:
        One file, "model.gguf".

    Raises:
        Unsupported: the base is no single GGUF file, or holds a type that cannot be unpacked, or weights too large for
            the type.
        UsageError: the base is quantized already, and neither dequantizing nor `requantize` was asked for.
    """
    info = _source(base)
    packed = sum(tensor.elements for tensor in info.tensors if tensor.type.quantized)
    unpacking = type in ("F32", "F16", "BF16")
    if packed and not unpacking and not requantize:
        raise UsageError(
            f"{base.name} is already {info.quantization}: dequantize first with --type F16, or pass --requantize"
        )
    target = out / "model.gguf"
    figures = repack(info, target, type, listen)
    note = ""
    if packed:
        what = "dequantized" if unpacking else "requantized"
        note = f"{what} from {info.quantization}: the rounding errors of {info.quantization} are still in the weights"
    return Made("gguf", {"model.gguf": target}, type, info.parameters, figures, note)


def _source(base: Model) -> GgufInfo:
    if base.kind != "gguf" or len(base.files) != 1:
        raise Unsupported(f"{base.name} is of kind {base.kind!r}; quantize-gguf needs a single GGUF file")
    info = read_gguf(next(iter(base.files.values())))
    if info.metadata.get("split.count", 0) > 1:
        raise Unsupported(f"{base.name} is one part of a split GGUF; join the parts first")
    return info
