"""Eight clients at once, beside the same eight served one at a time; and a long system text, sent twice.

    python benchmarks/serve_concurrency.py                              one at a time: our own server, asked in turns
    python benchmarks/serve_concurrency.py --peer-python PEER/bin/python      llama-cpp-python's server, asked at once

Design: the engine decodes all streams in one batch, so that the weights are read once for all of them; a prompt that
was seen before is taken from the cache, and only its new end is computed.
"""

import argparse
import asyncio
import json
import os
import statistics
from contextlib import ExitStack

import numpy as np
from _serving import STORY, answer, llama_cpp_python, one_by_one, ours, together

from sizewise.serve.upstream import Upstream

GOAL_FIRST, GOAL_REPEAT = 1 / 3, 1 / 5


async def measure(
    server: Upstream, peer: Upstream | None, model: str, runs: int, tokens: int
) -> dict[str, list[float]]:
    """Interleaved: tokens per second and the 95th percentile of the first token's time, both ways; and the repeat."""
    alone = one_by_one if peer is None else together
    found: dict[str, list[float]] = {"ours": [], "peer": [], "first": [], "repeat": []}
    for each in (server, peer or server):
        await answer(each, model, "warm", 4)
    for run in range(runs):
        speed, first = {}, {}
        for whose in ("ours", "peer") if run % 2 else ("peer", "ours"):
            prompts = [STORY.format(f"{run} {whose} {place}") for place in range(8)]
            asked = (together, server) if whose == "ours" else (alone, peer or server)
            timed, seconds = await asked[0](asked[1], model, prompts, tokens)
            speed[whose] = sum(each.tokens for each in timed) / seconds
            first[whose] = float(np.percentile([each.first_s for each in timed], 95))
        found["ours"].append(speed["ours"])
        found["peer"].append(speed["peer"])
        found["first"].append(first["ours"] / first["peer"])
        system = " ".join(f"Rule {run}.{number}: answer as briefly as you can." for number in range(90))
        once = await answer(server, model, f"{system}\nWho are you?", 1)
        twice = await answer(server, model, f"{system}\nWhere are you?", 1)
        found["repeat"].append(twice.first_s / once.first_s)
    return found


def main() -> None:
    """Run, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="name of a model in the store")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-python", help="a Python that has llama-cpp-python[server]")
    told = parser.parse_args()
    with ExitStack() as stack:
        server = stack.enter_context(ours(told.threads, 8, 2048))
        peer = None
        if told.peer_python:
            peer = stack.enter_context(llama_cpp_python(told.peer_python, told.model, told.threads, 2048))
        found = asyncio.run(measure(server, peer, told.model, told.runs, told.tokens))
    middle = {key: statistics.median(values) for key, values in found.items()}
    ratio = statistics.median(one / two for one, two in zip(found["ours"], found["peer"], strict=True))
    result = {
        "name": "serve_concurrency",
        "ours": round(middle["ours"], 1),
        "peer": round(middle["peer"], 1),
        "unit": f"tokens per second of 8 clients, {told.tokens} tokens each, at once and "
        + ("by llama-cpp-python's server" if told.peer_python else "one at a time"),
        "ratio": round(ratio, 3),
        "goal": "ratio >= 1; p95 first token at most 1/3 of one at a time; a repeated system text at most 1/5",
        "holds": ratio >= 1 and middle["first"] <= GOAL_FIRST and middle["repeat"] <= GOAL_REPEAT,
        "first_token_p95_ratio": round(middle["first"], 3),
        "repeated_prompt_ratio": round(middle["repeat"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
