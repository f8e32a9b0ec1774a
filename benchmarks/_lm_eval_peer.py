"""The lm-evaluation-harness side of `eval_lm_eval.py`: run by a Python that has lm-eval, transformers and gguf.

Dequantizes the same GGUF file, evaluates the given task with the `hf` backend and prints one JSON line: seconds
to load, seconds of evaluation, and for each row the log-probabilities of the choices.
"""

import argparse
import json
import time
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="holds task.yaml")
    parser.add_argument("--batch", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), required=True, help="of weights and activations")
    arguments = parser.parse_args()
    import torch
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager
    from transformers import AutoModelForCausalLM, AutoTokenizer

    torch.set_num_threads(arguments.threads)
    began = time.perf_counter()
    source = {"pretrained_model_name_or_path": str(arguments.gguf.parent), "gguf_file": arguments.gguf.name}
    weights = AutoModelForCausalLM.from_pretrained(**source, dtype=getattr(torch, arguments.dtype)).eval()
    tokenizer = AutoTokenizer.from_pretrained(**source)
    setup = {"device": "cpu", "batch_size": arguments.batch, "softmax_dtype": "float32"}  # bf16 would make ties
    model = HFLM(pretrained=weights, tokenizer=tokenizer, **setup)
    tasks = TaskManager(include_path=str(arguments.folder), include_defaults=False)
    loaded = time.perf_counter()
    found = simple_evaluate(model=model, tasks=["rows"], task_manager=tasks, bootstrap_iters=0, log_samples=True)
    seconds = time.perf_counter() - loaded
    samples = sorted(found["samples"]["rows"], key=lambda sample: sample["doc_id"])
    rows = [[float(choice[0]) for choice in sample["filtered_resps"]] for sample in samples]
    print(json.dumps({"load_s": loaded - began, "seconds": seconds, "rows": rows}))


if __name__ == "__main__":
    main()
