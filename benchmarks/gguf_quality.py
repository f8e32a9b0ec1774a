"""What a smaller GGUF costs: KL divergence to its parent, `sizewise make gguf` beside llama.cpp's own quantizer.

The parent is a Q4_1 file unpacked and dithered: every weight gets uniform noise of half a step of its block to either
side, so that no grid is favoured. The text that comes with sizewise is split by document: three of four calibrate, for
both sides, the rest is what the divergence is measured on, over the whole vocabulary at every token of windows of 512.

The peer is the C code of llama.cpp's quantizer (`ggml_quantize_chunk` in xllamacpp's library) under llama.cpp's rules
for which tensor gets which type, with the importance matrix that its tool would compute from the calibration text: the
mean square of every input. `llama_model_quantize` itself is not exported by that library. At each of the peer's sizes
ours may take no more bytes. `--same-types` also measures ours in exactly the peer's types, which tells what rounding
alone gains from what choosing types gains.
"""

import argparse
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.load.checkpoint.import_gguf import import_gguf
from sizewise.load.gguf.file import GgufInfo, TensorInfo, read_gguf
from sizewise.load.gguf.names import Names
from sizewise.load.gguf.pack import pack, unpack
from sizewise.load.gguf.types import BY_NAME, GgmlType
from sizewise.load.gguf.write import copy_gguf, packed_rows
from sizewise.load.layers import layout_of, read_config
from sizewise.load.llama.c import log_to, quantize_rows
from sizewise.load.llama.model import NativeContext, NativeModel
from sizewise.load.models import find_model, list_models
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.calibration import OWN, load_calibration
from sizewise.make.gguf_mix import assign
from sizewise.make.recorded import Recorded

GOALS = {"Q2_K": 0.8, "Q3_K_M": 0.8, "Q4_0": 0.8, "Q4_K_M": 0.9}  # most of the peer's divergence that ours may have
WINDOW = 512


def dither(source: Path, target: Path) -> None:
    """Unpack a file of types with one 16-bit scale for 32 weights, noise of up to half a step added, into F16."""
    info, chance = read_gguf(source), np.random.default_rng(0)

    def encode(tensor: TensorInfo, kind: GgmlType) -> Iterator[bytes]:
        rows = packed_rows(info, tensor)
        weights = unpack(rows, tensor).reshape(-1, tensor.type.block)
        steps = np.ascontiguousarray(rows.reshape(len(weights), -1)[:, :2]).view(np.float16).astype(np.float32)
        noise = chance.random(weights.shape, np.float32) - np.float32(0.5)
        yield pack((weights + noise * steps).reshape(tensor.rows, -1), kind, tensor.name)

    if odd := [tensor.name for tensor in info.tensors if tensor.type.block not in (1, 32)]:
        raise SystemExit(f"{odd[0]} has no single step for each block; give a Q4_1 or Q8_0 file")
    types = {tensor.name: BY_NAME["F16"] if tensor.type.quantized else tensor.type for tensor in info.tensors}
    copy_gguf(info, target, types, encode, file_type="F16")


def split(folder: Path) -> tuple[Path, Path]:
    """The calibration text in two files: what calibrates and what is held out."""
    rows = OWN.read_text(encoding="utf-8").splitlines()
    paths = folder / "calibration.jsonl", folder / "held_out.jsonl"
    for path, held in zip(paths, (False, True), strict=True):
        chosen = [row for place, row in enumerate(rows) if (place % 4 == 3) == held]
        path.write_text("".join(row + "\n" for row in chosen), encoding="utf-8")
    return paths


def peer(parent: GgufInfo, mix: str, importance: dict[str, NDArray[np.float32]], target: Path) -> None:
    """What llama.cpp's tool writes when it is given an importance matrix."""

    def encode(tensor: TensorInfo, kind: GgmlType) -> Iterator[bytes]:
        weights = unpack(packed_rows(parent, tensor), tensor)
        if not kind.quantized:
            yield pack(weights, kind, tensor.name)
        else:
            yield quantize_rows(weights, kind.code, importance.get(tensor.name))

    copy_gguf(parent, target, assign(parent, mix), encode, file_type=mix)


def mean_squares(parent: GgufInfo, checkpoint: Path, recorded: Recorded) -> dict[str, NDArray[np.float32]]:
    """Of every input of the matrices inside the blocks: the tool leaves out the head."""
    layout = layout_of(checkpoint)
    names = Names(read_config(checkpoint), layout.prefix)
    squares = {
        name: seen.mean("input_norm").square().numpy()
        for block in layout.blocks
        for seen in recorded.block(block.index, hessian=False)
        for name in seen.names
    }
    present = {tensor.name for tensor in parent.tensors}
    sources = {name: names.sources(name, present)[0].removesuffix(".weight") for name in present}
    return {name: squares[source] for name, source in sources.items() if source in squares}


def log_probabilities(model: Path, tokens: list[list[int]]) -> Iterator[NDArray[np.float32]]:
    """(window, vocabulary) of each window, as the engine computes them."""
    threads = len(os.sched_getaffinity(0))
    native = NativeModel(model)
    context = NativeContext(
        native, n_ctx=WINDOW, n_batch=WINDOW, n_ubatch=WINDOW, n_threads=threads, n_threads_batch=threads
    )
    for window in tokens:
        context.clear()
        context.decode(window, range(len(window)), [[0]] * len(window), [True] * len(window))
        logits = context.logits(len(window))
        logits -= logits.max(1, keepdims=True)
        logits -= np.log(np.exp(logits).sum(1, keepdims=True, dtype=np.float64)).astype(np.float32)
        yield logits
    context.close()
    native.close()


