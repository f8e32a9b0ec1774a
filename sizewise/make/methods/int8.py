"""LLM.int8(): eight bits for weights, sixteen where outliers pass (Dettmers et al. 2022, arXiv:2208.07339).

A few input features of a large model carry values far beyond all others. Rounded with the rest they would set the scale
for everything, so the columns that they meet are kept; all others are rounded with one scale for each output row.
"""

from typing import TYPE_CHECKING, Annotated

from sizewise.core.params import Range, Search
from sizewise.make.grids import storable
from sizewise.make.method import weight_method
from sizewise.make.packed import Int8

if TYPE_CHECKING:
    from torch import Tensor


@weight_method
def int8(
    weight: "Tensor",
    abs_max: "Tensor",
    *,
    threshold: Annotated[float, Range(0), Search(6.0)] = 6.0,
) -> "Tensor | Int8":
    """Quantize: 8-bit weights with a scale for each row, columns of outlier features kept at 16 bits.

    Args:
        weight: (out, in).
        abs_max: (in,), largest |x| of each input feature over the calibration tokens.
        threshold: inputs that reach this are outliers; 0 keeps every column as it is.
    """
    import torch

    outlier = abs_max >= threshold
    if bool(outlier.all()):
        return weight
    kept = outlier.nonzero()[:, 0]
    rest = weight.masked_fill(outlier, 0.0)
    scales = storable(rest.abs().amax(dim=1) / 127)
    codes = (rest / scales[:, None]).round().clamp(-127, 127).to(torch.int8)
    return Int8(codes, scales.float(), kept, weight[:, kept].float(), threshold)
