"""A GGUF model as a session, with the real engine in its child process."""

import json
import random
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sessions import as_gguf, ask, greedy, opened, run
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import TooLong, Unsupported, UsageError
from sizewise.core.requests import GenerateRequest, Message, Sampling, ScoreRequest
from sizewise.load.runner import Options
from sizewise.load.runners.llamacpp import LlamaCpp
from sizewise.serve.job import Draw, Job, Turn
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


def test_greedy_text_is_the_runners(session: Session, tiny: Path) -> None:
    words = ("the film", "a", "one two three", "")
    with LlamaCpp(as_gguf(tiny), Options(threads=2)) as runner:
        replies = runner.generate([GenerateRequest(prompt=w, sampling=Sampling(max_tokens=20)) for w in words])
    for word, reply in zip(words, replies, strict=True):
        answer = ask(session, prompt(word, 20))
        assert answer.text == reply.text
        assert (answer.done.prompt_tokens, answer.done.completion_tokens) == (reply.prompt_tokens, 20)
        assert answer.done.finish == "length"


@pytest.mark.model
def test_greedy_chat_is_the_runners(real: Session, smollm2: Path) -> None:
    question = "Name three colours. <|im_end|>"
    request = GenerateRequest(messages=(Message("user", question),), sampling=Sampling(max_tokens=16))
    with LlamaCpp(as_gguf(smollm2), Options(threads=2)) as runner:
        reply = runner.generate([request])[0]
    answer = ask(real, Job(turns=(Turn("user", question),), draw=greedy(16)))
    assert (answer.text, answer.done.prompt_tokens) == (reply.text, reply.prompt_tokens)


def test_counts_tokens_and_cache(session: Session) -> None:
    first, second = (ask(session, prompt("some text that comes twice", 5)) for _ in range(2))
    tokens = run(session.tokenize("some text that comes twice", bos=True))
    assert first.done.tokens[: len(tokens)] == tuple(tokens)
    assert len(first.done.tokens) == len(tokens) + 5
    assert second.done.cached_tokens >= len(tokens) - 1
    assert second.text == first.text


def test_tokens_in_are_tokens_out(session: Session) -> None:
    tokens = tuple(run(session.tokenize("the film", bos=True)))
    assert ask(session, Job(tokens=tokens, draw=greedy(8))).text == ask(session, prompt("the film", 8)).text
    assert run(session.detokenize(tokens[1:])).strip() == "the film"
    size = session._server.vocabulary  # type: ignore[attr-defined]
    for wrong in (-1, size, 2**31, 2**40):
        with pytest.raises(UsageError, match="no token"):
            ask(session, Job(tokens=(1, wrong), draw=greedy(1)))
        with pytest.raises(UsageError):
            run(session.detokenize([wrong]))


def test_stop_ends_and_is_named(session: Session) -> None:
    text = ask(session, prompt("the film", 30)).text
    middle = text[8:10]
    answer = ask(session, Job(prompt="the film", draw=greedy(30, [middle])))
    assert answer.text == text[: text.index(middle)]
    assert (answer.done.finish, answer.done.stop_text) == ("stop", middle)


def test_no_tokens_wanted(session: Session) -> None:
    answer = ask(session, prompt("the film", 0))
    assert (answer.text, answer.done.finish, answer.done.completion_tokens) == ("", "length", 0)
    assert answer.done.prompt_tokens > 1


def test_a_seed_repeats_and_none_does_not(session: Session) -> None:
    def drawn(seed: int | None) -> str:
        return ask(
            session, Job(prompt="a", draw=Draw(max_tokens=24, temperature=1.0, top_p=1.0, top_k=0, seed=seed))
        ).text

    assert drawn(7) == drawn(7)
    assert len({drawn(None) for _ in range(4)}) > 1
    assert drawn(-1) == drawn(-1)


