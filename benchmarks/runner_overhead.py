"""Tokens per second through our runner, beside xllamacpp's server called directly in its own process.

Design: the child tokenizes and starts the engine's native server; the parent asks it over the loopback with the
standard library. No Python stands between the engine and the tokens, and where nobody listens the answer comes in one
piece, so what is left of overhead is two short calls to the child and one short HTTP request.
"""

import argparse
import json
import os
import statistics
import time
from pathlib import Path
from typing import Any

from sizewise.core.requests import GenerateRequest, Sampling
from sizewise.load.models import find_model
from sizewise.load.open import open_runner
from sizewise.load.runner import Options, Runner

GOAL = 0.03
PROMPT = "A long story about a lighthouse keeper and the sea. Once upon a time,"


def direct_server(path: Path, threads: int) -> Any:
    """The engine with our settings; the wait of its threads too, which is read when the library is first loaded."""
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = str(path)
    params.n_ctx, params.n_parallel = 2048, 1
    params.n_batch = params.n_ubatch = 512
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = threads
    params.fit_params = params.warmup = params.ctx_shift = False
    params.cache_ram_mib, params.cache_idle_slots, params.verbosity = 0, False, 0
    return xllamacpp.Server(params)


def through_server(server: Any, tokens: int) -> float:
    """Tokens per second of one completion, called directly; nothing is streamed."""
    body = {"prompt": PROMPT, "max_tokens": tokens, "temperature": 0, "cache_prompt": True}
    began = time.perf_counter()
    answer = server.handle_completions(body)
    seconds = time.perf_counter() - began
    return int(answer["usage"]["completion_tokens"]) / seconds


def through_runner(runner: Runner, tokens: int) -> float:
    """Tokens per second of one completion through our runner."""
    request = GenerateRequest(prompt=PROMPT, sampling=Sampling(max_tokens=tokens))
    began = time.perf_counter()
    reply = runner.generate([request])[0]
    return (reply.completion_tokens or 0) / (time.perf_counter() - began)


def main() -> None:
    """Interleave the two, take medians, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a GGUF file, or the name of a model in the store")
    parser.add_argument("--runs", type=int, default=15)
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    arguments = parser.parse_args()
    threads = arguments.threads
    model = find_model(arguments.model)
    server = direct_server(model.files["model.gguf"], threads)
    ours: list[float] = []
    peer: list[float] = []
    with open_runner(model, options=Options(threads=threads, parallel=1)) as runner:
        through_runner(runner, 4)  # loads the weights, as the other did when it was made
        through_server(server, 4)
        for turn in range(arguments.runs):
            if turn % 2:
                ours.append(through_runner(runner, arguments.tokens))
            peer.append(through_server(server, arguments.tokens))
            if not turn % 2:
                ours.append(through_runner(runner, arguments.tokens))
    own, other = statistics.median(ours), statistics.median(peer)
    # neighbours in time share the machine's mood; the ratio of medians would not
    ratio = statistics.median(one / two for one, two in zip(ours, peer, strict=True))
    result = {
        "name": "runner_overhead",
        "ours": round(own, 2),
        "peer": round(other, 2),
        "unit": f"tokens per second, {arguments.tokens} tokens, {threads} threads, median of {arguments.runs}",
        "ratio": round(ratio, 4),
        "goal": f"overhead <= {GOAL:.0%}",
        "holds": ratio >= 1 - GOAL,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
