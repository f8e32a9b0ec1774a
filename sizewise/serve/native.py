"""A GGUF model as HTTP sees it: jobs become requests to the engine's own server, its events become ours.

Texts and plain chats are tokenized as the runner does it and sent as token ids: what is scored is what is served.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from functools import partial
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed, TooLong, UsageError
from sizewise.core.requests import Message, Score, ScoreRequest
from sizewise.load.llama.server import LlamaServer
from sizewise.load.runner import Options
from sizewise.load.runners.llamacpp import LlamaCpp
from sizewise.load.templates import prompt_form, render_chat, render_without_template, unguarded
from sizewise.serve.job import Done, Draw, Event, Finish, Job, Piece, TokenLogprob
from sizewise.serve.session import Capability
from sizewise.serve.upstream import Broken, Refused, Upstream

T = TypeVar("T")
_FIELDS = [
    *("content", "stop", "stop_type", "stopping_word", "tokens_predicted", "tokens_evaluated", "timings", "tokens"),
    "completion_probabilities",
]  # of the last event; its other fields repeat the settings and the whole prompt


class NativeSession:
    """One loaded GGUF model."""

    def __init__(self, server: LlamaServer) -> None:
        self.model, self.context, self.parallel = server.model, server.context, server.parallel
        self.capabilities: frozenset[Capability] = frozenset(("completion", "embedding", "score"))
        self._server = server
        self._upstream = Upstream(server.host, server.port, server.key)
        self._threads = ThreadPoolExecutor(4, "native")  # calls to the children, which block
        self._runner: LlamaCpp | None = None
        self._opening = asyncio.Lock()
        self._template = server.model.template or server.info.template

    async def stream(self, job: Job) -> AsyncGenerator[Event, None]:
        """Answer; see the protocol."""
        try:
            tokens, cut = await self._prompt(job)
            async with aclosing(self._complete(job, tokens, cut)) as events:
                async for event in events:
                    yield event
        except Broken as error:
            raise await self._in_thread(self._server.death) from error
        except Refused as error:
            if error.status < 500:
                raise UsageError(f"{self.model.name}: the engine refuses: {error.message}") from error
            raise EngineFailed(f"{self.model.name}: the engine stopped: {error.message}") from error

    async def render(self, job: Job) -> str:
        """The text that the model would be given; see the protocol."""
        return unguarded(await self._render(job))

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids; see the protocol."""
        return (await self._in_thread(partial(self._server.encode, [text], special=special, bos=bos)))[0]

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; see the protocol."""
        return (await self._in_thread(partial(self._server.decode, tokens))).decode("utf-8", "replace")

    async def prompt_logprobs(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """Of each token of a text; see the protocol."""
        raise NotImplementedError

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Log-probabilities of continuations; see the protocol."""
        runner = await self._scorer()
        return await self._in_thread(partial(runner.score, requests))

    async def embed(self, texts: Sequence[str], *, truncate: bool = True) -> tuple[NDArray[np.float32], list[int]]:
        """Vectors and numbers of tokens; see the protocol."""
        runner = await self._scorer()
        counts = await self._in_thread(partial(runner.count_tokens, texts))
        return await self._in_thread(partial(runner.embed, texts)), counts

    def pids(self) -> list[int]:
        """The processes; see the protocol."""
        runner = self._runner
        return [self._server.pid, *(runner.pids() if runner else ())]

    @property
    def alive(self) -> bool:
        """Whether the engine runs."""
        return self._server.alive

    async def close(self) -> None:
        """Unload."""
        runner, self._runner = self._runner, None
        await asyncio.gather(
            asyncio.to_thread(self._server.close), *([asyncio.to_thread(runner.close)] if runner else [])
        )
        self._threads.shutdown(wait=False)

    async def _prompt(self, job: Job) -> tuple[list[int], int]:
        """Token ids of what the model continues, and how many were cut away."""
        if job.tokens is not None:
            tokens = self._known(job.tokens)
        elif job.prompt is not None:
            tokens = await self.tokenize(job.prompt, special=job.special, bos=True)
        else:
            tokens = self._known(job.before)
            tokens += await self.tokenize(await self._render(job), special=True, bos=not tokens)
        if len(tokens) >= self.context:
            raise TooLong(self.model.name, len(tokens), self.context)
        return tokens, 0

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that came from outside, each of them one of this model's."""
        wrong = next((token for token in tokens if not 0 <= token < self._server.vocabulary), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is no token of {self.model.name}: it has {self._server.vocabulary}, from 0")
        return list(tokens)

    async def _render(self, job: Job) -> str:
        turns: Sequence[Message] = [Message(turn.role, turn.content) for turn in job.turns]
        if not job.before:  # what is stored with the model stands at the beginning
            turns = self.model.conversation(turns)
        server = self._server
        template = job.template or self._template
        if template:
            return await self._in_thread(
                partial(render_chat, template, turns, bos=server.bos, eos=server.eos, control=server.control)
            )
        form = prompt_form(self.model.name) or prompt_form(server.info.architecture)
        return render_without_template(turns, form, control=server.control)

    async def _complete(self, job: Job, tokens: list[int], cut: int) -> AsyncGenerator[Event, None]:
        body = _body(job, tokens, self.context)
        answer: list[int] = []
        async with aclosing(self._upstream.stream("/completion", body)) as batches:
            async for batch in batches:
                events = [json.loads(data) for data in batch]
                last = events[-1]
                for event in events:
                    answer += event["tokens"]
                text = "".join(event["content"] for event in events)
                logprobs = tuple(one for event in events for one in _logprobs(event, job.top_logprobs))
                if text or logprobs:
                    yield Piece(text=text, logprobs=logprobs)
                if last["stop"]:
                    yield _done(last, tokens, answer, cut)
                    return
        raise Broken("the engine's answer ended in the middle")

    async def _scorer(self) -> LlamaCpp:
        async with self._opening:
            if self._runner is None:
                options = Options(context=self._server.trained_context)
                self._runner = await self._in_thread(partial(LlamaCpp, self.model, options))
            return self._runner

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)


