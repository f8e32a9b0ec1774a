"""From `sizewise run MODEL "hi"` typed to the first token on the screen; nothing is running before.

Design: the command line imports what one answer needs, the child process loads the weights by mapping the file, and the
first token leaves as soon as the engine has it. Beside it, the engine's own share: its load and first token alone.
"""

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import time

from _serving import answer, engine

GOAL_S = 2.0


def until_first_text(model: str) -> float:
    """Seconds until the answer's first byte."""
    command = [sys.executable, "-m", "sizewise", "run", model, "hi"]
    began = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    assert process.stdout
    process.stdout.read(1)
    seconds = time.perf_counter() - began
    process.kill()
    process.communicate()
    return seconds


def engine_alone(model: str, threads: int) -> float:
    """Seconds that a new engine takes to load and to give its first token."""
    began = time.perf_counter()
    with engine(model, threads, 1, 2048) as server:
        asyncio.run(answer(server, model, "hi", 1))
        return time.perf_counter() - began


def main() -> None:
    """Interleave, take medians, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="name of a model in the store")
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    told = parser.parse_args()
    until_first_text(told.model)  # the file is read into the system's cache
    pairs = [(until_first_text(told.model), engine_alone(told.model, told.threads)) for _ in range(told.runs)]
    own, other = (statistics.median(side) for side in zip(*pairs, strict=True))
    result = {
        "name": "cold_start",
        "ours": round(own, 3),
        "peer": round(other, 3),
        "unit": f"seconds to the first token, median of {told.runs}; peer: the engine's own part",
        "ratio": round(own / other, 3),
        "goal": f"<= {GOAL_S} s",
        "holds": own <= GOAL_S,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
