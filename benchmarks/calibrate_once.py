"""What a second method costs on a model whose calibration a first one has paid for.

Design: sums over the inputs of every matrix depend on the model and the text, not on the method; they are kept on disk
under both digests. A second method reads them block by block instead of running the network.
"""

import argparse
import json
import os
import tempfile
import time

GOAL = 0.2
METHODS = ("gptq", "wanda", "sparsegpt", "gptq")  # the first one gathers; the last is the same one once more


def main() -> None:
    """Run one after the other in an empty home, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--model", default="smollm2:f16", help="a checkpoint or GGUF file, or the name of one in the store"
    )
    parser.add_argument("--tokens", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    told = parser.parse_args()
    import torch

    from sizewise.load.facts import root_of
    from sizewise.load.models import find_model
    from sizewise.load.store.store import Store
    from sizewise.make.apply import make

    torch.set_num_threads(told.threads)
    base, seconds = find_model(told.model), []
    with tempfile.TemporaryDirectory() as home:
        reference = str(base.files["model.gguf"]) if base.kind == "gguf" else str(root_of(base.files) or told.model)
        os.environ["SIZEWISE_HOME"] = home
        # unpacking a GGUF is no calibration: done before the clock starts
        make("magnitude", reference, name="unpacked", store=Store())
        for place, method in enumerate(METHODS):
            began = time.perf_counter()
            make(method, reference, name=f"made-{place}", options={"tokens": told.tokens}, store=Store())
            seconds.append(time.perf_counter() - began)
    ratios = [second / seconds[0] for second in seconds[1:]]
    result = {
        "name": "calibrate_once",
        "ours": round(max(seconds[1:]), 2),
        "peer": round(seconds[0], 2),
        "unit": f"seconds of the slowest later method; peer: the first one, {METHODS[0]}, with {told.tokens} tokens",
        "ratio": round(max(ratios), 4),
        "goal": f"ratio <= {GOAL}",
        "holds": max(ratios) <= GOAL,
        "seconds": dict(zip((f"{place} {name}" for place, name in enumerate(METHODS)), seconds, strict=True)),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
