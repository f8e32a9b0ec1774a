"""Modules that multiply with matrices in small forms. Runs in the child of the torch runner.

On a CPU integers of at most 4 bits in groups go to torch's own product of bfloat16 and 4-bit integers. Others, and
codebooks, are unpacked for each call, some rows at a time, so that no more than a few of them are ever in memory as
floating-point numbers. Thin factors are two products. LLM.int8() multiplies integers as they are.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from sizewise.load.checkpoint.packed import Spec, zeros_of
from sizewise.load.checkpoint.packed_bits import unpack

Rows = slice | Tensor  # of a matrix: a range, or numbers

_FOUR_GROUPS = (256, 128, 64, 32)  # how many weights of a row may share a scale in torch's 4-bit product
_FOUR_ROWS = 64  # the number of rows must be a multiple of this for it, on every CPU that it is written for
_PIECE = 1 << 22  # weights unpacked at once
_FEW = 8  # rows that torch's product of bfloat16 and bytes multiplies faster than bytes are unpacked
_KERNEL_WIDTH = 32  # its columns must be a multiple of this: it returns wrong numbers for the rest


class Small(nn.Module, ABC):
    """y = W x + b with W in a small form. `parts` are the tensors of the form as files hold them."""

    bias: Tensor | None
    exact = False  # True: products that round their inputs are not taken
    looked_up = False  # True: rows are asked for, too

    def __init__(self, spec: Spec, parts: dict[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.spec, self.dtype = spec, dtype
        self.register_buffer("bias", None if bias is None else bias.to(dtype))
        self.take(parts)

    @abstractmethod
    def take(self, parts: dict[str, Tensor]) -> None:
        """Keep what is needed of the form as buffers."""

    @abstractmethod
    def multiply(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""

    @abstractmethod
    def weight_rows(self, rows: Rows) -> Tensor:
        """(rows, in): those rows of the dense matrix; no others are unpacked."""

    def forward(self, x: Tensor) -> Tensor:
        """(..., in) -> (..., out)."""
        y = self.multiply(x.reshape(-1, x.shape[-1]))
        if self.bias is not None:
            y = y + self.bias
        return y.reshape(*x.shape[:-1], -1)


class _Unpacked(Small):
    """Words of codes, turned into weights for each call."""

    words: Tensor
    columns: int

    def multiply(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        step = max(1, _PIECE // self.columns)
        rows = range(0, len(self.words), step)
        pieces = [nn.functional.linear(x, self.weight_rows(slice(at, at + step)).to(x.dtype)) for at in rows]
        return pieces[0] if len(pieces) == 1 else torch.cat(pieces, -1)


class Uniform(_Unpacked):
    """Integers on uniform grids.

    Where torch's 4-bit product takes them, inputs and outputs are rounded to bfloat16, which is little beside 4 bits,
    unless `exact` is asked for.
    """

    scale: Tensor
    zeros: Tensor
    groups: Tensor | None
    four: tuple[Tensor, int, Tensor] | None = None  # what torch's 4-bit product takes, once it was called

    def multiply(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        group = 0 if self.exact or x.device.type != "cpu" else self._four_group()
        if not group:
            return super().multiply(x)
        self.four = self.four or self._as_four(group)
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(x.to(torch.bfloat16).contiguous(), *self.four)
        return y.to(x.dtype)

    def _four_group(self) -> int:
        """How many weights share a scale for torch's 4-bit product; 0 = it cannot take this form."""
        own, odd = divmod(self.columns, self.scale.shape[1])
        fits = self.spec.bits <= 4 and self.groups is None and not odd and len(self.scale) % _FOUR_ROWS == 0
        return next((size for size in _FOUR_GROUPS if own % size == 0), 0) if fits else 0

    def _as_four(self, group: int) -> tuple[Tensor, int, Tensor]:
        """Its arguments: weights are (code - 8) * scale + shift. The words go, unless rows are looked up."""
        middle = 2 ** (self.spec.bits - 1)  # becomes the kernel's 8: shifts stay small and lose little in 16 bits
        codes = unpack(self.words, self.spec.bits, self.columns).to(torch.int32) + (8 - middle)
        scale, zeros = self.scale.float(), self.zeros.float()
        both = torch.stack([scale, (middle - zeros) * scale], -1).to(torch.bfloat16)
        both = both.repeat_interleave(self.columns // scale.shape[1] // group, 1).transpose(0, 1).contiguous()
        if not self.looked_up:
            self.words = self.words[:, :0].clone()
        return torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 2), group, both

    def take(self, parts: dict[str, Tensor]) -> None:
        """Keep the parts as buffers."""
        rows, self.columns = (int(size) for size in parts["weight_shape"].tolist())
        scale = parts["weight_scale"]
        self.register_buffer("words", parts["weight_packed"])
        self.register_buffer("scale", scale)
        zeros = zeros_of(self.spec, parts, rows)
        whole = bool((zeros == zeros.round()).all())
        self.register_buffer("zeros", zeros.to(torch.uint8 if whole else torch.float16))
        self.register_buffer("groups", parts.get("weight_g_idx"))

    def weight_rows(self, rows: Rows) -> Tensor:
        """(rows, in) float32."""
        codes = unpack(self.words[rows], self.spec.bits, self.columns)
        scale, zeros = self.scale[rows].float(), self.zeros[rows].float()
        if self.groups is not None:
            of_column = self.groups.long()
            return (codes.float() - zeros[:, of_column]) * scale[:, of_column]
        grouped = codes.reshape(len(codes), scale.shape[1], -1).float()
        return grouped.sub_(zeros[..., None]).mul_(scale[..., None]).reshape(codes.shape)


