"""The tensors of a GGUF, each with the Hessian of what it multiplies: from names to bytes.

A matrix inside a block is multiplied by inputs that calibration has seen. The head has its own; an embedding that is
also the head is rounded for both of its jobs. An embedding alone is only looked up: all of its columns count alike.

For values only the loudness of each input counts, for the reason in `treat` (SmolLM2 in Q4_0 with repairs there: KL
0.15 from the value matrices alone, five times as much).
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sizewise.load.gguf.file import GgufInfo, TensorInfo
from sizewise.load.gguf.names import Names
from sizewise.load.gguf.pack import pack, unpack
from sizewise.load.gguf.types import GgmlType
from sizewise.load.gguf.write import packed_rows
from sizewise.load.layers import layout_of, read_config
from sizewise.make.gguf_forms import FORMS
from sizewise.make.gguf_rounding import Metric, encode_matrix, metric_of
from sizewise.make.outer import LOOKED_UP
from sizewise.make.recorded import Recorded
from sizewise.make.treat import VALUES

if TYPE_CHECKING:
    from torch import Tensor


class Encoder:
    """Encodes tensors of one GGUF with statistics of the checkpoint that it is the same as."""

    def __init__(self, folder: Path, info: GgufInfo, *, tries: int, rounds: int, damp: float) -> None:
        """Learn the names.

        Args:
            folder: the checkpoint.
            info: the same model as a GGUF, in any types.
            tries: see `gguf_sweep`.
            rounds: see `gguf_descent`.
            damp: share of each Hessian's mean diagonal that is added to its diagonal.
        """
        self.info, self.layout = info, layout_of(folder)
        self.names = Names(read_config(folder), self.layout.prefix)
        self.tries, self.rounds, self.damp = tries, rounds, damp
        self._present = {tensor.name for tensor in info.tensors}
        self._owner = {linear.name: block.index for block in self.layout.blocks for linear in block.linears}
        self._values = {linear.name for linear in self.layout.linears if linear.role in VALUES}
        self._recorded: Recorded | None = None
        self._looked_up: Tensor | None = None
        self._block: tuple[int, dict[str, int], list[Tensor]] | None = None
        self._metric: tuple[str, Metric] | None = None

    def use(self, recorded: Recorded) -> None:
        """Take Hessians from there."""
        self._recorded, self._metric = recorded, None

    def weigh_lookup(self, cost: "Tensor") -> None:
        """Say what a square error of each feature of a token's embedding costs, beside one of its logit (hidden,).

        Only where one matrix is both; without it, looking up counts as a share of the mean.
        """
        self._looked_up, self._metric = cost, None

    def encode(self, tensor: TensorInfo, kind: GgmlType) -> Iterator[bytes]:
        """The bytes of a tensor in another type."""
        if kind.name not in FORMS:
            yield pack(unpack(packed_rows(self.info, tensor), tensor), kind, tensor.name)
            return
        for weight, metric in self.matrices(tensor):
            yield from encode_matrix(weight, metric, FORMS[kind.name], tries=self.tries, rounds=self.rounds)

    def matrices(self, tensor: TensorInfo) -> "Iterator[tuple[NDArray[np.float32], Metric]]":
        """The matrices (out, in) in a tensor, one for each expert, and what errors in them cost."""
        sources = self.names.sources(tensor.name, self._present)
        rows = packed_rows(self.info, tensor)
        each = len(rows) // len(sources)
        for place, source in enumerate(sources):
            part = unpack(np.ascontiguousarray(rows[place * each : (place + 1) * each]), tensor)
            yield part, self.metric(source.removesuffix(".weight"))

    def sampled(self, tensor: TensorInfo, rows: int) -> "Iterator[tuple[str, NDArray[np.float32], Metric, float]]":
        """Of each matrix in a tensor: its module, some rows evenly spread, their metric, the share of all rows."""
        sources = self.names.sources(tensor.name, self._present)
        packed = packed_rows(self.info, tensor)
        each = len(packed) // len(sources)
        places = np.unique(np.linspace(0, each - 1, min(rows, each)).round().astype(np.int64))
        for place, source in enumerate(sources):
            module = source.removesuffix(".weight")
            yield module, unpack(packed[place * each + places], tensor), self.metric(module), len(places) / each

    def metric(self, module: str) -> Metric:
        """What errors in the matrix of a module of the checkpoint cost; kept until the next is asked for."""
        shares = module in self._owner and module not in self._values
        key = f"{self._owner[module]} {self._group_of(module)}" if shares else module
        if self._metric is None or self._metric[0] != key:
            self._metric = (key, self._make(module))
        return self._metric[1]

    def _make(self, module: str) -> Metric:
        place = self._group_of(module) if module in self._owner else None
        if self._block and place is not None:
            hessian = self._block[2][place]
            hessian = hessian.diagonal().diag() if module in self._values else hessian
            return metric_of(hessian, len(hessian), self.damp)
        if self._recorded and (module == self.layout.head or self.layout.tied):
            hessian = self._recorded.head()["hessian"]
            if self.layout.tied and self._looked_up is not None:
                return metric_of(hessian + self._looked_up.diag(), len(hessian), self.damp)
            return metric_of(hessian, len(hessian), LOOKED_UP if self.layout.tied else self.damp)
        return metric_of(None, self.layout.hidden)

    def _group_of(self, module: str) -> int:
        """Which input of its block a matrix multiplies; the block's Hessians are read when they are not at hand."""
        index = self._owner[module]
        if self._block is None or self._block[0] != index:
            if self._recorded is None:
                return 0
            seen = self._recorded.block(index, hessian=True)
            places = {name: place for place, group in enumerate(seen) for name in group.names}
            self._block = (index, places, [group.mean("hessian") for group in seen])
        return self._block[1][module]
