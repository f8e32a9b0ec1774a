"""GPTQ and AWQ beside llm-compressor's on a CPU: perplexity at equal bits, and wall time.

Both sides start from one checkpoint: a Q4_1 file unpacked and dithered as in `gguf_quality.py`, so that the grid it
came from helps nobody, or a checkpoint as it is. Both see the same calibration windows, token id by token id, and
quantize the matrices inside the blocks to the same grids: as many bits, as large groups, zero points on both sides or
on none. Embedding and head stay as they are. Three of four documents of the text that comes with sizewise calibrate;
the rest is what perplexity is taken on. Both results are packed files, opened by one reader and run in float32 by one
evaluator, which knows nothing of where they came from.

The time is that of reading the checkpoint, calibrating, quantizing and writing the result, imports left out on both
sides. The sides take turns, ours each time with an empty cache; of repeats the quickest counts. The peer runs
in an interpreter of its own, since it wants other versions of what we use.

Design: statistics are summed once for all matrices that share an input, and the matrices of a block are quantized from
those sums; AWQ's search for scales takes the error of an output from the Hessian and not from one more forward pass.
"""

import argparse
import json
import math
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from gguf_quality import dither, split

from sizewise.load.checkpoint.import_gguf import import_gguf
from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.facts import root_of
from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.calibration import load_calibration

METHODS = ("gptq", "awq")
GOAL = 1.0  # ratio of perplexities, and of seconds


def checkpoint_of(model: str, work: Path) -> Path:
    """The checkpoint that both sides start from."""
    found = find_model(model)
    if found.kind == "checkpoint":
        return root_of(found.files) or Path(model)
    parent, checkpoint = work / "parent.gguf", work / "checkpoint"
    if not parent.exists():
        dither(found.files["model.gguf"], parent)
    if not (checkpoint / "config.json").exists():
        import_gguf(parent, checkpoint)
    return checkpoint


def run_ours(method: str, checkpoint: Path, text: Path, told: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Quantize with an empty home, so that nothing is known yet; the result's files go to `out`."""
    options: dict[str, Any] = {"calibration": str(text), "tokens": told.tokens, "window": told.window}
    options |= {"bits": told.bits, "group": told.group, "symmetric": told.symmetric, "sequential": told.sequential}
    with tempfile.TemporaryDirectory(dir=told.work) as home:
        os.environ["SIZEWISE_HOME"] = home
        began = time.perf_counter()
        made = make(method, str(checkpoint), name="made", options=options, store=Store())
        seconds = time.perf_counter() - began
        for title, path in made.files.items():
            (out / title).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / title)
    return {"seconds": round(seconds, 2)}


