"""What a model costs to hold and to run: size, FLOPs, speed, memory, energy. No task and no quality."""

import time
from collections.abc import Sequence

from sizewise.core.errors import UsageError
from sizewise.core.events import Listener, silent
from sizewise.core.measurement import Measurement, unmeasured
from sizewise.core.model import Model
from sizewise.core.requests import GenerateRequest, Message, Sampling
from sizewise.load.runner import Runner
from sizewise.measure.machine import machine_id
from sizewise.measure.meters.co2 import co2
from sizewise.measure.meters.energy import EnergyWatch
from sizewise.measure.meters.flops import flops
from sizewise.measure.meters.latency import REPEATS, TOKENS, latency, prompt, spread
from sizewise.measure.meters.memory import memory
from sizewise.measure.meters.size import size

TOGETHER = 8  # requests at once, for the throughput


def bench(
    model: Model, runner: Runner, *, tokens: int = TOKENS, repeats: int = REPEATS, listen: Listener = silent
) -> list[Measurement]:
    """Measure one loaded model.

    Args:
        model: what is known of it.
        runner: the same model, loaded.
        tokens: to generate in each run.
        repeats: runs after the warm-up.
        listen: told of each run.

    Returns:
        Size, FLOPs, latency of one request at a time, throughput of several, peak memory, and energy, CO2 and processor
        time of one run. What cannot be measured is in the list too, with the reason.

    Raises:
        UsageError: tokens or repeats are below 1.
        EngineFailed: the engine died.
    """
    if tokens < 1 or repeats < 1:
        raise UsageError("bench needs at least 1 token and 1 repeat")
    with memory(runner.pids()) as watch:
        with EnergyWatch(runner.pids()) as joules:
            speed = latency(runner, tokens=tokens, repeats=repeats, listen=listen)
        together = throughput(runner, tokens=tokens, repeats=repeats)
    runs = repeats + 1  # the warm-up uses energy too
    return [
        *size(model),
        flops(model),
        *speed,
        together,
        watch.measurement(),
        *per_run(joules.measurement(), joules.cpu_s, runs),
    ]


def throughput(runner: Runner, *, tokens: int = TOKENS, repeats: int = REPEATS) -> Measurement:
    """Tokens per second of all of several requests that are answered together."""
    name, unit = "throughput_tokens_per_second", "tokens/s"
    chat = "generate" not in runner.abilities
    if chat and "chat" not in runner.abilities:
        return unmeasured(name, unit, f"{runner.engine} does not write text")
    speeds = []
    for run in range(repeats):
        requests = [_request(run * TOGETHER + index, tokens, chat) for index in range(TOGETHER)]
        began = time.perf_counter()
        counts = [reply.completion_tokens for reply in runner.generate(requests)]
        if None in counts:
            return unmeasured(name, unit, "the engine does not tell how many tokens it wrote")
        speeds.append(sum(count or 0 for count in counts) / (time.perf_counter() - began))
    return spread(name, unit, speeds, f"{TOGETHER} requests at once, prompts included")


def per_run(joules: Measurement, cpu_s: float | None, runs: int) -> Sequence[Measurement]:
    """Energy, CO2 and processor time of one run, from those of several."""
    text = f"{joules.method}; over {runs} runs"
    each = (
        unmeasured("energy_j", joules.unit, joules.why)
        if joules.value is None
        else Measurement(
            "energy_j", joules.unit, joules.value / runs, n=runs, provenance=joules.provenance, method=text,
            machine=joules.machine,
        )
    )  # fmt: skip
    why = "the model runs where its processor time cannot be seen"
    time_used = (
        unmeasured("cpu_s", "s", why)
        if cpu_s is None
        else Measurement("cpu_s", "s", cpu_s / runs, n=runs, method="user and system time", machine=machine_id())
    )
    return each, co2(each), time_used


def _request(number: int, tokens: int, chat: bool) -> GenerateRequest:
    text, sampling = prompt(number), Sampling(max_tokens=tokens)
    return GenerateRequest(None, (Message("user", text),), sampling) if chat else GenerateRequest(text, (), sampling)
