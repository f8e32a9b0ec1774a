"""Any runner as a session: checkpoints, linear models, encoders and endpoints, whose calls block and run in threads.

A runner knows fewer ways of asking than the engine for GGUF files. What it does not know is refused, never passed over.
"""

import asyncio
import os
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed, TooLong, Unsupported
from sizewise.core.requests import Chunk, GenerateRequest, Message, Reply, Sampling, Score, ScoreRequest
from sizewise.load.runner import Runner
from sizewise.serve.job import Done, Draw, Event, Job, Piece, TokenLogprob
from sizewise.serve.session import Capability

T = TypeVar("T")
_ABILITIES: dict[str, Capability] = {"generate": "completion", "score": "score", "embed": "embedding"}
_SERIAL = ("checkpoint", "encoder", "gguf")  # kinds whose child answers one call at a time


class _Unwanted(Exception):
    """Raised within a runner to stop it: the client is gone."""


class GenericSession:
    """One open runner. Closing the session closes it."""

    def __init__(self, runner: Runner, *, context: int, parallel: int) -> None:
        self.model = runner.model
        self.context: int = min(context, getattr(runner, "context_length", context))
        self.parallel = 1 if runner.model.kind in _SERIAL else parallel
        self.capabilities = frozenset(_ABILITIES[one] for one in runner.abilities if one in _ABILITIES)
        self._runner = runner
        self._threads = ThreadPoolExecutor(self.parallel + 1, "generic")
        self._closed = self._failed = False

    async def stream(self, job: Job) -> AsyncGenerator[Event, None]:
        """Answer; see the protocol. Leaving the iterator stops the runner at its next piece of text."""
        self._check(job)
        request = self._request(job)
        if not self._runner.raw_input:
            request = await self._fitted(request)
        if request.sampling.max_tokens < 1:
            yield Done("length", 0, 0)
            return
        loop, pieces = asyncio.get_running_loop(), asyncio.Queue[str | None]()
        unwanted = False

        def hear(_: int, chunk: Chunk) -> None:
            if unwanted or self._closed:
                raise _Unwanted
            loop.call_soon_threadsafe(pieces.put_nowait, chunk.text)

        answer = loop.run_in_executor(self._threads, partial(self._answer, request, hear))
        answer.add_done_callback(lambda _: pieces.put_nowait(None))
        try:
            while (text := await pieces.get()) is not None:
                yield Piece(text=text)
            yield _done(await answer)
        except EngineFailed:
            self._failed = True
            raise
        finally:
            unwanted = True
            if not answer.done():
                answer.add_done_callback(lambda done: done.cancelled() or done.exception())  # looked at, and forgotten

    async def render(self, job: Job) -> str:
        """The text that the model would be given, guarded; see the protocol."""
        prompt = getattr(self._runner, "prompt", None)
        if prompt is None:
            raise Unsupported(f"{self.model.name}: a {self.model.kind} model has no prompt to show")
        return str(await self._in_thread(partial(prompt, self._request(job))))

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids; see the protocol. Linear models and endpoints show none."""
        encode = self._tokenizer("encode")
        return list(await self._in_thread(partial(encode, text, special=special, bos=bos)))

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; see `tokenize`."""
        return str(await self._in_thread(partial(self._tokenizer("decode"), tokens)))

    async def prompt_logprobs(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """Not possible: a runner scores texts, not tokens."""
        raise Unsupported(f"{self.model.name}: a {self.model.kind} model has no log-probabilities of tokens")

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Log-probability of each continuation; see the protocol."""
        return await self._in_thread(partial(self._runner.score, requests))

    async def embed(self, texts: Sequence[str], *, truncate: bool = True) -> tuple[NDArray[np.float32], list[int]]:
        """Vectors and numbers of tokens; see the protocol."""
        if not texts:
            return np.zeros((0, self.model.embedding_length or 0), np.float32), []
        if self.model.kind == "endpoint":  # it shows no tokens, and cuts or refuses by itself
            return await self._in_thread(partial(self._runner.embed, texts)), [0] * len(texts)
        limit = min(self.context, self.model.context_length or self.context) - 2  # begin and end have tokens too
        fitted = list(texts)
        counts = await self._in_thread(partial(self._runner.count_tokens, fitted))
        if max(counts) > limit and not truncate:
            raise TooLong(self.model.name, max(counts) + 2, limit + 2)
        while any(count > limit for count in counts):
            for place, count in enumerate(counts):
                if count > limit:
                    text = fitted[place]
                    fitted[place] = text[: min(len(text) - 1, int(len(text) * limit / count))]
            counts = await self._in_thread(partial(self._runner.count_tokens, fitted))
        return await self._in_thread(partial(self._runner.embed, fitted)), counts

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], list[int]]:
        """A reranker's scores; see the protocol."""
        rank = getattr(self._runner, "rank", None)
        if rank is None:
            raise Unsupported(f"{self.model.name} is no reranker")
        found: tuple[list[float], list[int]] = await self._in_thread(partial(rank, query, documents))
        return found

    def pids(self) -> list[int]:
        """The runner's processes, this one left out."""
        return [pid for pid in self._runner.pids() if pid != os.getpid()]

    @property
    def alive(self) -> bool:
        """False once closed, or after the runner's process died."""
        return not self._closed and (self.model.kind in ("linear", "endpoint") or bool(self._runner.pids()))

    async def close(self) -> None:
        """Unload."""
        self._closed = True
        await asyncio.to_thread(self._runner.close)
        self._threads.shutdown(wait=False)

    def _tokenizer(self, name: str) -> Callable[..., Any]:
        found: Callable[..., Any] | None = getattr(self._runner, name, None)
        if found is None:
            raise Unsupported(f"{self.model.name}: a {self.model.kind} model does not show its tokens")
        return found

    def _check(self, job: Job) -> None:
        """Refuse what a runner has no way to do."""
        if "completion" not in self.capabilities:
            raise Unsupported(
                f"{self.model.name} does not generate text: it is a {self.model.kind} model for embeddings"
            )
        draw = job.draw
        asked = {
            "token ids": job.tokens is not None or bool(job.before),
            "tools": bool(job.tools) and job.tool_choice != "none",
            "images": any(turn.images for turn in job.turns),
            "filling in the middle": job.suffix is not None,
            "a schema or grammar for the answer": job.schema is not None or job.grammar is not None,
            "thinking": bool(job.think),
            "log-probabilities": job.top_logprobs is not None,
            "a template in the request": job.template is not None,
            "logit_bias": bool(draw.logit_bias),
            "presence_penalty": draw.presence_penalty != 0,
            "frequency_penalty": draw.frequency_penalty != 0,
            "typical_p": draw.typical_p != 1,
        }
        for what, wanted in asked.items():
            if wanted:
                raise Unsupported(f"{self.model.name}: {what}: not possible with a {self.model.kind} model")

    def _request(self, job: Job) -> GenerateRequest:
        sampling = _sampling(job.draw, self.context)
        if job.prompt is not None:
            return GenerateRequest(prompt=job.prompt, sampling=sampling)
        messages = tuple(Message(turn.role, turn.content) for turn in job.turns)
        return GenerateRequest(messages=messages, sampling=sampling)

    async def _fitted(self, request: GenerateRequest) -> GenerateRequest:
        """The request as text, once it is known to fit."""
        prompt = getattr(self._runner, "prompt", None)
        if prompt is None:
            return request
        text = str(await self._in_thread(partial(prompt, request)))
        count = len(await self.tokenize(text, special=True, bos=True))
        if count >= self.context:
            raise TooLong(self.model.name, count, self.context)
        return GenerateRequest(prompt=text, sampling=request.sampling)

    def _answer(self, request: GenerateRequest, hear: Callable[[int, Chunk], None]) -> Reply:
        return self._runner.generate([request], hear)[0]

    async def _in_thread(self, call: Callable[[], T]) -> T:
        if self._closed:
            raise EngineFailed(f"{self.model.name}: the model was closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _sampling(draw: Draw, context: int) -> Sampling:
    return Sampling(
        max_tokens=context if draw.max_tokens is None else min(draw.max_tokens, context),
        temperature=draw.temperature,
        top_p=draw.top_p,
        top_k=draw.top_k,
        min_p=draw.min_p,
        repeat_penalty=draw.repeat_penalty,
        seed=secrets.randbelow(2**31) if draw.seed is None else draw.seed % 2**31,
        stop=draw.stop,
    )


def _done(reply: Reply) -> Done:
    first = reply.first_token_s or 0.0
    return Done(
        finish="length" if reply.finish == "length" else "stop",
        prompt_tokens=reply.prompt_tokens or 0,
        completion_tokens=reply.completion_tokens or 0,
        prompt_s=first,
        decode_s=max(0.0, reply.total_s - first),
    )
