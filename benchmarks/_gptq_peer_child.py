"""The peer's side of `gptq_peer.py`: run by a Python that has llm-compressor.

Loads a checkpoint, quantizes it with GPTQ or AWQ on the given token windows, saves it packed as compressed-tensors and
prints one JSON line: seconds of each of the three, and the versions that ran.
"""

import argparse
import itertools
import json
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", required=True)
    parser.add_argument("--windows", type=Path, required=True, help="JSON: a list of lists of token ids")
    parser.add_argument("--out", required=True)
    parser.add_argument("--method", choices=("gptq", "awq"), required=True)
    parser.add_argument("--bits", type=int, required=True)
    parser.add_argument("--group", type=int, required=True)
    parser.add_argument("--symmetric", action="store_true")
    parser.add_argument("--observer", required=True, help="how grids are fitted")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True, help="of weights and activations")
    parser.add_argument("--threads", type=int, required=True)
    told = parser.parse_args()
    import torch
    from llmcompressor import oneshot
    from llmcompressor.pipelines.cache import IntermediatesCache
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(told.threads)
    if not torch.accelerator.is_available():  # its AWQ pins memory for one, and torch refuses that where there is none
        IntermediatesCache.pin_memory = lambda *_: None
    recipe = _recipe(told)
    windows = [_row(ids) for ids in json.loads(told.windows.read_text(encoding="utf-8"))]
    times = [time.perf_counter()]
    model = AutoModelForCausalLM.from_pretrained(told.checkpoint, dtype=getattr(torch, told.dtype)).eval()
    times.append(time.perf_counter())
    data: Any = torch.utils.data.DataLoader(windows, batch_size=1, collate_fn=lambda rows: rows[0])  # type: ignore[arg-type]
    oneshot(model=model, dataset=data, recipe=recipe, num_calibration_samples=len(windows))
    times.append(time.perf_counter())
    model.save_pretrained(told.out, save_compressed=True)
    times.append(time.perf_counter())
    AutoTokenizer.from_pretrained(told.checkpoint).save_pretrained(told.out)
    load, quantize, save = (round(after - before, 2) for before, after in itertools.pairwise(times))
    versions = {name: version(name) for name in ("llmcompressor", "compressed-tensors", "transformers", "torch")}
    print(json.dumps({"load_s": load, "quantize_s": quantize, "save_s": save, "versions": versions}))


def _row(ids: list[int]) -> dict[str, Any]:
    """One window as the network takes it."""
    import torch

    tokens = torch.tensor([ids])
    return {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}


def _recipe(told: argparse.Namespace) -> Any:
    """All linear layers but the head, whatever else as the peer has it by default."""
    from llmcompressor.modifiers.gptq import GPTQModifier
    from llmcompressor.modifiers.quantization import QuantizationModifier
    from llmcompressor.modifiers.transform.awq import AWQModifier

    weights = {"num_bits": told.bits, "type": "int", "symmetric": told.symmetric, "strategy": "group"}
    weights |= {"group_size": told.group, "observer": told.observer}
    scheme = {"config_groups": {"all": {"targets": ["Linear"], "weights": weights}}, "ignore": ["lm_head"]}
    return GPTQModifier(**scheme) if told.method == "gptq" else [AWQModifier(), QuantizationModifier(**scheme)]


if __name__ == "__main__":
    main()