def held_out(parent: Path, text: Path, count: int) -> list[list[int]]:
    """Windows of tokens, documents from all over the file."""
    native = NativeModel(parent)
    rows = [json.loads(row)["input"] for row in text.read_text(encoding="utf-8").splitlines()]
    np.random.default_rng(1).shuffle(rows)
    tokens = [token for row in rows for token in native.tokenize(row + "\n\n", special=False)]
    native.close()
    return [tokens[start : start + WINDOW] for start in range(0, min(count, len(tokens)) - WINDOW + 1, WINDOW)]


def divergence(model: Path, tokens: list[list[int]], reference: Path) -> dict[str, Any]:
    """Mean KL divergence per token in nats with its standard error, and how often the likeliest token is the same."""
    found, same = [], []
    whole = np.load(reference, mmap_mode="r")
    for place, ours in enumerate(log_probabilities(model, tokens)):
        theirs = np.asarray(whole[place * WINDOW : (place + 1) * WINDOW])
        found.append((np.exp(theirs) * (theirs - ours)).sum(1, dtype=np.float64))
        same.append(theirs.argmax(1) == ours.argmax(1))
    every = np.concatenate(found)
    return {
        "kl": round(float(every.mean()), 5),
        "standard_error": round(float(every.std() / len(every) ** 0.5), 5),
        "same_top": round(float(np.concatenate(same).mean()), 4),
        "bytes": model.stat().st_size,
    }


def ours(parent: Path, mix: str, store: Store, options: dict[str, Any]) -> tuple[Path, float]:
    """Our file and the seconds that it took, statistics included where they were not there yet."""
    name = f"{mix.lower()}-{options['types']}"
    if name not in {model.name for model in list_models(store)}:
        make("gguf", str(parent), name=name, options={"type": mix, **options}, store=store)
    made = find_model(name, store)
    return made.files["model.gguf"], made.lineage.figures["seconds"]


def main() -> None:
    """Measure every size asked for; one JSON line for each, and one for all at the end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a Q4_1 file, or the name of one in the store")
    parser.add_argument("--work", type=Path, required=True, help="folder for the files made; kept, and used again")
    parser.add_argument("--types", nargs="+", choices=GOALS, default=list(GOALS))
    parser.add_argument("--tokens", type=int, default=65_536, help="of calibration")
    parser.add_argument("--held-out", type=int, default=4096, help="tokens that the divergence is measured on")
    parser.add_argument("--same-types", action="store_true", help="measure ours in the peer's types, too")
    arguments = parser.parse_args()
    log_to(lambda level, text: None)
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    parent, checkpoint, reference = work / "parent.gguf", work / "checkpoint", work / "reference.npy"
    if not parent.exists():
        dither(find_model(arguments.model).files["model.gguf"], parent)
    if not (checkpoint / "config.json").exists():
        import_gguf(parent, checkpoint)
    text, rest = split(work)
    tokens = held_out(parent, rest, arguments.held_out)
    if not reference.exists() or len(np.load(reference, mmap_mode="r")) != len(tokens) * WINDOW:
        np.save(reference, np.concatenate(list(log_probabilities(parent, tokens))))
    store = Store(work / "store")
    common = {"calibration": str(text), "tokens": arguments.tokens}
    lines = [measure(mix, parent, checkpoint, store, common, tokens, arguments.same_types) for mix in arguments.types]
    holds = all(line["holds"] for line in lines)
    worst = max(line["ratio"] / line["goal"] for line in lines)
    print(
        json.dumps({"name": "gguf_quality", "ratio": round(worst, 3), "unit": "of goal", "goal": 1.0, "holds": holds})
    )


def measure(
    mix: str,
    parent: Path,
    checkpoint: Path,
    store: Store,
    common: dict[str, Any],
    tokens: list[list[int]],
    same_types: bool,
) -> dict[str, Any]:
    """Make one size on both sides, measure, print the line."""
    work = parent.parent
    reference = work / "reference.npy"
    path, seconds = ours(parent, mix, store, {**common, "types": "measured"})
    details: dict[str, Any] = {"ours": divergence(path, tokens, reference), "seconds": round(seconds, 1)}
    if same_types:
        path, _ = ours(parent, mix, store, {**common, "types": "mix"})
        details["same_types"] = divergence(path, tokens, reference)
    rival = work / f"peer-{mix}.gguf"
    calibration = load_calibration(common["calibration"], checkpoint, tokens=common["tokens"])
    recorded = Recorded(find_model(str(parent), store).digest, calibration.digest, layout_of(checkpoint))
    info = read_gguf(parent)
    peer(info, mix, mean_squares(info, checkpoint, recorded), rival)
    details["peer"] = divergence(rival, tokens, reference)
    mine, other = details["ours"], details["peer"]
    ratio = mine["kl"] / other["kl"]
    line = {
        "name": f"gguf_quality {mix}",
        "ours": mine["kl"],
        "peer": other["kl"],
        "unit": "nats of KL per token",
        "ratio": round(ratio, 3),
        "goal": GOALS[mix],
        "holds": ratio <= GOALS[mix] and mine["bytes"] <= other["bytes"],
        "details": details | {"tokens": len(tokens) * WINDOW},
    }
    print(json.dumps(line), flush=True)
    return line


if __name__ == "__main__":
    main()
