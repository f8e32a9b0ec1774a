"""Small integers laid bit to bit into 32-bit words, as compressed-tensors' "pack-quantized" files hold them.

Element i of a row begins at bit i * bits of the row, counted from the lowest bit of its first word; an element may lie
across two words. Every row begins with a new word.
"""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

_WORD = 32


def words_for(columns: int, bits: int) -> int:
    """How many words a row of `columns` elements takes."""
    return -(-columns * bits // _WORD)


def pack(codes: "Tensor", bits: int) -> "Tensor":
    """Pack the rows of a matrix.

    Args:
        codes: (rows, columns) integers from 0 to 2^bits - 1.
        bits: 1 to 8.

    Returns:
        (rows, words_for(columns, bits)) int32.
    """
    import torch

    rows, columns = codes.shape
    padded = torch.nn.functional.pad(codes, (0, -columns % _WORD)).reshape(rows, -1, _WORD)
    words = torch.zeros(rows, padded.shape[1], bits, dtype=torch.int64, device=codes.device)
    for place in range(_WORD):
        word, shift = divmod(place * bits, _WORD)
        value = padded[..., place].long()
        words[..., word] |= (value << shift) & 0xFFFFFFFF
        if shift + bits > _WORD:
            words[..., word + 1] |= value >> (_WORD - shift)
    signed = (words ^ 0x80000000) - 0x80000000
    return signed.to(torch.int32).reshape(rows, -1)[:, : words_for(columns, bits)].contiguous()


def unpack(words: "Tensor", bits: int, columns: int) -> "Tensor":
    """The rows that `pack` packed.

    Args:
        words: (rows, words_for(columns, bits)) int32.
        bits: 1 to 8.
        columns: how many elements a row has.

    Returns:
        (rows, columns) uint8.
    """
    import torch

    rows = words.shape[0]
    if bits in (4, 8):  # whole bytes, or halves of them; words lie with their lowest byte first
        halves = words.contiguous().view(torch.uint8)
        if bits == 4:
            halves = torch.stack((halves & 15, halves >> 4), dim=-1).reshape(rows, -1)
        return halves[:, :columns]
    padded = torch.nn.functional.pad(words, (0, -words.shape[1] % bits)).reshape(rows, -1, bits)
    codes = torch.empty(rows, padded.shape[1], _WORD, dtype=torch.uint8, device=words.device)
    for place in range(_WORD):
        word, shift = divmod(place * bits, _WORD)
        value = (padded[..., word].long() & 0xFFFFFFFF) >> shift
        if shift + bits > _WORD:
            value |= padded[..., word + 1].long() << (_WORD - shift)
        codes[..., place] = (value & (2**bits - 1)).to(torch.uint8)
    return codes.reshape(rows, -1)[:, :columns]
