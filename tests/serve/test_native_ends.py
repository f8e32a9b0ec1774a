"""A GGUF model as a session: clients that go, engines that die, files that are none, and a real model."""

import asyncio
import os
import signal
import time
from collections.abc import Iterator
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from sessions import as_gguf, ask, gather, greedy, opened, run
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import BadModel, EngineFailed, TooLong
from sizewise.serve.job import Job, Piece, Turn
from sizewise.serve.native import NativeSession
from sizewise.serve.opening import open_session
from sizewise.serve.session import Session

CONTEXT = 256
LETTERS = "root ::= [a-z]+"  # a random model writes bytes that are no text; then the engine does not tell all tokens


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("native") / "tiny.gguf")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that can be kept busy."""
    return write_tiny_llama(tmp_path_factory.mktemp("native") / "long.gguf", context=1 << 16, layers=4)


@pytest.fixture(scope="module")
def session(tiny: Path) -> Iterator[Session]:
    made = opened(as_gguf(tiny), CONTEXT)
    yield made
    run(made.close())


@pytest.fixture(scope="module")
def real(smollm2: Path) -> Iterator[Session]:
    made = opened(as_gguf(smollm2), 1024)
    yield made
    run(made.close())


def prompt(text: str, tokens: int | None = 12, **changes: Any) -> Job:
    return Job(prompt=text, draw=greedy(tokens), **changes)


@pytest.mark.parametrize("where", ["stream", "prefill"])
def test_a_client_that_goes_frees_the_slot(long: Path, where: str) -> None:
    session = opened(as_gguf(long), 1 << 15, parallel=1)
    assert isinstance(session, NativeSession)

    async def leave() -> float:
        upstream = session._engine.upstream
        if where == "stream":
            stream = session.stream(Job(prompt="a", draw=greedy(None)))
            async with aclosing(stream):
                assert isinstance(await anext(stream), Piece)
        else:
            job = Job(tokens=(1, *[260 + at % 20 for at in range(12_000)]), draw=greedy(None))
            task = asyncio.create_task(gather(session, job))
            while not (await upstream.ask("/slots"))[0]["is_processing"]:
                await asyncio.sleep(0.02)
            task.cancel()
        began = time.monotonic()
        while (await upstream.ask("/slots"))[0]["is_processing"]:
            await asyncio.sleep(0.02)
        return time.monotonic() - began

    try:
        assert run(leave()) < 5  # on an idle machine within a second
        assert ask(session, prompt("the film", 3)).done.completion_tokens == 3
    finally:
        run(session.close())


def test_a_killed_engine_says_so_at_once(long: Path) -> None:
    session = opened(as_gguf(long), 1 << 15)

    async def killed() -> float:
        stream = session.stream(Job(prompt="a", draw=greedy(None)))
        assert isinstance(await anext(stream), Piece)
        began = time.monotonic()
        os.kill(session.pids()[0], signal.SIGKILL)
        with pytest.raises(EngineFailed, match="SIGKILL"):
            async for _ in stream:
                pass
        return time.monotonic() - began

    try:
        assert run(killed()) < 10
        assert not session.alive
        with pytest.raises(EngineFailed):
            ask(session, prompt("a", 1))
    finally:
        run(session.close())


def test_closing_ends_what_is_under_way(long: Path) -> None:
    session = opened(as_gguf(long), 1 << 15)

    async def closed() -> None:
        stream = session.stream(Job(prompt="a", draw=greedy(None)))
        assert isinstance(await anext(stream), Piece)
        await session.close()
        with pytest.raises(EngineFailed, match="closed"):
            async for _ in stream:
                pass
        await session.close()

    run(closed())
    assert not session.alive


def test_many_at_once_are_each_as_if_alone(session: Session) -> None:
    words = [f"{letter} word" for letter in "abcdefgh"]
    alone = [ask(session, prompt(word, 20)).text for word in words]

    async def together() -> list[str]:
        return [one.text for one in await asyncio.gather(*(gather(session, prompt(word, 20)) for word in words))]

    assert run(together()) == alone


def test_loading_fails_as_it_should(tmp_path: Path, long: Path) -> None:
    bad = tmp_path / "bad.gguf"
    bad.write_bytes(b"<html>" * 100)
    with pytest.raises(BadModel):
        opened(as_gguf(bad))
    with pytest.raises(EngineFailed, match="longer than"):
        run(open_session(as_gguf(long), context=256, parallel=1, load_timeout=0.0))


def test_a_hostile_template_costs_little(tmp_path: Path) -> None:
    endless = "{% for a in range(100000) %}{% for b in range(100000) %}{{ tools }}{% endfor %}{% endfor %}"
    session = opened(as_gguf(write_tiny_llama(tmp_path / "hostile.gguf", template=endless)))
    try:
        with pytest.raises(BadModel, match="more than"):
            ask(session, Job(turns=(Turn("user", "a"),), draw=greedy(1)))
        assert ask(session, prompt("a", 2)).done.completion_tokens == 2
    finally:
        run(session.close())


@pytest.mark.model
def test_emoji_of_a_real_model(real: Session) -> None:
    answer = ask(real, prompt("The emoji list: 😀🎉🚀 😀🎉🚀 😀🎉🚀 😀🎉", 12, top_logprobs=0))
    assert "🚀" in answer.text
    assert "\ufffd" not in answer.text
    assert len(answer.logprobs) == 12
    scored = run(real.prompt_logprobs(answer.done.tokens, 0))[-12:]
    assert [one.logprob for one in answer.logprobs] == pytest.approx([one.logprob for one in scored], abs=2e-2)


@pytest.mark.model
def test_a_megabyte_of_one_letter(real: Session) -> None:
    began = time.monotonic()
    with pytest.raises(TooLong):
        ask(real, prompt("a" * (1 << 20), 1))
    assert time.monotonic() - began < 30
