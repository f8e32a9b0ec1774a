"""Latency and speed: how long one caller waits, warm, over several runs.

A first run is thrown away: it pays for memory that is mapped on first touch. Every run gets a prompt of its own from
the first word on, because an engine that keeps the prompt before would answer from what it remembers.
"""

import time
from collections.abc import Callable, Sequence

import numpy as np

from sizewise.core.events import Listener, Progress, silent
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.requests import GenerateRequest, Reply, Sampling, ScoreRequest
from sizewise.load.runner import Runner
from sizewise.measure.machine import machine_id

TOKENS, REPEATS = 64, 5
_TOPICS = (
    "a river",
    "a small town",
    "two friends",
    "the night train",
    "an old clock",
    "a garden in June",
    "the harbour",
)
_TEXT = (
    "Chapter {number}: {topic}. Nobody could say when it had begun. Some held that it was the winter before, when "
    "the road was closed for a month; others remembered an evening in spring and a letter that came too late. "
    "What is certain is that"
)


def latency(
    runner: Runner, *, tokens: int = TOKENS, repeats: int = REPEATS, listen: Listener = silent
) -> list[Measurement]:
    """Time of one request at a time. For a model that writes: first token, speed, whole answer; else one answer.

    Args:
        runner: the model, loaded.
        tokens: to generate in each run.
        repeats: runs after the warm-up.
        listen: told of each run.
    """
    if "generate" in runner.abilities:
        return of_replies(_replies(runner, tokens, repeats, listen))
    if "chat" in runner.abilities:
        return of_replies(_replies(runner, tokens, repeats, listen, chat=True))
    call = _other_call(runner)
    if call is None:
        return [unmeasured("total_s", "s", f"{runner.engine} neither writes, scores nor embeds")]
    return [spread("total_s", "s", timed(call, repeats, listen), "one text at a time, warm")]


def of_replies(replies: Sequence[Reply]) -> list[Measurement]:
    """`first_token_s`, `tokens_per_second` (after the first token) and `total_s` of answers that were given alone."""
    first = [reply.first_token_s for reply in replies if reply.first_token_s is not None]
    speeds = [speed for reply in replies if (speed := _speed(reply)) is not None]
    return [
        spread("first_token_s", "s", first, "from request to first token, warm", "the engine does not tell"),
        spread("tokens_per_second", "tokens/s", speeds, "tokens after the first", "fewer than two tokens were told of"),
        spread("total_s", "s", [reply.total_s for reply in replies], "from request to last token, warm"),
    ]


def spread(name: str, unit: str, values: Sequence[float], method: str, why: str = "nothing was run") -> Measurement:
    """The median of several runs with their 5th and 95th percentiles."""
    if not values:
        return unmeasured(name, unit, why)
    low, middle, high = (float(value) for value in np.quantile(values, (0.05, 0.5, 0.95)))
    method = f"median, {method}"
    return Measurement(name, unit, middle, low, high, len(values), "p5..p95", method=method, machine=machine_id())


def timed(call: Callable[[int], object], repeats: int, listen: Listener = silent, warm: int = 1) -> list[float]:
    """Seconds that each of `repeats` calls took, after `warm` calls that do not count. Each is told its number."""
    seconds = []
    for run in range(-warm, repeats):
        began = time.perf_counter()
        call(run + warm)
        if run >= 0:
            seconds.append(time.perf_counter() - began)
            listen(Progress("latency", run + 1, repeats, "runs"))
    return seconds


def prompt(number: int) -> str:
    """A prompt that shares no beginning with that of any other number."""
    topic = _TOPICS[number % len(_TOPICS)]
    return f"{number + 1}. " + _TEXT.format(number=number + 1, topic=topic)


def _replies(runner: Runner, tokens: int, repeats: int, listen: Listener, chat: bool = False) -> list[Reply]:
    from sizewise.core.requests import Message

    replies = []

    def call(number: int) -> None:
        text, sampling = prompt(number), Sampling(max_tokens=tokens)
        request = (
            GenerateRequest(None, (Message("user", text),), sampling) if chat else GenerateRequest(text, (), sampling)
        )
        replies.extend(runner.generate([request]))

    timed(call, repeats, listen)
    return replies[1:]


def _speed(reply: Reply) -> float | None:
    if reply.first_token_s is None or (reply.completion_tokens or 0) < 2 or reply.total_s <= reply.first_token_s:
        return None
    return ((reply.completion_tokens or 0) - 1) / (reply.total_s - reply.first_token_s)


def _other_call(runner: Runner) -> Callable[[int], object] | None:
    if "score" in runner.abilities:
        return lambda number: runner.score([ScoreRequest(prompt(number), (" yes", " no"))])
    if "embed" in runner.abilities:
        return lambda number: runner.embed([prompt(number)])
    return None
