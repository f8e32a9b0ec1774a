"""A GGUF model as HTTP sees it: jobs become requests to the engine's own server, its events become ours.

Texts and plain chats are tokenized as the runner does it and sent as token ids: what is scored is what is served.
Conversations that need more than text (images, thoughts, function calls in the template's own form) go through the
engine's chat endpoint, which has the parsers for them (`conversation.py`).
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import TooLong, Unsupported, UsageError
from sizewise.core.requests import Message, Score, ScoreRequest
from sizewise.load.llama.server import LlamaServer
from sizewise.serve import constraints
from sizewise.serve.calling import call_or_answer
from sizewise.serve.capabilities import capabilities_of
from sizewise.serve.completion import Completion, scored
from sizewise.serve.conversation import Conversation
from sizewise.serve.engine import Engine
from sizewise.serve.fitting import cut_tokens, cut_turns
from sizewise.serve.job import Event, Job, TokenLogprob, Turn
from sizewise.serve.json_grammar import schema_grammar
from sizewise.serve.session import Capability
from sizewise.serve.tools import in_words
from sizewise.serve.upstream import Broken, Refused


class NativeSession:
    """One loaded GGUF model."""

    def __init__(self, server: LlamaServer) -> None:
        self.model, self.context, self.parallel = server.model, server.context, server.parallel
        self.capabilities: frozenset[Capability] = capabilities_of(server.model) | {"embedding", "score"}
        self._server = server
        self._engine = Engine(server)
        self._native_tools = False

    async def prepare(self) -> None:
        """Find out what the engine makes of the chat template. To be called once, before all else."""
        props = await self._engine.upstream.ask("/props")
        caps = props.get("chat_template_caps", {})
        self._native_tools = bool(caps.get("supports_tools") and caps.get("supports_tool_calls"))

    async def stream(self, job: Job) -> AsyncGenerator[Event, None]:
        """Answer; see the protocol."""
        self._check(job)
        try:
            async with aclosing(self._answer(job)) as events:
                async for event in events:
                    yield event
        except (Broken, Refused) as error:
            raise await self._engine.failure(error) from error

    async def render(self, job: Job) -> str:
        """The text that the model would be given, guarded; see the protocol."""
        if self._through_engine(job):
            return await Conversation(self._engine, job, self.context).render(self._whole(job.turns, job))
        return await self._render(in_words(self._whole(job.turns, job)), job)

    async def tokenize(self, text: str, *, special: bool = False, bos: bool = False) -> list[int]:
        """Token ids; see the protocol."""
        return await self._engine.encode(text, special=special, bos=bos)

    async def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids; see the protocol."""
        return (await self._engine.decode(tokens)).decode("utf-8", "replace")

    async def prompt_logprobs(self, tokens: Sequence[int], top: int) -> list[TokenLogprob]:
        """Of each token of a text; see the protocol."""
        return await scored(self._engine, self._known(tokens), top)

    async def score(self, requests: Sequence[ScoreRequest]) -> list[list[Score]]:
        """Log-probabilities of continuations; see the protocol."""
        runner = await self._engine.runner()
        return await self._engine.in_thread(partial(runner.score, requests))

    async def embed(self, texts: Sequence[str], *, truncate: bool = True) -> tuple[NDArray[np.float32], list[int]]:
        """Vectors and numbers of tokens; see the protocol."""
        runner, limit = await self._engine.runner(), self._server.trained_context - 2  # begin and end have tokens, too
        counts, fitted = await self._engine.count(texts), list(texts)
        for place, count in enumerate(counts):
            if count > limit:
                if not truncate:
                    raise TooLong(self.model.name, count + 2, limit + 2)
                tokens = await self._engine.encode(texts[place], special=False, bos=False)
                fitted[place] = (await self._engine.decode(tokens[:limit])).decode("utf-8", "ignore")
                counts[place] = limit
        if not fitted:
            return np.zeros((0, self.model.embedding_length or 0), np.float32), []
        return await self._engine.in_thread(partial(runner.embed, fitted)), counts

    async def rank(self, query: str, documents: Sequence[str]) -> tuple[list[float], list[int]]:
        """Not possible: rerankers are encoders, which `generic.py` serves."""
        raise Unsupported(f"{self.model.name} is no reranker")

    def pids(self) -> list[int]:
        """The processes; see the protocol."""
        return self._engine.pids()

    @property
    def alive(self) -> bool:
        """Whether the engine runs."""
        return self._server.alive

    async def close(self) -> None:
        """Unload."""
        await self._engine.close()

    def _check(self, job: Job) -> None:
        """Refuse what this model cannot do.

        Raises:
            Unsupported: it cannot think, see, call or fill gaps.
        """
        can = self.capabilities
        needs: dict[Capability, bool] = {
            "tools": bool(job.tools) and job.tool_choice != "none",
            "vision": any(turn.images for turn in job.turns),
            "thinking": bool(job.think),
            "insert": job.suffix is not None,
        }
        words = {"tools": "tools", "vision": "images", "thinking": "thinking", "insert": "insert"}
        for capability, needed in needs.items():
            if needed and capability not in can:
                raise Unsupported(f"{self.model.name} does not support {words[capability]}")
        if job.grammar is not None:
            constraints.check_grammar(job.grammar)
        if job.grammar is not None and job.schema is not None:
            raise UsageError("an answer follows a schema or a grammar, not both")
        if job.schema is not None and job.think:
            raise UsageError("an answer that follows a schema comes without thinking: turn it off")

    def _through_engine(self, job: Job) -> bool:
        """Whether a conversation needs the engine's own chat endpoint."""
        if not job.turns or job.before or job.template:
            return False
        calls = bool(job.tools) or any(turn.tool_calls or turn.role == "tool" for turn in job.turns)
        pictures = any(turn.images for turn in job.turns)
        return pictures or "thinking" in self.capabilities or (calls and self._native_tools)

    async def _answer(self, job: Job) -> AsyncGenerator[Event, None]:
        job = replace(job, turns=self._whole(job.turns, job)) if job.turns else job
        for text in () if job.truncate else (job.prompt, job.suffix, *(turn.content for turn in job.turns)):
            if text:
                await self._engine.check_length(text)
        if self._through_engine(job):
            events = Conversation(self._engine, job, self.context).answer()
        elif job.turns and (job.tools or any(turn.tool_calls or turn.role == "tool" for turn in job.turns)):
            events = call_or_answer(self._engine, job, self._fit, self._complete)
        else:
            events = self._complete(job)
        async with aclosing(events):
            async for event in events:
                yield event

    async def _complete(self, job: Job) -> AsyncGenerator[Event, None]:
        limits = self._limits(job)
        completion, _ = await self._fit(job)
        if completion.limit < 1:
            yield completion.nothing()
            return
        stream = self._engine.complete(completion.body(limits))
        async with aclosing(stream):
            async for events in stream:
                piece = await completion.piece(events)
                if piece:
                    yield piece
                if events[-1]["stop"]:
                    completion.check_json()
                    yield completion.done(events[-1])

    def _limits(self, job: Job) -> dict[str, Any]:
        if job.schema is not None:
            return {"grammar": schema_grammar(job.schema)}
        return {} if job.grammar is None else {"grammar": job.grammar}

    async def _fit(self, job: Job) -> tuple[Completion, Job]:
        """The completion of a job, its prompt cut where it does not fit and the job allows that.

        Raises:
            TooLong: it does not fit.
        """
        tokens, whole = await self._tokens(job), 0
        if len(tokens) >= self.context:
            if not job.truncate:
                raise TooLong(self.model.name, len(tokens), self.context)
            whole = len(tokens)
            if job.turns and not job.before:

                async def prompt(turns: tuple[Turn, ...]) -> list[int]:
                    return await self._tokens(replace(job, turns=turns))

                turns, tokens = await cut_turns(self._engine, job.turns, prompt, job.draw, self.context)
                job = replace(job, turns=turns)
            else:
                start = len(await self._engine.encode("", special=False, bos=True))
                tokens = cut_tokens(tokens, job.draw, self.context, start)
        cut = whole - len(tokens) if whole else 0
        return Completion(self._engine, job, tokens, self.context - len(tokens), cut), job

    async def _tokens(self, job: Job) -> list[int]:
        """Token ids of what the model continues."""
        if job.tokens is not None:
            return self._known(job.tokens)
        if job.prompt is not None and job.suffix is not None:
            return await self._around_gap(job.prompt, job.suffix)
        if job.prompt is not None:
            tokens = await self._engine.encode(job.prompt, special=job.special, bos=True)
        else:
            tokens = self._known(job.before)
            tokens += await self._engine.encode(await self._render(job.turns, job), special=True, bos=not tokens)
        # an empty text is what the model expects before any: its beginning token, or the one that ends a text
        return tokens or [self._server.start]

    async def _around_gap(self, before: str, after: str) -> list[int]:
        ahead, behind, middle = self._server.gap
        start = await self._engine.encode("", special=False, bos=True)
        one, two = [await self._engine.encode(text, special=False, bos=False) for text in (before, after)]
        return [*start, ahead, *one, behind, *two, middle]

    async def _render(self, turns: Sequence[Turn], job: Job) -> str:
        messages = [Message(turn.role, turn.content) for turn in turns]
        return await self._engine.render(messages, job.template)

    def _whole(self, turns: Sequence[Turn], job: Job) -> tuple[Turn, ...]:
        """The turns with what is stored with the model before them, unless the conversation has begun already."""
        if job.before:
            return tuple(turns)
        stored = tuple(Turn(one.role, one.content) for one in self.model.messages)
        whole = (*stored, *turns)
        if self.model.system and all(turn.role != "system" for turn in whole):
            return (Turn("system", self.model.system), *whole)
        return whole

    def _known(self, tokens: Sequence[int]) -> list[int]:
        """Tokens that came from outside, each of them one of this model's."""
        wrong = next((token for token in tokens if not 0 <= token < self._server.vocabulary), None)
        if wrong is not None:
            raise UsageError(f"{wrong} is no token of {self.model.name}: it has {self._server.vocabulary}, from 0")
        return list(tokens)
