"""Weights in the blocks of a GGUF, and back: rounding is llama.cpp's own C code, unpacking the gguf library's."""

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.gguf.file import TensorInfo
from sizewise.load.gguf.types import GgmlType


def unpack(rows: NDArray[np.uint8], tensor: TensorInfo) -> NDArray[np.float32]:
    """The weights in some rows of a tensor.

    Args:
        rows: (n, bytes of a row) as in the file.
        tensor: which tensor they belong to.

    Returns:
        (n, width) weights.

    Raises:
        Unsupported: nothing here can unpack that type.
        BadModel: a weight is not a finite number.
    """
    import gguf

    try:
        weights = gguf.dequantize(np.ascontiguousarray(rows), gguf.GGMLQuantizationType(tensor.type.code))
    except NotImplementedError:
        raise Unsupported(f"tensor {tensor.name}: type {tensor.type.name} cannot be unpacked") from None
    weights = np.asarray(weights, np.float32)
    if not np.isfinite(weights).all():
        raise BadModel(f"tensor {tensor.name} holds values that are not finite numbers; get the file again")
    return weights


def pack(weights: NDArray[np.float32], kind: GgmlType, name: str) -> bytes:
    """Rows of weights in the bytes of `kind`.

    Args:
        weights: (n, width).
        kind: the type to pack into.
        name: the tensor's name, for messages.
    """
    if kind.name == "F32":
        return weights.astype("<f4").tobytes()
    if kind.name == "F16":
        with np.errstate(over="ignore"):
            half = weights.astype("<f2")
        if np.isinf(half).any():
            raise Unsupported(f"tensor {name} holds weights beyond 65504, the largest of F16; use --type BF16 or F32")
        return half.tobytes()
    if kind.name == "BF16":
        bits = weights.astype("<f4").view(np.uint32)
        nearest_even = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return nearest_even.astype("<u2").tobytes()

    from sizewise.load.llama.c import quantize_rows

    return quantize_rows(weights, kind.code, threads=1)
