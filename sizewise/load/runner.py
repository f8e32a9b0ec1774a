"""The runner protocol: one model, loaded, that answers batches. One file in `load/runners/` is one engine.

Everything is batch-first: pass all requests at once and let the engine share prefixes, pack and batch them.
Runners are context managers; closing one ends its process.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Literal, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from sizewise.core.events import Listener, silent
from sizewise.core.model import Model
from sizewise.core.requests import GenerateRequest, OnChunk, Reply, Score, ScoreRequest, TextScore

Ability = Literal["generate", "chat", "score", "text_score", "embed"]


@dataclass(frozen=True, slots=True)
class Options:
    """How a model is run. None of it may change what greedy decoding answers, only how fast and in what memory."""

    threads: int | None = None  # None = all cores
    context: int | None = None  # tokens; None = as much as the requests need, at most what the model has
    device: str = "auto"  # torch only: "auto", "cpu", "cuda"
    dtype: str = "auto"  # torch only: "auto", "float32", "bfloat16"
    parallel: int = 4  # requests decoded together


class Runner(Protocol):
    """A loaded model."""

    model: Model
    engine: str  # "llamacpp", "torch", "http", "linear" and the engine's version: part of the ledger's key
    abilities: frozenset[Ability]
    raw_input: bool  # True: takes the bare input, no prompt around it (linear models)

    def generate(
        self, requests: Sequence[GenerateRequest], on_chunk: OnChunk | None = None, listen: Listener = silent
    ) -> list[Reply]:
        """Answer each request; `on_chunk(index, chunk)` sees the pieces as they come.

        Raises:
            UsageError: a prompt is longer than the context (the message holds both numbers).
            EngineFailed: the engine died.
        """
        ...

    def score(self, requests: Sequence[ScoreRequest], listen: Listener = silent) -> list[list[Score]]:
        """Log-probability of each continuation of each request. Shared prompt prefixes are computed once.

        prompt + continuation is tokenized as one text and split at len(tokens of the prompt without trailing space),
        as lm-evaluation-harness does, so that scores can be compared.
        """
        ...

    def score_texts(self, texts: Sequence[str], window: int = 512, listen: Listener = silent) -> list[TextScore]:
        """Log-probability of whole texts in non-overlapping windows of `window` tokens.

        Each window starts with BOS where the model has one that it adds; else its first token is context only.
        """
        ...

    def embed(self, texts: Sequence[str], listen: Listener = silent) -> NDArray[np.float32]:
        """(n, width) L2-normalised embeddings."""
        ...

    def count_tokens(self, texts: Sequence[str]) -> list[int]:
        """Number of tokens of each text, without BOS."""
        ...

    def pids(self) -> list[int]:
        """Processes to watch for memory and CPU time: the child, or this process, or none for an endpoint."""
        ...

    def close(self) -> None:
        """Unload. Safe to call twice."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
