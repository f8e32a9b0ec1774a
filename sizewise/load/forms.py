"""The small forms of a matrix: values that a weight method returns, each with the dense matrix that it stands for.

They hold tensors and nothing else: writing them to disk and multiplying with them is `load.checkpoint`'s. Methods work
in 32 bits; `stored` gives what is left of a form in 16-bit files, and everything after a method goes on from that.
Importing this module does not import torch.
"""

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Protocol, Self

if TYPE_CHECKING:
    from torch import Tensor


class Packed(Protocol):
    """A matrix in a small form."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        ...

    @property
    def size_bits(self) -> int:
        """Bits that the form takes, scales and tables included; floating-point parts count 16 bits."""
        ...

    def dense(self) -> "Tensor":
        """The float32 matrix (out, in) that it stands for."""
        ...

    def stored(self) -> Self:
        """The same form with every floating-point part rounded to the 16-bit type that files hold it in."""
        ...


def narrow(values: "Tensor") -> "Tensor":
    """Values in float16 or bfloat16, whichever of the two is nearer to them.

    Args:
        values: finite numbers; those beyond the range of float16 make it bfloat16.
    """
    import torch

    half, brain = values.to(torch.float16), values.to(torch.bfloat16)
    exact = values.to(torch.float64)
    errors = [float((rounded.to(torch.float64) - exact).square().sum()) for rounded in (half, brain)]
    return half if errors[0] <= errors[1] else brain


def wide(values: "Tensor") -> "Tensor":
    """Values in 32 bits."""
    import torch

    return values.to(torch.float32)


@dataclass(frozen=True, slots=True)
class Quantized:
    """Integers on a uniform grid: weight = (code - zero) * scale, scale and zero shared within a group of columns.

    Column j belongs to group `j // group`, or to `groups[j]` where columns were sorted before they were grouped.
    """

    codes: "Tensor"  # (out, in) uint8, 0 ... 2^bits - 1
    scales: "Tensor"  # (out, number of groups) float32
    zeros: "Tensor"  # (out, number of groups) float32; whole numbers, except from HQQ
    bits: int
    group: int  # columns in a group; the last group of a row may have fewer
    symmetric: bool = False  # every zero is 2^(bits - 1)
    groups: "Tensor | None" = None  # (in,) int32

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def size_bits(self) -> int:
        """Codes, a 16-bit scale and (unless symmetric) a zero of `bits` bits, or 16 where it is no whole number."""
        zero = 0 if self.symmetric else self.bits if bool((self.zeros == self.zeros.round()).all()) else 16
        order = 0 if self.groups is None else 32 * self.groups.numel()
        return self.codes.numel() * self.bits + self.scales.numel() * (16 + zero) + order

    def column_groups(self) -> "Tensor":
        """(in,) int64: the group of each column."""
        import torch

        if self.groups is not None:
            return self.groups.long()
        return torch.arange(self.codes.shape[1], device=self.codes.device) // self.group

    def dense(self) -> "Tensor":
        """(out, in) float32."""
        of_column = self.column_groups()
        return (self.codes.float() - self.zeros[:, of_column]) * self.scales[:, of_column]

    def stored(self) -> "Quantized":
        """Scales in bfloat16; zeros that are no whole numbers in float16."""
        import torch

        scales, zeros = self.scales.to(torch.bfloat16), self.zeros.to(torch.float16)
        return replace(self, scales=wide(scales), zeros=wide(zeros))


@dataclass(frozen=True, slots=True)
class Codebook:
    """Each row has a table of 2^bits values, each weight is the number of one of them."""

    codes: "Tensor"  # (out, in) uint8
    table: "Tensor"  # (out, 2^bits) float32
    bits: int

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def size_bits(self) -> int:
        """Codes and 16 bits for each entry of a table."""
        return self.codes.numel() * self.bits + self.table.numel() * 16

    def dense(self) -> "Tensor":
        """(out, in) float32."""
        return self.table.gather(1, self.codes.long())

    def stored(self) -> "Codebook":
        """Tables in 16 bits."""
        return replace(self, table=wide(narrow(self.table)))


@dataclass(frozen=True, slots=True)
class Int8:
    """LLM.int8(): rows of 8-bit integers with one scale each; the columns that outliers pass through stay 16-bit.

    weight[:, kept] = columns, elsewhere codes * scale. Columns are chosen once, by the inputs of calibration text that
    reached `threshold`.
    """

    codes: "Tensor"  # (out, in) int8, -127 ... 127; 0 in the kept columns
    scales: "Tensor"  # (out,) float32
    kept: "Tensor"  # (k,) int64, ascending
    columns: "Tensor"  # (out, k) float32
    threshold: float

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.codes.shape[0], self.codes.shape[1]

    @property
    def size_bits(self) -> int:
        """Codes, a 16-bit scale for each row, the kept columns at 16 bits and their numbers at 32."""
        return self.codes.numel() * 8 + self.scales.numel() * 16 + self.columns.numel() * 16 + self.kept.numel() * 32

    def dense(self) -> "Tensor":
        """(out, in) float32."""
        weight = self.codes.float() * self.scales[:, None]
        weight[:, self.kept] = self.columns
        return weight

    def stored(self) -> "Int8":
        """Scales in bfloat16, kept columns in 16 bits."""
        import torch

        scales = wide(self.scales.to(torch.bfloat16))
        return replace(self, scales=scales, columns=wide(narrow(self.columns)))


@dataclass(frozen=True, slots=True)
class Factors:
    """A product of two thin matrices: weight = left @ right."""

    left: "Tensor"  # (out, rank) float32
    right: "Tensor"  # (rank, in) float32

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def rank(self) -> int:
        """How many columns `left` has."""
        return int(self.left.shape[1])

    @property
    def size_bits(self) -> int:
        """16 bits for each number."""
        return 16 * (self.left.numel() + self.right.numel())

    def dense(self) -> "Tensor":
        """(out, in) float32."""
        return self.left @ self.right

    def stored(self) -> "Factors":
        """Both matrices in 16 bits."""
        return replace(self, left=wide(narrow(self.left)), right=wide(narrow(self.right)))
