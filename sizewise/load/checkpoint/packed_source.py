"""A checkpoint with matrices in small forms, read matrix by matrix: as the forms, or as what they stand for."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from sizewise.load.checkpoint.folder import inspect_checkpoint
from sizewise.load.checkpoint.packed import SUFFIXES, Matrix, form_of
from sizewise.load.checkpoint.tensors import NAMES, TensorSource
from sizewise.load.forms import Packed

if TYPE_CHECKING:
    from torch import Tensor
    from torch import dtype as TorchType


class DenseSource(TensorSource):
    """The tensors of a checkpoint; a matrix in a small form appears as the dense one, unpacked when it is asked for.

    Unpacked matrices have the type that most other weights have, and so the values that a dense file would hold.
    """

    def __init__(self, folder: Path | str) -> None:
        """Read the headers.

        Raises:
            BadModel: it is no checkpoint, or its files contradict each other.
        """
        super().__init__(folder)
        info = inspect_checkpoint(self.folder)
        self.matrices: dict[str, Matrix] = info.packed
        self._kind = info.base_dtype
        self._dense = {f"{module}.weight": module for module in self.matrices}
        self._hidden = {f"{module}.{part}" for module in self.matrices for part in SUFFIXES}

    def __contains__(self, name: object) -> bool:
        return name in self._dense or (super().__contains__(name) and name not in self._hidden)

    def __iter__(self) -> Iterator[str]:
        yield from (name for name in super().__iter__() if name not in self._hidden)
        yield from self._dense

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def form(self, module: str) -> Packed:
        """The small form of a module's matrix, which must be in `matrices`."""
        return form_of(module, self.matrices[module].spec, self.parts(module))

    def parts(self, module: str) -> "dict[str, Tensor]":
        """The tensors of a small form as they are in the files, by suffix."""
        names = [part for part in SUFFIXES if super(DenseSource, self).__contains__(f"{module}.{part}")]
        return {part: super(DenseSource, self).get(f"{module}.{part}") for part in names}

    def shape(self, name: str) -> tuple[int, ...]:
        """Shape of a tensor, as the network wants it."""
        module = self._dense.get(name)
        return self.matrices[module].stored_shape if module else super().shape(name)

    def dtype(self, name: str) -> "TorchType":
        """Element type of a tensor."""
        import torch

        if name not in self._dense:
            return super().dtype(name)
        found: TorchType = getattr(torch, NAMES[self._kind])
        return found

    def bytes_of(self, name: str) -> int:
        """Bytes of a tensor, unpacked."""
        if name not in self._dense:
            return super().bytes_of(name)
        rows, columns = self.shape(name)
        return rows * columns * self.dtype(name).itemsize

    def rows(self, name: str, first: int, last: int) -> "Tensor":
        """Rows `first` to `last` (exclusive) along the first dimension; of a small form all of it is unpacked."""
        module = self._dense.get(name)
        if module is None:
            return super().rows(name, first, last)
        dense = self.form(module).dense().to(self.dtype(name))
        return (dense.T if self.matrices[module].spec.transposed else dense)[first:last].contiguous()