def run_peer(method: str, checkpoint: Path, windows: Path, told: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Quantize in the peer's own Python, without network."""
    command = [told.peer_python, str(Path(__file__).with_name("_gptq_peer_child.py")), "--method", method]
    command += ["--checkpoint", str(checkpoint), "--windows", str(windows), "--out", str(out.resolve())]
    command += ["--bits", str(told.bits), "--group", str(told.group), *(["--symmetric"] if told.symmetric else [])]
    command += ["--observer", told.peer_observer, "--dtype", told.peer_dtype, "--threads", str(told.threads)]
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        command, cwd=told.work, env={**os.environ, **offline}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        raise SystemExit(f"the peer failed:\n{done.stdout[-1000:]}\n{done.stderr[-3000:]}")
    said: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return said | {"seconds": round(sum(said[part] for part in ("load_s", "quantize_s", "save_s")), 2)}


def perplexity(folder: Path, checkpoint: Path, windows: list[list[int]]) -> float:
    """Exponential of the mean loss over the windows, all tokens but the first of each, in float32.

    Args:
        folder: whose weights; matrices in small forms are unpacked.
        checkpoint: the model as it was, for the shape of the network.
        windows: token ids.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(checkpoint), dtype=torch.float32).eval()
    _fill(model, DenseSource(folder))
    losses = []
    with torch.inference_mode():
        for window in windows:
            tokens = torch.tensor(window)
            scores = model(input_ids=tokens[None]).logits[0, :-1].float()
            losses.append(torch.nn.functional.cross_entropy(scores, tokens[1:], reduction="none").double())
    return math.exp(float(torch.cat(losses).mean()))


def _fill(model: Any, source: DenseSource) -> None:
    """Every parameter of the network from the files, small forms unpacked without rounding them to 16 bits."""
    import torch

    left = dict(model.named_parameters())
    with torch.no_grad():
        for name in source:
            module = name.removesuffix(".weight")
            tensor = source.form(module).dense() if module in source.matrices else source.get(name)
            if name in left:
                left.pop(name).copy_(tensor)
    if left:
        raise SystemExit(f"{source.folder}: {next(iter(left))} is missing")


def bits_of(folder: Path) -> float:
    """Bits per weight of the quantized matrices as they lie in the files, scales and zero points included."""
    source = DenseSource(folder)
    parts = [part for module in source.matrices for name, part in source.parts(module).items() if "shape" not in name]
    weights = sum(math.prod(source.shape(f"{module}.weight")) for module in source.matrices)
    return round(sum(part.nbytes for part in parts) * 8 / weights, 3)


def compare(
    method: str, checkpoint: Path, text: Path, held: list[list[int]], told: argparse.Namespace
) -> dict[str, Any]:
    """Run both sides in turn, measure, print the line."""
    outs = {side: told.work / f"{side}-{method}" for side in ("ours", "peer")}
    runs: dict[str, list[dict[str, Any]]] = {"ours": [], "peer": []}
    for _ in range(told.repeats):
        for out in outs.values():
            shutil.rmtree(out, ignore_errors=True)
        runs["ours"].append(run_ours(method, checkpoint, text, told, outs["ours"]))
        runs["peer"].append(run_peer(method, checkpoint, told.work / "windows.json", told, outs["peer"]))
    found = {side: perplexity(out, checkpoint, held) for side, out in outs.items()}
    seconds = {side: min(run["seconds"] for run in runs[side]) for side in runs}
    ratio, slower = found["ours"] / found["peer"], seconds["ours"] / seconds["peer"]
    bits = {side: bits_of(out) for side, out in outs.items()}
    line = {
        "name": f"gptq_peer {method}",
        "ours": round(found["ours"], 3),
        "peer": round(found["peer"], 3),
        "unit": "perplexity",
        "ratio": round(ratio, 4),
        "goal": GOAL,
        "holds": ratio <= GOAL and slower <= GOAL and bits["ours"] <= bits["peer"],
        "details": {
            "seconds_ours": seconds["ours"],
            "seconds_peer": seconds["peer"],
            "seconds_ratio": round(slower, 3),
            "bits_per_weight": bits,
            "quantized_matrices": {side: len(DenseSource(out).matrices) for side, out in outs.items()},
            "runs": runs,
        },
    }
    print(json.dumps(line), flush=True)
    return line


def main() -> None:
    """Compare the methods asked for; one JSON line for each, and one for all at the end."""
    told = arguments()
    import torch

    torch.set_num_threads(told.threads)
    told.work.mkdir(parents=True, exist_ok=True)
    told.work = told.work.resolve()
    checkpoint = checkpoint_of(told.model, told.work).resolve()
    text, rest = split(told.work)
    windows = load_calibration(text, checkpoint, tokens=told.tokens, window=told.window).windows
    (told.work / "windows.json").write_text(json.dumps(windows.tolist()), encoding="utf-8")
    held = load_calibration(rest, checkpoint, tokens=told.held_out, window=told.window).windows.tolist()
    before = perplexity(checkpoint, checkpoint, held)
    lines = [compare(method, checkpoint, text, held, told) for method in told.methods]
    worst = max(max(line["ratio"], line["details"]["seconds_ratio"]) for line in lines)
    result = {
        "name": "gptq_peer",
        "ratio": worst,
        "unit": "the worst of all ratios of perplexity and of seconds",
        "goal": GOAL,
        "holds": all(line["holds"] for line in lines),
        "perplexity_before": round(before, 3),
        "bits": told.bits,
        "group": told.group,
        "symmetric": told.symmetric,
        "calibration_tokens": windows.numel(),
        "held_out_tokens": len(held) * told.window,
        "load_average": round(os.getloadavg()[0], 2),
    }
    print(json.dumps(result))


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", default="smollm2", help="a Q4_1 file or a checkpoint, or the name of one")
    parser.add_argument("--peer-python", required=True, help="Python of an environment that has llm-compressor")
    parser.add_argument("--work", type=Path, required=True, help="folder for the files made; kept, and used again")
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--tokens", type=int, default=16_384, help="of calibration")
    parser.add_argument("--window", type=int, default=512, help="tokens that the network sees at a time")
    parser.add_argument("--held-out", type=int, default=4096, help="tokens that perplexity is taken on")
    parser.add_argument("--bits", type=int, choices=(4, 8), default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--symmetric", action="store_true", help="no zero points, on either side")
    parser.add_argument("--sequential", action="store_true", help="ours calibrates each block on the ones quantized")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--peer-dtype", choices=("bfloat16", "float32"), default="float32")
    parser.add_argument("--peer-observer", default="memoryless_minmax", help="how the peer fits its grids")
    return parser.parse_args()


if __name__ == "__main__":
    main()
