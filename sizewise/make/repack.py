"""The weights of a GGUF file in another mix of types: rows pass through llama.cpp's own rounding, some at a time."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from sizewise.core.events import Listener
from sizewise.load.gguf.file import GgufInfo, TensorInfo
from sizewise.load.gguf.pack import pack, unpack
from sizewise.load.gguf.types import BY_NAME, GgmlType
from sizewise.load.gguf.write import copy_gguf, packed_rows
from sizewise.make.gguf_mix import MIXES, assign, average_bits, may_change

_PIECE = 1 << 20  # weights in work at once, per core: 4 MB as 32-bit numbers

# fmt: off
Type = Literal[
    "F32", "F16", "BF16", "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0",
    "IQ4_NL", "IQ4_XS", "Q3_K_L", "Q3_K_M", "Q3_K_S", "Q2_K",
]
# fmt: on


def repack(info: GgufInfo, target: Path, type: Type, listen: Listener) -> dict[str, Any]:
    """Write a GGUF with its weights in another mix.

    Args:
        info: the file to read.
        target: the file to write; it appears whole or not at all.
        type: name of the mix.
        listen: hears the bytes written.

    Returns:
        Numbers for the lineage: bits per weight of the tensors, and how many tensors got a fallback type.

    Raises:
        DiskFull: there is no room; nothing is left behind.
        Unsupported: a type that cannot be unpacked, or weights too large for the type.
    """
    types = assign(info, type)
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:

        def encode(tensor: TensorInfo, kind: GgmlType) -> Iterator[bytes]:
            return _in_order(pool, _pieces(info, tensor, kind))

        copy_gguf(info, target, types, encode, file_type=type, listen=listen)
    fallbacks = sum(1 for tensor in info.tensors if _fell_back(tensor, type, types))
    return {"weight_bits": round(average_bits(info, types), 4), "tensors_with_fallback_type": fallbacks}


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