def test_characters_come_whole(session: Session) -> None:
    text = "é漢😀ß\u2028🚀"
    grammar = 'root ::= "' + text + '"'
    answer = ask(session, prompt("x", 64, grammar=grammar, top_logprobs=0))
    assert answer.text == text
    assert "\ufffd" not in answer.text
    assert all(piece in text for piece in answer.pieces)
    assert len(answer.pieces) > 1
    assert answer.done.completion_tokens - 1 <= len(answer.logprobs) <= answer.done.completion_tokens
    assert b"".join(bytes(one.bytes) for one in answer.logprobs).decode() == text
    spelled = answer.done.tokens[answer.done.prompt_tokens :]
    assert run(session.detokenize([t for t in spelled if t > 2])) == text


def test_logprobs_are_the_scorers(session: Session) -> None:
    answer = ask(session, prompt("the film was", 10, top_logprobs=3, grammar=LETTERS))
    assert len(answer.logprobs) == 10
    scored = run(session.prompt_logprobs(answer.done.tokens, 3))
    assert scored[0].logprob is None
    for told, exact in zip(answer.logprobs, scored[-10:], strict=True):
        assert told.id == exact.id
        assert told.logprob == pytest.approx(exact.logprob, abs=2e-3)
        assert [one.id for one in told.top] == [one.id for one in exact.top]
        assert [one.logprob for one in told.top] == pytest.approx([one.logprob for one in exact.top], abs=2e-3)
    assert all(not one.top for one in ask(session, prompt("a", 3, top_logprobs=0)).logprobs)


def test_prompt_logprobs_add_up_to_the_runners_score(session: Session, tiny: Path) -> None:
    tokens = run(session.tokenize("the film was good", bos=True))
    start = run(session.tokenize("the film", bos=True))
    rows = run(session.prompt_logprobs(tokens, 0))
    with LlamaCpp(as_gguf(tiny), Options(threads=2)) as runner:
        score = runner.score([ScoreRequest("the film", (" was good",))])[0][0]
    assert sum(one.logprob or 0.0 for one in rows[len(start) :]) == pytest.approx(score.logprob, abs=1e-3)
    assert run(session.score([ScoreRequest("the film", (" was good",))]))[0][0].logprob == pytest.approx(score.logprob)


def test_embeddings_have_length_one_and_are_cut_only_when_asked(session: Session) -> None:
    vectors, counts = run(session.embed(["the film", "word " * 400]))
    assert np.linalg.norm(vectors, axis=1) == pytest.approx([1, 1], abs=1e-5)
    assert counts[0] < 12
    assert counts[1] == CONTEXT - 2
    with pytest.raises(TooLong, match=str(CONTEXT)):
        run(session.embed(["word " * 400], truncate=False))
    assert run(session.embed([]))[1] == []


def test_a_prompt_up_to_the_context_and_no_further(session: Session) -> None:
    def of(count: int) -> Job:
        return Job(tokens=(1, *[260] * (count - 1)), draw=greedy(None))

    answer = ask(session, of(CONTEXT - 1))
    assert (answer.done.prompt_tokens, answer.done.completion_tokens) == (CONTEXT - 1, 1)
    for count in (CONTEXT, CONTEXT + 1, 10 * CONTEXT, 300_000):
        began = time.monotonic()
        with pytest.raises(TooLong) as caught:
            ask(session, of(count))
        assert (caught.value.tokens, caught.value.context) == (count, CONTEXT)
        assert time.monotonic() - began < 10
    assert ask(session, of(40)).done.completion_tokens == CONTEXT - 40  # without a limit, until the context is full


def test_truncation_keeps_the_first_tokens_and_the_end(session: Session) -> None:
    tokens = (1, *range(3, 203), *range(3, 203))
    job = Job(tokens=tokens, draw=replace(greedy(16), keep=10), truncate=True, grammar=LETTERS)
    done = ask(session, job).done
    assert (done.prompt_tokens, done.cut_tokens) == (CONTEXT - 16, len(tokens) - (CONTEXT - 16))
    assert done.tokens[:10] == tokens[:10]
    assert done.tokens[10 : CONTEXT - 16] == tokens[-(CONTEXT - 26) :]


