"""The grids of GGUF: which values a weight can take in each type, and the bytes in which a file holds the choice.

In all of them weight = scale * level + offset, for groups of 16 or 32 neighbours of a row. The older types store scale
and offset of every group in 16 bits. The k-types store one pair of 16-bit numbers, d and dmin, for a block of 256
weights, and for each group small integers that multiply them. Layouts are those of ggml's block structs.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from sizewise.load.gguf.types import BY_NAME, GgmlType

if TYPE_CHECKING:
    from torch import Tensor

Bytes = NDArray[np.integer[Any]]  # all small enough for a byte
_NONLINEAR = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)  # of IQ4_NL
# The nearest of them to numbers between neighbouring halves from -128 to 128: where two are as near, that is at a half.
_NEAREST = np.array([min(_NONLINEAR, key=lambda level: abs(level - half / 2 - 0.25)) for half in range(-256, 256)])
_HALF_MOST = 65504.0


@dataclass(frozen=True, slots=True)
class Form:
    """One type: its levels, its groups, and how scales and offsets are stored.

    `steps`: least and greatest multiple of d that a group's scale can be; None where scales are 16-bit numbers.
    `offset_steps`: greatest multiple of dmin that a group's offset can lie below 0. `code_bias`: what a stored
    multiple of d has been raised by.
    """

    kind: GgmlType
    group: int
    levels: tuple[int, ...]
    offset: bool = False
    steps: tuple[int, int] | None = None
    offset_steps: int = 0

    @property
    def block(self) -> int:
        """Weights in a block of bytes."""
        return self.kind.block

    @property
    def uniform(self) -> bool:
        """True where levels are evenly spaced."""
        return self.levels != _NONLINEAR

    def nearest(self, ratio: "Tensor") -> "Tensor":
        """The nearest level to each number, as floating-point numbers."""
        import torch

        if self.uniform:
            return ratio.round().clamp_(self.levels[0], self.levels[-1])
        table = torch.from_numpy(_NEAREST).to(ratio.dtype)
        return table[(ratio * 2).floor_().clamp_(-256, 255).add_(256).long()]

    def codes(self, levels: "Tensor") -> "Tensor":
        """The place of each level in the list of levels, as bytes."""
        import torch

        if self.uniform:
            return (levels - self.levels[0]).to(torch.uint8)
        return torch.searchsorted(torch.tensor(self.levels, dtype=levels.dtype), levels).to(torch.uint8)


def _form(name: str, group: int, low: int, count: int, **others: object) -> Form:
    return Form(BY_NAME[name], group, tuple(range(low, low + count)), **others)  # type: ignore[arg-type]


FORMS: dict[str, Form] = {
    "Q4_0": _form("Q4_0", 32, -8, 16),
    "Q4_1": _form("Q4_1", 32, 0, 16, offset=True),
    "Q5_0": _form("Q5_0", 32, -16, 32),
    "Q5_1": _form("Q5_1", 32, 0, 32, offset=True),
    "Q8_0": _form("Q8_0", 32, -127, 255),
    "IQ4_NL": Form(BY_NAME["IQ4_NL"], 32, _NONLINEAR),
    "Q2_K": _form("Q2_K", 16, 0, 4, offset=True, steps=(0, 15), offset_steps=15),
    "Q3_K": _form("Q3_K", 16, -4, 8, steps=(-32, 31)),
    "Q4_K": _form("Q4_K", 32, 0, 16, offset=True, steps=(0, 63), offset_steps=63),
    "Q5_K": _form("Q5_K", 32, 0, 32, offset=True, steps=(0, 63), offset_steps=63),
    "Q6_K": _form("Q6_K", 16, -32, 64, steps=(-128, 127)),
}


@dataclass(slots=True)
class Coded:
    """A matrix on the grid of a type, feature by feature: all tensors are float32 with one column for each row of it.

    `d` and `dmin` have a row for each block of the k-types; without steps `scale` and `offset` are themselves stored.
    """

    form: Form
    level: "Tensor"  # (in, out)
    scale: "Tensor"  # (groups, out)
    offset: "Tensor"  # (groups, out)
    d: "Tensor"  # (blocks, out)
    dmin: "Tensor"  # (blocks, out)

    def dense(self) -> "Tensor":
        """(in, out), the weights that a reader of the bytes will see."""
        size = self.form.group
        return self.level * self.scale.repeat_interleave(size, 0) + self.offset.repeat_interleave(size, 0)

    def packed(self) -> NDArray[np.uint8]:
        """(out, bytes of a row)."""
        form, rows = self.form, self.level.shape[1]
        codes = form.codes(self.level.T.contiguous()).numpy().reshape(-1, form.block)
        half = [_half(self.d), _half(self.dmin)]
        if form.steps:
            steps = [self._multiples(self.scale, self.d), self._multiples(-self.offset, self.dmin)]
            made = _PACK_K[form.kind.name](codes, *steps, *half)
        else:
            made = _pack_32(form, codes, _half(self.scale), _half(self.offset))
        return np.ascontiguousarray(made).astype(np.uint8).reshape(rows, -1)

    def _multiples(self, values: "Tensor", unit: "Tensor") -> NDArray[np.int32]:
        """(all blocks, groups of a block), which multiple of their block's unit values are."""
        import torch

        per = self.form.block // self.form.group
        wide = unit.repeat_interleave(per, 0)
        ratio = torch.where(wide == 0, torch.zeros_like(values), values / wide).round()
        return ratio.T.reshape(-1, per).to(torch.int32).numpy()