class Table(_Unpacked):
    """A codebook for each row."""

    table: Tensor

    def take(self, parts: dict[str, Tensor]) -> None:
        """Keep the parts as buffers."""
        self.columns = int(parts["weight_shape"][1])
        self.register_buffer("words", parts["weight_packed"])
        self.register_buffer("table", parts["weight_table"])

    def weight_rows(self, rows: Rows) -> Tensor:
        """(rows, in) float32."""
        codes = unpack(self.words[rows], self.spec.bits, self.columns)
        return self.table[rows].float().gather(1, codes.long())


class Eight(Small):
    """LLM.int8(): 8-bit rows, and the columns of outlier features in full.

    Inputs of the 8-bit part are rounded to bfloat16, and so is what comes out of it, however many tokens there are: the
    paper's 8 bits for each token are coarser, and without instructions for products of bytes no faster on a CPU. With
    `exact` nothing is rounded.
    """

    codes: Tensor
    scale: Tensor
    kept: Tensor
    outer: Tensor

    def take(self, parts: dict[str, Tensor]) -> None:
        """Keep the parts as buffers."""
        self.register_buffer("codes", parts["weight_codes"])
        self.register_buffer("scale", parts["weight_scale"])
        self.register_buffer("kept", parts["weight_kept"].long())
        self.register_buffer("outer", parts["weight_columns"].to(self.dtype))

    def multiply(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        if self.exact:
            full = nn.functional.linear(x, (self.codes.float() * self.scale.float()[:, None]).to(x.dtype))
            return full if not len(self.kept) else full + nn.functional.linear(x[:, self.kept], self.outer)
        short = x.to(torch.bfloat16)
        if len(x) <= _FEW and x.device.type == "cpu" and x.shape[1] % _KERNEL_WIDTH == 0:
            y = torch._weight_int8pack_mm(short, self.codes, self.scale)
        else:
            y = nn.functional.linear(short.float(), self.codes.float().mul_(self.scale.float()[:, None])).bfloat16()
        y = y.to(x.dtype)
        return y if not len(self.kept) else y + nn.functional.linear(x[:, self.kept], self.outer)

    def weight_rows(self, rows: Rows) -> Tensor:
        """(rows, in) float32."""
        found = self.codes[rows].float() * self.scale[rows].float()[:, None]
        found[:, self.kept] += self.outer[rows].float()
        return found


class Thin(Small):
    """A product of two thin matrices: two products, each smaller than the one they replace."""

    left: Tensor
    right: Tensor

    def take(self, parts: dict[str, Tensor]) -> None:
        """Keep the parts as buffers."""
        self.register_buffer("left", parts["weight_left"].to(self.dtype))
        self.register_buffer("right", parts["weight_right"].to(self.dtype))

    def multiply(self, x: Tensor) -> Tensor:
        """(n, in) -> (n, out)."""
        return nn.functional.linear(nn.functional.linear(x, self.right), self.left)

    def weight_rows(self, rows: Rows) -> Tensor:
        """(rows, in)."""
        return self.left[rows] @ self.right


class Looked(nn.Module):
    """An embedding in a small form: only the rows of the tokens at hand are unpacked."""

    scale: Tensor

    def __init__(self, small: Small, scale: float | Tensor = 1.0) -> None:
        """Take a matrix.

        Args:
            small: (vocabulary, width); the head may multiply with the same one.
            scale: what the family multiplies embeddings by (Gemma 3).
        """
        super().__init__()
        small.looked_up = True
        self.small = small
        self.register_buffer("scale", torch.as_tensor(scale, dtype=small.dtype))

    def forward(self, ids: Tensor) -> Tensor:
        """(...) token ids -> (..., width)."""
        found, places = torch.unique(ids, return_inverse=True)
        return self.small.weight_rows(found).to(self.small.dtype)[places] * self.scale


class Experts(nn.Module):
    """The experts of a block, each with matrices of its own, in place of a module that holds them stacked."""

    def __init__(self, experts: list[dict[str, nn.Module]], activation: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.list = experts
        self.experts = nn.ModuleList(nn.ModuleDict(parts) for parts in experts)  # so that they move to a device
        self.activation = activation

    def forward(self, hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """Each token's experts, weighted.

        Args:
            hidden: (tokens, width).
            chosen: (tokens, k), numbers of experts; a number beyond the last is no expert.
            weights: (tokens, k).
        """
        total = torch.zeros_like(hidden)
        for number, expert in enumerate(self.list):
            token, place = torch.where(chosen == number)
            if len(token):
                x = hidden[token]
                y = expert["down"](self.activation(expert["gate"](x)) * expert["up"](x))
                total.index_add_(0, token, (y * weights[token, place, None]).to(total.dtype))
        return total


_MODULES: dict[str, type[Small]] = {"uniform": Uniform, "int8": Eight, "codebook": Table, "factors": Thin}


def module_for(spec: Spec, parts: dict[str, Tensor], bias: Tensor | None, dtype: torch.dtype) -> Small:
    """The module that multiplies with a form.

    Args:
        spec: the form's description.
        parts: its tensors as files hold them, by suffix.
        bias: (out,) or nothing.
        dtype: of the inputs.
    """
    return _MODULES[spec.kind](spec, parts, bias, dtype)