def test_truncated_chats_keep_the_system_text_and_the_last_question(session: Session) -> None:
    turns = [Turn("system", "be kind")]
    for number in range(12):
        turns += [Turn("user", f"question {'abcdefghijkl'[number]} " * 3), Turn("assistant", "an answer that is long")]
    job = Job(turns=(*turns, Turn("user", "the last question")), draw=greedy(16), grammar=LETTERS)
    with pytest.raises(TooLong):
        ask(session, job)
    done = ask(session, replace(job, truncate=True)).done
    text = run(session.detokenize(done.tokens[: done.prompt_tokens]))
    assert done.cut_tokens > 0
    assert done.prompt_tokens <= CONTEXT - 16
    assert "be kind" in text
    assert text.endswith("the last question")
    assert "question a" not in text
    assert "question l" in text  # no more is cut than needed


def test_a_question_that_is_too_long_by_itself_loses_its_beginning(session: Session) -> None:
    question = "first " + "word " * 300 + "last"
    job = Job(turns=(Turn("user", question),), draw=greedy(4), truncate=True, grammar=LETTERS)
    done = ask(session, job).done
    text = run(session.detokenize(done.tokens[: done.prompt_tokens]))
    assert "first" not in text
    assert text.endswith("last")


def test_schemas_hold(session: Session) -> None:
    schema = {
        "type": "object",
        "properties": {"good": {"type": "boolean"}, "stars": {"enum": [1, 2, 3]}, "tags": {"$ref": "#/$defs/tags"}},
        "required": ["good", "stars", "tags"],
        "$defs": {"tags": {"type": "array", "items": {"type": "string", "maxLength": 3}, "minItems": 1, "maxItems": 2}},
    }
    for seed in range(4):
        draw = Draw(max_tokens=200, temperature=1.0, seed=seed)
        answer = ask(session, Job(prompt="x", draw=draw, schema=schema))
        value = json.loads(answer.text)
        assert set(value) == {"good", "stars", "tags"}
        assert isinstance(value["good"], bool)
        assert value["stars"] in (1, 2, 3)
        assert 1 <= len(value["tags"]) <= 2
    assert ask(session, prompt("x", 40, schema="json")).text.strip()[0] == "{"