def to_half(values: "Tensor") -> "Tensor":
    """The nearest numbers that 16 bits hold, in float32."""
    return values.clamp(-_HALF_MOST, _HALF_MOST).half().float()


def _half(values: "Tensor") -> Bytes:
    """(all blocks, 2) bytes of the 16-bit number of each block, row after row of the matrix."""
    numbers = np.ascontiguousarray(values.T.reshape(-1).numpy().astype("<f2"))
    return numbers.view(np.uint8).reshape(-1, 2)


def _nibbles(codes: Bytes, stride: int) -> Bytes:
    """Pairs of codes `stride` apart in one byte, the first in its low half. codes: (blocks, n)."""
    pairs = codes.reshape(len(codes), -1, 2, stride)
    return (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(len(codes), -1)


def _pack_32(form: Form, codes: Bytes, scale: Bytes, offset: Bytes) -> Bytes:
    head = [scale, offset] if form.offset else [scale]
    if len(form.levels) > 32:
        return np.concatenate([*head, (codes.astype(np.int16) + form.levels[0]).astype(np.int8).view(np.uint8)], 1)
    if len(form.levels) == 32:
        head.append(np.packbits(codes >> 4, axis=1, bitorder="little"))
    return np.concatenate([*head, _nibbles(codes & 15, 16)], 1)


def _quarters(codes: Bytes) -> Bytes:
    """Two bits of four codes that are 32 apart in one byte. codes: (blocks, 256)."""
    four = codes.reshape(len(codes), 2, 4, 32)
    return (four[:, :, 0] | four[:, :, 1] << 2 | four[:, :, 2] << 4 | four[:, :, 3] << 6).reshape(len(codes), 64)


def _eighths(bits: Bytes) -> Bytes:
    """One bit of eight codes that are 32 apart in one byte. bits: (blocks, 256) of 0 and 1."""
    return np.packbits(bits.reshape(-1, 8, 32), axis=1, bitorder="little")[:, 0]


def _pack_q2(codes: Bytes, scale: NDArray[np.int32], low: NDArray[np.int32], d: Bytes, dmin: Bytes) -> Bytes:
    return np.concatenate([(scale | low << 4).astype(np.uint8), _quarters(codes), d, dmin], 1)


def _pack_q3(codes: Bytes, scale: NDArray[np.int32], low: NDArray[np.int32], d: Bytes, dmin: Bytes) -> Bytes:
    del low, dmin
    six = (scale + 32).astype(np.uint8)
    four, two = six & 15, six >> 4
    lower = four[:, :8] | four[:, 8:] << 4
    upper = two[:, 0:4] | two[:, 4:8] << 2 | two[:, 8:12] << 4 | two[:, 12:16] << 6
    return np.concatenate([_eighths(codes >> 2), _quarters(codes & 3), lower, upper, d], 1)


def _six_bits(scale: NDArray[np.int32], low: NDArray[np.int32]) -> Bytes:
    """Eight scales and eight offsets of 6 bits in 12 bytes, as Q4_K and Q5_K store them."""
    one, two = scale.astype(np.uint8), low.astype(np.uint8)
    first = one[:, :4] | one[:, 4:] >> 4 << 6
    second = two[:, :4] | two[:, 4:] >> 4 << 6
    return np.concatenate([first, second, one[:, 4:] & 15 | (two[:, 4:] & 15) << 4], 1)


def _pack_q4(codes: Bytes, scale: NDArray[np.int32], low: NDArray[np.int32], d: Bytes, dmin: Bytes) -> Bytes:
    return np.concatenate([d, dmin, _six_bits(scale, low), _nibbles(codes, 32)], 1)


def _pack_q5(codes: Bytes, scale: NDArray[np.int32], low: NDArray[np.int32], d: Bytes, dmin: Bytes) -> Bytes:
    return np.concatenate([d, dmin, _six_bits(scale, low), _eighths(codes >> 4), _nibbles(codes & 15, 32)], 1)


def _pack_q6(codes: Bytes, scale: NDArray[np.int32], low: NDArray[np.int32], d: Bytes, dmin: Bytes) -> Bytes:
    del low, dmin
    signed = scale.astype(np.int8).view(np.uint8)
    return np.concatenate([_nibbles(codes & 15, 64), _quarters(codes >> 4), signed, d], 1)


_PACK_K = {"Q2_K": _pack_q2, "Q3_K": _pack_q3, "Q4_K": _pack_q4, "Q5_K": _pack_q5, "Q6_K": _pack_q6}
