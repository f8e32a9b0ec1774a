"""Tokens per second and time to first token through our HTTP, beside the engine's own server in the same settings.

Design: no Python stands between the engine and the weights; for each token our process reads one event, cuts out the
text and writes one event, some tens of microseconds. Before the first token come one lease, one call that tokenizes and
one connection to the engine.
"""

import argparse
import asyncio
import json
import os
import statistics

from _serving import STORY, answer, engine, ours, together

from sizewise.serve.upstream import Upstream

GOAL, GOAL_MS = 0.97, 5.0


async def measure(mine: Upstream, peer: Upstream, model: str, runs: int, tokens: int) -> dict[str, list[float]]:
    """Interleaved: ratios of tokens per second at 1 and 8 streams, seconds to the first token at 1."""
    found: dict[str, list[float]] = {"one": [], "eight": [], "ours_first": [], "peer_first": [], "ours": [], "peer": []}
    for server in (mine, peer):
        await answer(server, model, "warm", 4)
    for run in range(runs):
        order = (mine, peer) if run % 2 else (peer, mine)
        for streams, key in ((1, "one"), (8, "eight")):
            speed = {}
            for server in order:
                prompts = [STORY.format(f"{run} {place}") for place in range(streams)]
                timed, seconds = await together(server, model, prompts, tokens)
                speed[server] = sum(each.tokens for each in timed) / seconds
                if streams == 1:
                    found["ours_first" if server is mine else "peer_first"].append(timed[0].first_s)
            found[key].append(speed[mine] / speed[peer])
            if streams == 8:
                found["ours"].append(speed[mine])
                found["peer"].append(speed[peer])
    return found


def main() -> None:
    """Run both, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="name of a model in the store")
    parser.add_argument("--runs", type=int, default=9)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    told = parser.parse_args()
    with ours(told.threads, 8, 2048) as mine, engine(told.model, told.threads, 8, 2048) as peer:
        found = asyncio.run(measure(mine, peer, told.model, told.runs, told.tokens))
    middle = {key: statistics.median(values) for key, values in found.items()}
    added_ms = 1000 * statistics.median(
        one - two for one, two in zip(found["ours_first"], found["peer_first"], strict=True)
    )
    result = {
        "name": "serve_overhead",
        "ours": round(middle["ours"], 1),
        "peer": round(middle["peer"], 1),
        "unit": f"tokens per second, 8 streams of {told.tokens}, {told.threads} threads, median of {told.runs}",
        "ratio": round(middle["eight"], 4),
        "goal": f"ratio >= {GOAL} at 1 and 8 streams, first token at most {GOAL_MS:g} ms later",
        "holds": min(middle["one"], middle["eight"]) >= GOAL and added_ms <= GOAL_MS,
        "ratio_1_stream": round(middle["one"], 4),
        "added_first_token_ms": round(added_ms, 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
