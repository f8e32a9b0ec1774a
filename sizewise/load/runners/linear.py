"""Linear models as runners: a text in, the label out. They take the bare input; a prompt would be noise to them."""

import math
import os
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import NoReturn, Self

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import Unsupported
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, GenerateRequest, OnChunk, Reply, Score, ScoreRequest, TextScore
from sizewise.load.linear_model import LinearModel
from sizewise.load.runner import Ability, Options, Runner

_VERSION = 1  # raise it when the same files would give other answers
_BLOCK = 1024  # texts between two words of progress


class Linear:
    """A linear model, loaded. One on embeddings keeps its encoder's runner open beside it.

    Args:
        model: of kind "linear".
        options: how to run; a linear model itself needs none of them.
        open_encoder: gives a runner of the encoder; called once, and only for a model on embeddings.
    """

    abilities: frozenset[Ability] = frozenset({"score", "generate", "chat"})
    raw_input = True

    def __init__(self, model: Model, options: Options, open_encoder: Callable[[], Runner]) -> None:
        self.model, self.options = model, options
        self._head = LinearModel.load(model.files)
        self._encoder = open_encoder() if self._head.kind == "embedding" else None
        self.engine = f"linear {_VERSION}" + (f" on {self._encoder.engine}" if self._encoder else "")

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        """Answer each request with the likeliest label, whatever the sampling: there is nothing to draw."""
        started = time.perf_counter()
        log_proba = self._log_proba([_text(request) for request in requests], listen)
        seconds = (time.perf_counter() - started) / max(1, len(requests))
        replies = []
        for index, best in enumerate(log_proba.argmax(axis=1)):
            label = self._head.classes[best]
            if on_chunk:
                on_chunk(index, Chunk(label))
            replies.append(Reply(label, "stop", None, None, seconds, seconds))
        return replies

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        """Log-probability of each continuation that is one of the model's labels; minus infinity of any other."""
        places = {label: place for place, label in enumerate(self._head.classes)}
        scores = []
        for request, row in zip(
            requests, self._log_proba([request.prompt for request in requests], listen), strict=True
        ):
            best = int(row.argmax())
            found = [places.get(continuation.strip()) for continuation in request.continuations]
            scores.append(
                [Score(-math.inf if place is None else float(row[place]), 1, place == best) for place in found]
            )
        return scores

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        """A classifier cannot tell how likely a text is."""
        self._refuse("tell how likely a text is")

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        """A classifier gives labels, not embeddings."""
        self._refuse("give embeddings; open its encoder for them")

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of words of each text."""
        return [len(text.split()) for text in texts]

    def pids(self) -> list[int]:
        """This process, and the encoder's."""
        return [os.getpid(), *(self._encoder.pids() if self._encoder else [])]

    def close(self) -> None:
        """Close the encoder, if there is one."""
        if self._encoder:
            self._encoder.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _log_proba(self, texts: Sequence[str], listen: Listener) -> NDArray[np.float64]:
        """(n, classes)."""
        if self._encoder:
            return self._head.predict_log_proba(self._encoder.embed(texts, listen))
        parts = [np.zeros((0, len(self._head.classes)))]
        for start in range(0, len(texts), _BLOCK):
            parts.append(self._head.predict_log_proba(texts[start : start + _BLOCK]))
            listen(Progress(self.model.name, min(start + _BLOCK, len(texts)), len(texts)))
        return np.concatenate(parts)

    def _refuse(self, what: str) -> NoReturn:
        raise Unsupported(f"{self.model.name} is a {self._head.kind} classifier and cannot {what}")


def _text(request: GenerateRequest) -> str:
    """What to classify: the prompt, or what the user said last."""
    if request.prompt is not None:
        return request.prompt
    said = [message.content for message in request.messages if message.role == "user"]
    return said[-1] if said else ""
