"""Runners as sessions."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from sessions import as_gguf, ask, greedy, run
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import EngineFailed, TooLong, Unsupported
from sizewise.core.requests import GenerateRequest, Sampling, ScoreRequest
from sizewise.load.runner import Options
from sizewise.load.runners.llamacpp import LlamaCpp
from sizewise.serve.generic import GenericSession
from sizewise.serve.job import Draw, Job, Piece, Turn


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_llama(tmp_path_factory.mktemp("generic") / "tiny.gguf")


@pytest.fixture(scope="module")
def session(tiny: Path) -> Iterator[GenericSession]:
    made = GenericSession(LlamaCpp(as_gguf(tiny), Options(threads=2)), context=256, parallel=2)
    yield made
    run(made.close())


def test_text_and_counts_are_the_runners(session: GenericSession, tiny: Path) -> None:
    with LlamaCpp(as_gguf(tiny), Options(threads=2)) as runner:
        reply = runner.generate([GenerateRequest(prompt="the film", sampling=Sampling(max_tokens=9))])[0]
    answer = ask(session, Job(prompt="the film", draw=greedy(9)))
    assert answer.text == reply.text
    assert (answer.done.prompt_tokens, answer.done.completion_tokens) == (reply.prompt_tokens, 9)
    assert answer.done.finish == "length"


def test_leaving_stops_the_runner_and_the_next_request_is_answered(session: GenericSession) -> None:
    async def leave() -> None:
        stream = session.stream(Job(prompt="a", draw=greedy(200)))
        assert isinstance(await anext(stream), Piece)
        await stream.aclose()

    run(leave())
    assert ask(session, Job(prompt="a", draw=greedy(3))).done.completion_tokens == 3


def test_what_a_runner_does_not_know_is_refused(session: GenericSession) -> None:
    for job in (
        Job(tokens=(1, 2)),
        Job(prompt="a", suffix="b"),
        Job(prompt="a", schema="json"),
        Job(prompt="a", top_logprobs=0),
        Job(turns=(Turn("user", "a"),), tools=({"type": "function"},)),
        Job(prompt="a", draw=Draw(presence_penalty=1.0)),
        Job(prompt="a", draw=Draw(logit_bias=((1, 1.0),))),
    ):
        with pytest.raises(Unsupported, match="not possible"):
            ask(session, job)


def test_too_long_says_both_numbers(session: GenericSession) -> None:
    with pytest.raises(TooLong, match="256"):
        ask(session, Job(prompt="word " * 400, draw=greedy(1)))


def test_scores_and_embeddings(session: GenericSession) -> None:
    scores = run(session.score([ScoreRequest("the", (" film", " sun"))]))
    assert [one.tokens > 0 and one.logprob < 0 for one in scores[0]] == [True, True]
    vectors, counts = run(session.embed(["a", "word " * 400]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert counts[1] <= 254
    with pytest.raises(TooLong):
        run(session.embed(["word " * 400], truncate=False))


def test_closed_is_closed(tiny: Path) -> None:
    session = GenericSession(LlamaCpp(as_gguf(tiny), Options(threads=2)), context=256, parallel=2)
    before = session.alive
    run(session.close())
    run(session.close())
    assert (before, session.alive) == (True, False)
    with pytest.raises(EngineFailed):
        ask(session, Job(prompt="a", draw=greedy(1)))
