"""The small forms of a matrix: values that a weight method returns, each with the dense matrix that it stands for.

They hold tensors and nothing else: writing them to disk and multiplying with them is `load.checkpoint`'s. Importing
this module does not import torch.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

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


@dataclass(frozen=True, slots=True)
class Int8:
    """LLM.int8(): rows of 8-bit integers with one scale each; the columns that outliers pass through stay 16-bit.

    weight[:, kept] = columns, elsewhere codes * scale. Inputs above `threshold` that arrive in other columns are as
    badly rounded as any; at run time inputs are rounded to 8 bits too, token by token.
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
