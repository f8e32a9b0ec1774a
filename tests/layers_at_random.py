"""Random layers with inputs whose features depend on each other, as those of real networks do."""

import torch
from torch import Tensor


def random_layer(seed: int, rows: int = 12, columns: int = 16, tokens: int = 64) -> tuple[Tensor, Tensor, Tensor]:
    """Weight (rows, columns), inputs (tokens, columns) and their Hessian, all in float64."""
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw, dtype=torch.float64)
    mix = torch.randn(columns, columns, generator=draw, dtype=torch.float64)
    loud = torch.rand(columns, generator=draw, dtype=torch.float64) * 3 + 0.1
    inputs = torch.randn(tokens, columns, generator=draw, dtype=torch.float64) @ mix * loud
    return weight, inputs, inputs.T @ inputs / tokens


def damage(weight: Tensor, new: Tensor, hessian: Tensor) -> float:
    """Mean square change of the layer's outputs over the tokens that the Hessian comes from, by its definition."""
    error = (weight - new.to(weight.dtype)).to(torch.float64)
    return float(torch.einsum("oi,ij,oj->", error, hessian.to(torch.float64), error))
