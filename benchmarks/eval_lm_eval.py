"""Time of an 8-shot classification, beside lm-evaluation-harness with its `hf` backend, in bf16 or fp32.

Same rows, same eight worked examples, same scoring (the likelier continuation wins), same weights: ours as F16 GGUF,
the peer's dequantized from that file. Loading is left out on both sides and reported apart.

Design: the worked examples are most of every prompt. They are decoded once and shared by all rows, the rows go through
the engine packed together, and both labels are read from the same logits. The peer computes every prompt in full.
"""

import argparse
import json
import os
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from sizewise.core.requests import ScoreRequest
from sizewise.load.models import find_model
from sizewise.load.open import open_runner
from sizewise.load.runner import Options

GOAL, AGREE = 0.2, 0.99
LABELS = ("negative", "positive")
TASK = """task: rows
dataset_path: json
dataset_kwargs: {{data_files: {{test: {rows}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{prompt}}}}"
doc_to_choice: {labels}
doc_to_target: "{{{{label}}}}"
num_fewshot: 0
metric_list: [{{metric: acc}}]
"""


def read(path: Path, count: int) -> list[dict[str, Any]]:
    """The first `count` rows of a JSONL file."""
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line) for _, line in zip(range(count), lines, strict=False)]


def prompts(data: Path, count: int) -> list[dict[str, str]]:
    """The rows to judge, each with the same eight worked examples, four of each label, before it.

    The examples are the most strongly rated of the first 400. Vaguer ones leave more rows between the labels, where the
    rounding of bf16 alone decides (with these it changes 1 % of the peer's own predictions in fp32).
    """
    pool = sorted(read(data / "sentiment_train.jsonl", 400), key=lambda row: -abs(float(row["score"])))
    drawn = [[row for row in pool if row["label"] == label][:4] for label in LABELS]
    shots = "".join(
        f"Text: {row['input']}\nSentiment: {row['label']}\n\n" for pair in zip(*drawn, strict=True) for row in pair
    )
    rows = read(data / "sentiment_test.jsonl", count)
    return [{"prompt": f"{shots}Text: {row['input']}\nSentiment:", "label": row["label"]} for row in rows]


def measure_ours(gguf: Path, rows: list[dict[str, str]], threads: int) -> dict[str, Any]:
    """Load our runner, then time the scoring."""
    requests = [ScoreRequest(row["prompt"], tuple(f" {label}" for label in LABELS)) for row in rows]
    began = time.perf_counter()
    with open_runner(str(gguf), options=Options(threads=threads)) as runner:
        runner.score([ScoreRequest("a", (" b",))])  # loads the weights
        loaded = time.perf_counter()
        scores = runner.score(requests)
        seconds = time.perf_counter() - loaded
    logprobs = [[score.logprob for score in row] for row in scores]
    return {"load_s": loaded - began, "seconds": seconds, "rows": logprobs}


def measure_peer(
    python: str, gguf: Path, rows: list[dict[str, str]], threads: int, batch: int, dtype: str
) -> dict[str, Any]:
    """Write the task as lm-eval wants it and run it in the peer's own Python, without network."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "rows.jsonl"
        data.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
        (folder / "task.yaml").write_text(TASK.format(rows=data, labels=json.dumps(LABELS)), encoding="utf-8")
        command = [python, str(Path(__file__).with_name("_lm_eval_peer.py")), "--gguf", str(gguf.resolve())]
        command += ["--folder", name, "--threads", str(threads), "--batch", str(batch), "--dtype", dtype]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_DATASETS_CACHE": f"{name}/cache"}
        done = subprocess.run(command, env={**os.environ, **offline}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stderr[-3000:]}")
    answer: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return answer


def choices(rows: list[list[float]]) -> list[int]:
    """The place of the likeliest label of each row."""
    return [max(range(len(row)), key=row.__getitem__) for row in rows]


def main() -> None:
    """Run both, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2:f16", help="an F16 GGUF file, or the name of one in the store")
    parser.add_argument("--peer-python", required=True, help="Python of an environment that has lm-eval")
    parser.add_argument("--data", type=Path, default=Path(__file__).parent.parent / "examples" / "data")
    parser.add_argument("--rows", type=int, default=300)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-batch", type=int, default=8)
    parser.add_argument("--peer-dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--write", type=Path, help="a JSON file for every row's log-probabilities on both sides")
    arguments = parser.parse_args()
    rows = prompts(arguments.data, arguments.rows)
    gguf = find_model(arguments.model).files["model.gguf"]
    ours = measure_ours(gguf, rows, arguments.threads)
    batched = arguments.peer_batch, arguments.peer_dtype
    peer = measure_peer(arguments.peer_python, gguf, rows, arguments.threads, *batched)
    if arguments.write:
        arguments.write.write_text(json.dumps({"ours": ours, "peer": peer}), encoding="utf-8")
    one, two = choices(ours["rows"]), choices(peer["rows"])
    tied = [max(row) == min(row) for row in peer["rows"]]  # in bf16 a tie is rounding: the peer then takes the first
    same = sum(a == b for a, b in zip(one, two, strict=True)) / len(rows)
    decided = sum(a == b or tie for a, b, tie in zip(one, two, tied, strict=True)) / len(rows)
    right = [LABELS.index(row["label"]) for row in rows]
    ratio = ours["seconds"] / peer["seconds"]
    result = {
        "name": "eval_lm_eval",
        "ours": round(ours["seconds"], 2),
        "peer": round(peer["seconds"], 2),
        "unit": f"seconds for {len(rows)} rows, loading left out",
        "ratio": round(ratio, 4),
        "goal": f"ratio <= {GOAL}, same prediction on >= {AGREE:.0%} of the rows, ties of the peer counted",
        "holds": ratio <= GOAL and decided >= AGREE,
        "peer_dtype": arguments.peer_dtype,
        "same_predictions": round(same, 4),
        "same_or_tied": round(decided, 4),
        "peer_ties": sum(tied),
        "accuracy_ours": round(sum(a == b for a, b in zip(one, right, strict=True)) / len(rows), 4),
        "accuracy_peer": round(sum(a == b for a, b in zip(two, right, strict=True)) / len(rows), 4),
        "load_s_ours": round(ours["load_s"], 2),
        "load_s_peer": round(peer["load_s"], 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
