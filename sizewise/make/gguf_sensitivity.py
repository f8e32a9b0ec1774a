"""What each type would cost each tensor of a GGUF, in nats of KL divergence per token: see `gguf_budget`."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import gguf
import numpy as np
from numpy.typing import NDArray

from sizewise.load.gguf.file import TensorInfo
from sizewise.load.gguf.types import GgmlType
from sizewise.load.layers import Layout
from sizewise.load.llama.c import quantize_rows
from sizewise.make.gguf_budget import Option, choose, kinds_for
from sizewise.make.gguf_encoder import Encoder
from sizewise.make.gguf_mix import may_change
from sizewise.make.gguf_rounding import Metric
from sizewise.make.gradients import Gradients
from sizewise.make.recorded import Recorded

if TYPE_CHECKING:
    from torch import Tensor

_LEAST = 32  # weights in the smallest block; narrower rows keep what the mix gives them
_ROWS = 48  # of each matrix that are tried


@dataclass(frozen=True, slots=True)
class Pulls:
    """Mean square gradients of a text's log-probability, a token of it being changed at a time."""

    outputs: Mapping[str, float]  # by module: at one output of a matrix, on average over them
    head: float  # sum over the vocabulary of the mean of p (1 - p), p being the model's own probabilities
    looked_up: "Tensor"  # (hidden,), at the embedding of a token


def pulls_of(layout: Layout, recorded: Recorded, gradients: Gradients) -> Pulls:
    """Gather them from what a backward pass left.

    A weight's gradient is a sum over the window's tokens of output gradient times input. Those of different tokens have
    next to nothing in common, so its mean square is the product of the two mean squares, times the tokens.
    """
    import torch

    outer = gradients.outer()
    found = {}
    for block in layout.blocks:
        squares = gradients.block(block.index)
        for seen in recorded.block(block.index, hessian=False):
            loud = float(seen.mean("input_norm").square().sum())
            for name in seen.names:
                pull = squares[name].square().sum(dtype=torch.float64) / len(squares[name])
                found[name] = float(pull) / loud * outer.tokens if loud else 0.0
    return Pulls(found, outer.head, outer.embedding)


def measured(encoder: Encoder, pulls: Pulls, mix: Mapping[str, GgmlType]) -> tuple[dict[str, GgmlType], float]:
    """The types that cost least in no more bytes than a mix takes, and the KL divergence that they should cost.

    Args:
        encoder: of the file; it is told what embeddings cost.
        pulls: of the model.
        mix: the type of every tensor in the mix.
    """
    if pulls.head:
        encoder.weigh_lookup(pulls.looked_up / pulls.head)
    options = options_of(encoder, pulls)
    sizes = {tensor.name: _bytes(encoder, tensor, mix[tensor.name]) for tensor in encoder.info.tensors}
    chosen = choose(options, sum(sizes[name] for name in options))
    cost = sum(next(each.cost for each in options[name] if each.kind == kind) for name, kind in chosen.items())
    return {**mix, **chosen}, float(f"{cost:.4g}")


def options_of(encoder: Encoder, pulls: Pulls) -> dict[str, list[Option]]:
    """What each tensor that may change can become, and what that costs.

    Args:
        encoder: of the file.
        pulls: of the model.
    """
    wide = [tensor for tensor in encoder.info.tensors if may_change(tensor) and tensor.shape[0] % _LEAST == 0]
    return {tensor.name: _tensor(encoder, tensor, pulls) for tensor in wide}


def _tensor(encoder: Encoder, tensor: TensorInfo, pulls: Pulls) -> list[Option]:
    kinds = kinds_for(tensor.shape[0])
    costs = np.zeros(len(kinds))
    for module, weight, metric, share in encoder.sampled(tensor, _ROWS):
        pull = pulls.outputs.get(module, pulls.head / encoder.layout.vocabulary)
        costs += [pull / 2 / share * _damage(weight, metric, kind) for kind in kinds]
    pairs = zip(kinds, costs.tolist(), strict=True)
    return [Option(kind, _bytes(encoder, tensor, kind), cost) for kind, cost in pairs]


def _bytes(encoder: Encoder, tensor: TensorInfo, kind: GgmlType) -> int:
    """In the file, where every tensor begins at a multiple of the alignment."""
    step = encoder.info.alignment
    return -(-kind.row_bytes(tensor.shape[0]) * tensor.rows // step) * step


def _damage(weight: NDArray[np.float32], metric: Metric, kind: GgmlType) -> float:
    """What rounding to nearest would leave of the output's error if later columns repaired what they can."""
    loud = metric.factor.diagonal().reciprocal().square().numpy()
    packed = np.frombuffer(quantize_rows(weight, kind.code, np.ascontiguousarray(loud), threads=1), np.uint8)
    error = gguf.dequantize(packed.reshape(len(weight), -1), gguf.GGMLQuantizationType(kind.code)) - weight
    return float((error.astype(np.float64) ** 2 @ loud).sum())
