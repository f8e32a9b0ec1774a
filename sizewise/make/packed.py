"""What methods return: a matrix in a small form (`load.forms`), scaled matrices, or a network of another shape."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from sizewise.load.forms import Codebook, Factors, Int8, Packed, Quantized

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["Codebook", "Factors", "Int8", "Packed", "Quantized", "Reshaped", "Scaled"]


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
