"""What is asked of the engine's process: tokens of texts, prompts of conversations, completions.

`native.py` decides what to ask; here is how. Calls that block (to the child and to the template's sandbox) run in
threads of this model's own, so that a slow one never holds up the event loop or another model.
"""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, TypeVar

from sizewise.core.errors import EngineFailed, SizewiseError, TooLong, UsageError
from sizewise.core.requests import Message
from sizewise.load.llama.server import LlamaServer
from sizewise.load.runner import Options
from sizewise.load.runners.llamacpp import LlamaCpp
from sizewise.load.templates import ChatForm
from sizewise.serve import memory
from sizewise.serve.upstream import PACE_S, Broken, Refused, Upstream

T = TypeVar("T")
MOST_TEXT = 4 << 20  # characters that are tokenized in one go: some seconds
_LONG = 1 << 16  # characters; less than this is tokenized faster than it is looked at


class Engine:
    """One model's process, from the event loop."""

    def __init__(self, server: LlamaServer) -> None:
        self.server, self.model = server, server.model
        self.upstream = Upstream(server.host, server.port, server.key, PACE_S)
        self.chat = ChatForm.of(
            server.model,
            server.info.template,
            architecture=server.info.architecture,
            bos=server.bos,
            eos=server.eos,
            control=server.control,
        )
        self.closed = False
        self._threads = ThreadPoolExecutor(4, "engine")
        self._runner: LlamaCpp | None = None
        self._opening = asyncio.Lock()

    async def encode(self, text: str, *, special: bool, bos: bool) -> list[int]:
        """Token ids of a text; see `LlamaServer.encode`.

        Raises:
            UsageError: the text would keep the tokenizer from others for seconds, and no context could hold it.
        """
        most = max(MOST_TEXT, 8 * self.server.trained_context)
        if len(text) > most:
            raise UsageError(f"{self.model.name}: a text of {len(text)} characters: at most {most} are read at once")
        return (await self.in_thread(partial(self.server.encode, [text], special=special, bos=bos)))[0]

    async def check_length(self, text: str) -> None:
        """Refuse a text of which even the fewest tokens that it can have are too many, before it is tokenized.

        Raises:
            TooLong: the model's own context cannot hold it.
        """
        most = self.server.trained_context
        if len(text) > _LONG and len(text) > most // 4:
            tokens = await self.in_thread(partial(self.server.at_least, text))
            if tokens >= most:
                raise TooLong(self.model.name, tokens, most, at_least=True)

    async def count(self, texts: Sequence[str]) -> list[int]:
        """Numbers of tokens of texts."""
        rows = await self.in_thread(partial(self.server.encode, list(texts), special=False, bos=False))
        return [len(row) for row in rows]

    async def decode(self, tokens: Sequence[int]) -> bytes:
        """The bytes of token ids; an end may be half a character."""
        return await self.in_thread(partial(self.server.decode, list(tokens)))

    async def render(self, messages: Sequence[Message], template: str | None = None) -> str:
        """A conversation as the text that the model continues, guarded; `template` instead of the model's own."""
        return await self.in_thread(partial(self.chat.with_template(template).render, messages))

    async def complete(self, body: dict[str, Any]) -> AsyncGenerator[list[dict[str, Any]], None]:
        """The events of a completion, those together that came together; the last has "stop" set."""
        stream = self.upstream.stream("/completion", {**body, "stream": True})
        try:
            async for batch in stream:
                events = [event for data in batch if "prompt_progress" not in (event := json.loads(data))]
                if not events:
                    continue
                yield events
                if events[-1].get("stop"):
                    return
        finally:
            await stream.aclose()
        raise Broken("the engine's answer ended in the middle")

    async def runner(self) -> LlamaCpp:
        """A second process for scores and embeddings, so that they hold up neither tokens nor answers."""
        async with self._opening:
            if self.closed:
                raise EngineFailed(f"{self.model.name}: the model was closed")
            if self._runner is None:
                await asyncio.to_thread(memory.check_scorer, self.model)
                options = Options(threads=self.server.threads, context=self.server.trained_context)
                self._runner = await self.in_thread(partial(LlamaCpp, self.model, options))
            return self._runner

    async def in_thread(self, call: Callable[[], T]) -> T:
        """Run what blocks."""
        if self.closed:
            raise EngineFailed(f"{self.model.name}: the model was closed")
        return await asyncio.get_running_loop().run_in_executor(self._threads, call)

    async def failure(self, error: Broken | Refused) -> SizewiseError:
        """What went wrong, in terms of the one who asks."""
        if isinstance(error, Broken):
            if self.closed:
                return EngineFailed(f"{self.model.name}: the model was closed")
            return await self.in_thread(self.server.death)
        limits = ("grammar", "sampler", "schema", "template", "tool")
        if error.status < 500 or any(word in error.message.lower() for word in limits):
            return UsageError(f"{self.model.name}: the engine refuses: {error.message}")
        return EngineFailed(f"{self.model.name}: the engine stopped: {error.message}")

    def pids(self) -> list[int]:
        """The processes."""
        runner = self._runner
        return [*([self.server.pid] if self.server.alive else ()), *(runner.pids() if runner else ())]

    async def close(self) -> None:
        """End the processes. Safe to call twice."""
        self.closed = True
        runner, self._runner = self._runner, None
        closing = [asyncio.to_thread(self.server.close)]
        if runner:
            closing.append(asyncio.to_thread(runner.close))
        await asyncio.gather(*closing)
        self._threads.shutdown(wait=False)
