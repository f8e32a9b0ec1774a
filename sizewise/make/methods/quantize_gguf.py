"""Pack the weights of a GGUF into fewer bits, or unpack them again, without data.

Every row is cut into blocks of 32 or 256 weights that share a scale (and, in the k-formats, scales that share a scale).
The mixes with a suffix spend more bits where it matters: see `make.gguf_mix`. Rounding is done by llama.cpp's own C
code, so a file made here equals one made by its tool, except that no importance matrix is used.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from sizewise.core.errors import Unsupported, UsageError
from sizewise.core.events import Listener
from sizewise.core.model import Model
from sizewise.load.gguf.file import GgufInfo, TensorInfo, read_gguf
from sizewise.load.gguf.pack import pack, unpack
from sizewise.load.gguf.types import BY_NAME, GgmlType
from sizewise.load.gguf.write import copy_gguf, packed_rows
from sizewise.make.gguf_mix import MIXES, assign, average_bits, may_change
from sizewise.make.method import Made, model_method

_PIECE = 1 << 20  # weights in work at once, per core: 4 MB as 32-bit numbers

# fmt: off
Type = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
]
# fmt: on


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
    types = assign(info, type)
    target = out / "model.gguf"
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:

        def encode(tensor: TensorInfo, kind: GgmlType) -> Iterator[bytes]:
            return _in_order(pool, _pieces(info, tensor, kind))

        copy_gguf(info, target, types, encode, file_type=type, listen=listen)
    fallbacks = sum(1 for tensor in info.tensors if _fell_back(tensor, type, types))
    figures = {"weight_bits": round(average_bits(info, types), 4), "tensors_with_fallback_type": fallbacks}
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


def _fell_back(tensor: TensorInfo, mix: str, types: dict[str, GgmlType]) -> bool:
    wide = BY_NAME[MIXES[mix].base].block == 256
    return may_change(tensor) and wide and types[tensor.name].block < 256


def _pieces(info: GgufInfo, tensor: TensorInfo, kind: GgmlType) -> Iterator[Callable[[], bytes]]:
    rows = packed_rows(info, tensor)
    step = max(1, _PIECE // tensor.shape[0])
    for start in range(0, tensor.rows, step):
        yield lambda part=rows[start : start + step]: pack(unpack(part, tensor), kind, tensor.name)  # type: ignore[misc]


def _in_order(pool: ThreadPoolExecutor, tasks: Iterable[Callable[[], bytes]]) -> Iterator[bytes]:
    """Results in the order of the tasks, with no more in work than keeps all cores busy."""
    ahead = 2 * (os.cpu_count() or 1)
    waiting: deque[Future[Any]] = deque()
    try:
        for task in tasks:
            waiting.append(pool.submit(task))
            if len(waiting) >= ahead:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        for future in waiting:
            future.cancel()
