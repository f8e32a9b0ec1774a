"""Matrices into the bytes of a GGUF type, so that the layer's output changes as little as its grid allows.

tr(E H ET), with H the mean of x xT over calibration text, is what an error E of the weights does to the output. The
sweep (`gguf_sweep`) rounds a matrix and pushes each error into the columns still to come; the descent (`gguf_descent`)
improves what it left. Without H all inputs count alike and nothing is pushed. Rows do not depend on each other: they
are worked on some at a time, on all cores.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import BadModel
from sizewise.make.gguf_descent import ROUNDS, descend
from sizewise.make.gguf_forms import Form
from sizewise.make.gguf_sweep import TRIES, sweep_columns
from sizewise.make.hessian import damped, inverse_factor

if TYPE_CHECKING:
    from torch import Tensor

_PIECE = 1 << 19  # weights in work at once, per core: what is tried of a group then stays in the processor's cache
_MANY = 64  # levels: with more, the choice of a scale makes next to no difference


@dataclass(frozen=True, slots=True)
class Metric:
    """What errors cost: the Hessian, damped, and its factor. All (in, in) float32."""

    hessian: "Tensor"
    factor: "Tensor"


def metric_of(hessian: "Tensor | None", width: int, damp: float = 0.01) -> Metric:
    """Prepare a Hessian for any number of matrices that share an input.

    Args:
        hessian: (in, in); None = all inputs alike and independent.
        width: in.
        damp: share of the mean of its diagonal that is added to its diagonal.
    """
    import torch

    if hessian is None or not bool(hessian.any()):  # of an expert that no token chose, zeros
        return Metric(torch.eye(width), torch.eye(width))
    whole = damped(hessian, damp)
    return Metric(whole.float(), inverse_factor(whole, 0.0).float())


def encode_rows(
    weight: NDArray[np.float32], metric: Metric, form: Form, *, tries: int = TRIES, rounds: int = ROUNDS
) -> NDArray[np.uint8]:
    """Round rows of a matrix to a type.

    Args:
        weight: (out, in), finite.
        metric: of its inputs.
        form: the type.
        tries: scales tried for each group when the sweep comes to it.
        rounds: of coordinate descent afterwards.

    Returns:
        (out, bytes of a row).
    """
    import torch

    if len(form.levels) > _MANY:
        tries, rounds = min(tries, 3), min(rounds, 1)
    columns = torch.from_numpy(np.ascontiguousarray(weight.T))
    made = sweep_columns(columns.clone(), metric.factor, form, tries)
    if rounds:
        descend(made, columns, metric.hessian, rounds)
    if not bool(torch.isfinite(made.scale).all() & torch.isfinite(made.level).all()):
        raise BadModel("weights are too large for 16-bit scales")
    return made.packed()


def encode_matrix(
    weight: NDArray[np.float32], metric: Metric, form: Form, *, tries: int = TRIES, rounds: int = ROUNDS
) -> Iterator[bytes]:
    """The bytes of a whole matrix, rows in order, worked on by all cores. The arguments are those of `encode_rows`."""
    step = max(32, _PIECE // weight.shape[1])
    pieces = [weight[start : start + step] for start in range(0, len(weight), step)]
    with one_thread_each(), ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for done in pool.map(lambda piece: encode_rows(piece, metric, form, tries=tries, rounds=rounds), pieces):
            yield done.tobytes()


@contextmanager
def one_thread_each() -> Iterator[None]:
    """PyTorch's own threads off: they would wait for each other after every column."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