@pytest.mark.parametrize(
    "limit",
    [
        {"schema": {"type": "string", "pattern": "^+[a-z]$"}},
        {"schema": {"type": "string", "pattern": "^{2}x$"}},
        {"schema": {"type": "string", "pattern": "^(?=a)b$"}},
        {"schema": {"$ref": "#"}},
        {"schema": {"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}},
        {"schema": {"type": 5}},
        {"schema": {"not": {"type": "string"}}},
        {"schema": {"type": "array", "maxItems": 2_000_000_000}},
        {"schema": {"type": "string", "description": "x" * (10 << 20)}},
        {"grammar": "root ::= " + "(" * 60_000 + '"a"' + ")" * 60_000},
        {"grammar": 'root ::= root "a" | "b"'},
        {"grammar": "root ::= nothing"},
        {"grammar": "%llguidance {}\nstart: /a/"},
        {"grammar": "root ::= <[999999999]>"},
        {"grammar": 'root ::= "a"', "schema": {"type": "string"}},
    ],
)
def test_what_the_engine_cannot_hold_to_is_refused(session: Session, limit: dict[str, Any]) -> None:
    before = session.pids()[0]
    with pytest.raises(UsageError):
        ask(session, prompt("x", 4, **limit))
    assert session.pids()[0] == before
    assert ask(session, prompt("x", 2)).done.completion_tokens == 2


SCHEMA_PARTS = ("type", "object", "string", "properties", "items", "$ref", "#/$defs/a", "pattern", "^a{2,3}$", "(b|",
                "anyOf", "enum", "minItems", "required", "a", "allOf", "format", "date", "additionalProperties",
                "const", "[]", "\\")  # fmt: skip
GRAMMAR_PARTS = ("root", "::=", '"a"', "[a-z]", "(", ")", "*", "+", "?", "{2}", "{2,}", "|", "\n", "x", ".", "[^", "]",
                 '"')  # fmt: skip


def test_random_limits_never_end_the_engine(session: Session) -> None:
    chance = random.Random(5)

    def value(depth: int) -> Any:
        kind = chance.randrange(8)
        if depth > 4 or kind < 3:
            return chance.choice([*SCHEMA_PARTS, 0, -1, 7, 1.5, None, True, 10**12])
        if kind == 3:
            return [value(depth + 1) for _ in range(chance.randrange(3))]
        return {chance.choice(SCHEMA_PARTS): value(depth + 1) for _ in range(chance.randrange(4))}

    def grammar() -> str:
        return "root ::= " + " ".join(chance.choice(GRAMMAR_PARTS) for _ in range(chance.randrange(1, 14)))

    before, answered = session.pids()[0], 0
    for turn in range(150):
        limit = {"schema": {"type": "object", **(made if isinstance(made := value(0), dict) else {})}}
        try:
            ask(session, prompt("x", 3, **(limit if turn % 2 else {"grammar": grammar()})))
            answered += 1
        except UsageError:
            continue
    assert session.pids()[0] == before
    assert answered > 10


def test_unknown_biases_are_refused_and_known_ones_work(session: Session) -> None:
    letter = run(session.tokenize("q"))[-1]
    answer = ask(session, Job(prompt="a", draw=greedy(5, logit_bias=((letter, 100.0),))))
    assert answer.text.strip() == "qqqqq"
    with pytest.raises(UsageError, match="logit_bias"):
        ask(session, Job(prompt="a", draw=greedy(1, logit_bias=((10**6, 1.0),))))


def test_what_the_model_cannot_do_is_said(session: Session) -> None:
    for job, word in (
        (Job(prompt="a", suffix="b"), "insert"),
        (Job(turns=(Turn("user", "a"),), think=True), "thinking"),
        (Job(turns=(Turn("user", "a", images=(b"GIF8",)),)), "images"),
    ):
        with pytest.raises(Unsupported, match=word):
            ask(session, job)


def test_gaps_are_filled_between_their_tokens(tmp_path: Path) -> None:
    ids: dict[str, Any] = {
        f"tokenizer.ggml.fim_{what}_token_id": 265 + i for i, what in enumerate(("pre", "suf", "mid"))
    }
    path = write_tiny_llama(tmp_path / "fim.gguf", **ids)
    session = opened(as_gguf(path))
    try:
        assert "insert" in session.capabilities
        done = ask(session, Job(prompt="ab", suffix="cd", draw=greedy(2))).done
        around = [*run(session.tokenize("ab")), 266, *run(session.tokenize("cd")), 267]
        assert list(done.tokens[: done.prompt_tokens]) == [1, 265, *around]
    finally:
        run(session.close())


def test_a_stored_system_prompt_begins_a_chat(tiny: Path) -> None:
    session = opened(as_gguf(tiny, system="be kind", messages=(Message("user", "hi"), Message("assistant", "ho"))))
    try:
        assert run(session.render(Job(turns=(Turn("user", "now"),)))) == "be kindhihonow"
        assert run(session.render(Job(turns=(Turn("system", "rule"), Turn("user", "now"))))) == "hihorulenow"
        template = "{% for m in messages %}[{{ m.role }}]{% endfor %}"
        assert run(session.render(Job(turns=(Turn("user", "now"),), template=template))).startswith("[system][user]")
    finally:
        run(session.close())
