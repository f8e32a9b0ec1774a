"""Eight clients at once, beside the same eight served one at a time; and a long system text, sent twice.

Design: the engine decodes all streams in one batch, so that the weights are read once for all of them; a prompt that
was seen before is taken from the cache, and only its new end is computed.
"""

import argparse
import asyncio
import json
import os
import statistics

import numpy as np
from _serving import STORY, answer, one_by_one, ours, together

from sizewise.serve.upstream import Upstream

GOAL_FIRST, GOAL_REPEAT = 1 / 3, 1 / 5


async def measure(server: Upstream, model: str, runs: int, tokens: int) -> dict[str, list[float]]:
    """Interleaved: tokens per second and the 95th percentile of the first token's time, both ways; and the repeat."""
    found: dict[str, list[float]] = {"ours": [], "peer": [], "first": [], "repeat": []}
    await answer(server, model, "warm", 4)
    for run in range(runs):
        speed, first = {}, {}
        for way in (together, one_by_one) if run % 2 else (one_by_one, together):
            prompts = [STORY.format(f"{run} {way.__name__} {place}") for place in range(8)]
            timed, seconds = await way(server, model, prompts, tokens)
            speed[way] = sum(each.tokens for each in timed) / seconds
            first[way] = float(np.percentile([each.first_s for each in timed], 95))
        found["ours"].append(speed[together])
        found["peer"].append(speed[one_by_one])
        found["first"].append(first[together] / first[one_by_one])
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
    told = parser.parse_args()
    with ours(told.threads, 8, 2048) as server:
        found = asyncio.run(measure(server, told.model, told.runs, told.tokens))
    middle = {key: statistics.median(values) for key, values in found.items()}
    ratio = statistics.median(one / two for one, two in zip(found["ours"], found["peer"], strict=True))
    result = {
        "name": "serve_concurrency",
        "ours": round(middle["ours"], 1),
        "peer": round(middle["peer"], 1),
        "unit": f"tokens per second of 8 clients, {told.tokens} tokens each, at once and one at a time",
        "ratio": round(ratio, 3),
        "goal": "ratio >= 1; p95 first token at most 1/3 of one at a time; a repeated system text at most 1/5",
        "holds": ratio >= 1 and middle["first"] <= GOAL_FIRST and middle["repeat"] <= GOAL_REPEAT,
        "first_token_p95_ratio": round(middle["first"], 3),
        "repeated_prompt_ratio": round(middle["repeat"], 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