def _body(job: Job, tokens: list[int], context: int) -> dict[str, Any]:
    room = context - len(tokens)
    limit = room if job.draw.max_tokens is None else min(room, job.draw.max_tokens)
    body = {
        "prompt": tokens,
        "n_predict": limit,
        "stream": True,
        "cache_prompt": True,
        "return_tokens": True,
        "response_fields": _FIELDS,
        **drawing(job.draw),
    }
    if job.top_logprobs is not None:
        body["n_probs"] = max(1, job.top_logprobs)
    if job.schema is not None:
        body["json_schema"] = {} if job.schema == "json" else job.schema
    if job.grammar is not None:
        body["grammar"] = job.grammar
    return body


def drawing(draw: Draw) -> dict[str, Any]:
    """How tokens are drawn, in the engine's words."""
    body: dict[str, Any] = {
        "temperature": draw.temperature,
        "top_p": draw.top_p,
        "top_k": draw.top_k,
        "min_p": draw.min_p,
        "typical_p": draw.typical_p,
        "repeat_last_n": draw.repeat_last_n,
        "repeat_penalty": draw.repeat_penalty,
        "presence_penalty": draw.presence_penalty,
        "frequency_penalty": draw.frequency_penalty,
        "seed": -1 if draw.seed is None else draw.seed % (2**32 - 1),
        "stop": list(draw.stop),
    }
    if draw.logit_bias:
        body["logit_bias"] = [[token, bias] for token, bias in draw.logit_bias]
    return body


def _logprobs(event: dict[str, Any], top: int | None) -> list[TokenLogprob]:
    if top is None:
        return []
    return [
        _one(
            entry,
            tuple(_one(other) for other in entry.get("top_logprobs", ())[:top]),
        )
        for entry in event.get("completion_probabilities", ())
    ]


def _one(entry: dict[str, Any], top: tuple[TokenLogprob, ...] = ()) -> TokenLogprob:
    return TokenLogprob(entry["token"], tuple(entry["bytes"]), float(entry["logprob"]), int(entry["id"]), top)


def _done(event: dict[str, Any], prompt: list[int], answer: list[int], cut: int) -> Done:
    timings = event.get("timings", {})
    finish: Finish = "length" if event.get("stop_type") == "limit" else "stop"
    return Done(
        finish=finish,
        prompt_tokens=len(prompt),
        completion_tokens=event["tokens_predicted"],
        cached_tokens=timings.get("cache_n", 0),
        cut_tokens=cut,
        prompt_s=timings.get("prompt_ms", 0.0) / 1000,
        decode_s=timings.get("predicted_ms", 0.0) / 1000,
        tokens=(*prompt, *answer),
        stop_text=event.get("stopping_word", ""),
    )
