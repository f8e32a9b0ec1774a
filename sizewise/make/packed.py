"""What methods return: a matrix in a small form (`load.forms`), scaled matrices, or a network of another shape."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sizewise.load.forms import Codebook, Factors, Int8, Packed, Quantized

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Codebook", "Factors", "Int8", "Packed", "Quantized", "Reshaped", "Scaled", "joined"]


def joined(parts: "Sequence[Tensor | Packed]", places: Sequence[Any]) -> "Tensor | Packed":
    """One matrix from what was made of some of its rows and of the others.

    Args:
        parts: matrices, or integers on grids of equal groups.
        places: an index of rows for each.
    """
    import torch

    if len(parts) == 1:
        return parts[0]
    grids = [part for part in parts if isinstance(part, Quantized)]
    if not grids:
        return _rows_put([part for part in parts if isinstance(part, torch.Tensor)], places)
    return replace(
        grids[0],
        codes=_rows_put([grid.codes for grid in grids], places),
        scales=_rows_put([grid.scales for grid in grids], places),
        zeros=_rows_put([grid.zeros for grid in grids], places),
    )


def _rows_put(parts: "list[Tensor]", places: Sequence[Any]) -> "Tensor":
    whole = parts[0].new_empty(sum(map(len, parts)), parts[0].shape[1])
    for part, place in zip(parts, places, strict=True):
        whole[place] = part
    return whole


@dataclass(frozen=True, slots=True)
class Scaled:
    """Matrices that share one input, made for that input divided by `scale`; what comes before has to divide it.

    parts[i] stands for weights[i] * scale, so that (parts[i] @ (x / scale)) is near weights[i] @ x.
    """

    scale: "Tensor"  # (in,) float32, positive
    parts: "tuple[Tensor | Quantized, ...]"


@dataclass(frozen=True, slots=True)
class Reshaped:
    """A network of another shape: what a structure method returns."""

    config: Mapping[str, Any]  # config.json of the result
    tensors: "Iterator[tuple[str, Tensor]]"  # all of them, one after the other, so that none has to wait in memory
    figures: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    files: Mapping[str, bytes | None] = field(default_factory=dict)  # in place of the base's: a tokenizer; None = gone
    architecture: str = ""  # "" = that of the base

    def with_tensors(self, tensors: "Iterator[tuple[str, Tensor]]") -> "Reshaped":
        """The same network with tensors that passed through something on the way."""
        return replace(self, tensors=tensors)
