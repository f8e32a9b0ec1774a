"""`/v1/embeddings`: texts or token ids in, vectors out, as numbers or as base64 of little-endian float32."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.serve.body import BadField, Fields
from sizewise.serve.errors import HttpError
from sizewise.serve.lease import KeepAlive
from sizewise.serve.wire import openai
from sizewise.serve.wire.openai_completions import token_ids

MOST_INPUTS = 2048


@dataclass(frozen=True)
class AskedEmbeddings:
    """A request for embeddings, checked."""

    model: str
    inputs: tuple[str | tuple[int, ...], ...]
    base64: bool
    dimensions: int | None
    context: int | None
    keep_alive: KeepAlive
    warnings: tuple[str, ...]


def parse(fields: Fields) -> AskedEmbeddings:
    """Read a request.

    Raises:
        BadField: a field is unknown, missing, or holds what it cannot.
        HttpError: more texts than one request may hold.
    """
    common = openai.common(fields)
    encoding = fields.choice("encoding_format", ("float", "base64"), "float")
    dimensions = fields.integer("dimensions", None, low=1, high=2**20)
    inputs = _inputs(fields.raw("input"))
    fields.without_effect(("user",))
    fields.finish()
    return AskedEmbeddings(
        inputs=inputs, base64=encoding == "base64", dimensions=dimensions, warnings=tuple(fields.warnings), **common
    )


def _inputs(sent: Any) -> tuple[str | tuple[int, ...], ...]:
    if isinstance(sent, str):
        return (sent,)
    if not isinstance(sent, list) or not sent:
        raise BadField("input", "must be a string, a list of strings, or token ids; at least one")
    if len(sent) > MOST_INPUTS and not isinstance(sent[0], int):
        raise HttpError(413, f"input: has {len(sent)} texts; at most {MOST_INPUTS} are allowed in one request")
    if isinstance(sent[0], int | float) and not isinstance(sent[0], bool):
        return (token_ids(sent, "input"),)
    found: list[str | tuple[int, ...]] = []
    for place, item in enumerate(sent):
        if not isinstance(item, type(sent[0])) or not isinstance(item, str | list):
            raise BadField(f"input[{place}]", "is not of the same kind as the others, or neither text nor token ids")
        found.append(item if isinstance(item, str) else token_ids(item, f"input[{place}]"))
    return tuple(found)


def shorten(vectors: NDArray[np.float32], dimensions: int | None) -> NDArray[np.float32]:
    """The first `dimensions` numbers of each vector, brought back to length 1.

    Raises:
        BadField: the vectors have fewer.
    """
    if dimensions is None or dimensions == vectors.shape[1]:
        return vectors
    if dimensions > vectors.shape[1]:
        raise BadField("dimensions", f"is {dimensions}; the model's embeddings have {vectors.shape[1]}")
    cut = vectors[:, :dimensions]
    lengths = np.linalg.norm(cut, axis=1, keepdims=True)
    shorter: NDArray[np.float32] = (cut / np.maximum(lengths, 1e-12)).astype(np.float32)
    return shorter


def body(asked: AskedEmbeddings, vectors: NDArray[np.float32], tokens: Sequence[int]) -> dict[str, Any]:
    """The answer."""
    data = [
        {"object": "embedding", "index": index, "embedding": _written(vector, asked.base64)}
        for index, vector in enumerate(vectors)
    ]
    total = sum(tokens)
    usage = {"prompt_tokens": total, "total_tokens": total}
    return {"object": "list", "data": data, "model": asked.model, "usage": usage}


def _written(vector: NDArray[np.float32], as_base64: bool) -> str | list[float]:
    if as_base64:
        return base64.b64encode(vector.astype("<f4").tobytes()).decode()
    numbers: list[float] = vector.astype(np.float64).tolist()
    return numbers
