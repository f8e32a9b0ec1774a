"""Sessions for the tests: opened, asked and closed with one call each."""

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from sizewise.core.model import Model
from sizewise.serve.job import Done, Draw, Job, TokenLogprob, ToolCall
from sizewise.serve.opening import open_session
from sizewise.serve.session import Session

T = TypeVar("T")


@dataclass
class Answer:
    """All that came in answer to a job."""

    pieces: list[str] = field(default_factory=list)
    thinking: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    done: Done = field(default_factory=lambda: Done("stop", 0, 0))

    @property
    def text(self) -> str:
        """The pieces as one."""
        return "".join(self.pieces)


def run(coroutine: Coroutine[Any, Any, T], seconds: float = 120) -> T:
    """Run to the end, in a loop of its own, for `seconds` at most."""

    async def limited() -> T:
        return await asyncio.wait_for(coroutine, seconds)

    return asyncio.run(limited())


def as_gguf(path: Path, **changes: Any) -> Model:
    """A GGUF file as a model."""
    return replace(Model(path.stem, "gguf", "sha256:0", {"model.gguf": path}, path.stat().st_size), **changes)


def opened(model: Model, context: int = 256, parallel: int = 2) -> Session:
    """A session; close it with `run(session.close())`."""
    return run(open_session(model, context=context, parallel=parallel, threads=2))


async def gather(session: Session, job: Job) -> Answer:
    """The whole answer; its last event must be the end."""
    answer, ended = Answer(), False
    async for event in session.stream(job):
        assert not ended
        if isinstance(event, Done):
            answer.done, ended = event, True
        else:
            answer.pieces += [event.text] if event.text else []
            answer.thinking += event.thinking
            answer.calls += event.tool_calls
            answer.logprobs += event.logprobs
    assert ended
    return answer


def ask(session: Session, job: Job) -> Answer:
    """`gather`, in a loop of its own."""
    return run(gather(session, job))


def greedy(tokens: int | None, stop: Sequence[str] = (), **changes: Any) -> Draw:
    """The likeliest tokens."""
    return Draw(max_tokens=tokens, temperature=0.0, stop=tuple(stop), **changes)
