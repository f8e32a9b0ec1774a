"""A loaded model as HTTP sees it: `native.py` is one over the engine's server, `generic.py` one over any runner."""

from collections.abc import AsyncIterator, Sequence
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from sizewise.core.model import Model
from sizewise.core.requests import Score, ScoreRequest
from sizewise.serve.job import Event, Job, TokenLogprob

Capability = Literal["completion", "tools", "insert", "vision", "embedding", "thinking", "score", "rerank"]


class Session(Protocol):
    """One loaded model. Methods may be called at the same time; each cancels its work when its task is cancelled."""

    model: Model
    context: int  # tokens that one request may use, prompt and answer together
    parallel: int  # requests that are answered at the same time
    capabilities: frozenset[Capability]

    def stream(self, job: Job) -> AsyncIterator[Event]:
        """Answer: any number of `Piece`, then one `Done`. Closing the iterator stops the engine's work within a second.

        Raises:
            TooLong: the prompt does not fit (both numbers are in it), and the job does not ask to truncate.
            Unsupported: this model cannot do what the job asks (tools, images, thinking, infill).
            UsageError: a value that the engine cannot take (a bad schema, a token id outside the vocabulary).
            EngineFailed: the engine died; the manager starts another for the next request.
        """
        ...

    async def render(self, job: Job) -> str:
        """The text that the model would be given for `job.turns`.

        Where they spell control tokens it is guarded (see `load.templates`): `tokenize` and `score` read that as text.
        """
        ...

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids. `special`: texts of control tokens count as such; `bos`: begin as the model's prompts begin."""
        ...

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; raises UsageError for ids outside the vocabulary."""
        ...

    async def prompt_logprobs(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """Of each token, given those before it, and of the `top` likeliest; exact. The first one's is None."""
        ...

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Log-probability of each continuation of each request."""
        ...

    async def embed(self, texts: Sequence[str], *, truncate: bool = True) -> tuple[NDArray[np.float32], list[int]]:
        """(n, width) L2-normalised embeddings, and the tokens of each text.

        Raises:
            TooLong: a text is longer than the context and `truncate` is off.
        """
        ...

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], list[int]]:
        """How well each document answers the query, by a model that reads both together; and the tokens of each pair.

        Raises:
            Unsupported: the model is no reranker.
        """
        ...

    def pids(self) -> list[int]:
        """Processes of this model, to measure and, after a failure, to look for."""
        ...

    @property
    def alive(self) -> bool:
        """False after its process died."""
        ...

    async def close(self) -> None:
        """Unload. Safe to call twice; requests under way end with EngineFailed."""
        ...
