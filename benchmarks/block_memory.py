"""Most memory that pruning and then quantizing a checkpoint takes, when the checkpoint is far larger than that.

Design: one block's weights at a time, hidden states instead of a whole network, statistics on disk. The checkpoint is a
Llama of random weights made for the purpose; its tokenizer knows bytes alone. What is counted is the resident memory of
the process and its children, sampled while `sizewise make RECIPE` runs, pages of mapped files included. The account of
what was made is left out: for that, engines open the whole of it and of what it was made from.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

GOAL_BYTES = 1.5e9
WIDTH, FFN, HEADS, KV_HEADS = 2048, 4096, 32, 8
RECIPE = """
[[step]]
method = "wanda"
tokens = {tokens}
window = 256

[[step]]
method = "gptq"
tokens = {tokens}
window = 256
"""


def write_checkpoint(folder: Path, size_bytes: float) -> int:
    """A random Llama of about that many bytes, block by block; returns the bytes of its weights."""
    import torch
    from safetensors.torch import save_file
    from transformers import LlamaConfig

    values = KV_HEADS * WIDTH // HEADS
    shapes: dict[str, tuple[int, ...]] = {"self_attn.q_proj": (WIDTH, WIDTH), "self_attn.k_proj": (values, WIDTH)}
    shapes |= {"self_attn.v_proj": (values, WIDTH), "self_attn.o_proj": (WIDTH, WIDTH)}
    shapes |= {"mlp.gate_proj": (FFN, WIDTH), "mlp.up_proj": (FFN, WIDTH), "mlp.down_proj": (WIDTH, FFN)}
    blocks = max(1, round(size_bytes / 2 / sum(math.prod(shape) for shape in shapes.values())))
    vocabulary, total = write_tokenizer(folder), 0
    index: dict[str, str] = {}
    parts: list[dict[str, tuple[int, ...]]] = [
        {"model.embed_tokens.weight": (vocabulary, WIDTH), "model.norm.weight": (WIDTH,)}
    ]
    for number in range(blocks):
        prefix = f"model.layers.{number}."
        norms = dict.fromkeys(("input_layernorm", "post_attention_layernorm"), (WIDTH,))
        parts.append({f"{prefix}{name}.weight": shape for name, shape in {**shapes, **norms}.items()})
    for number, part in enumerate(parts):
        draw = torch.Generator().manual_seed(number)
        tensors = {name: (torch.randn(shape, generator=draw) * 0.02 if len(shape) > 1 else torch.ones(shape)).bfloat16()
                   for name, shape in part.items()}  # fmt: skip
        title = f"model-{number + 1:05d}-of-{len(parts):05d}.safetensors"
        save_file(tensors, folder / title, {"format": "pt"})
        index |= dict.fromkeys(tensors, title)
        total += sum(tensor.nbytes for tensor in tensors.values())
    body = {"metadata": {"total_size": total}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(body))
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=WIDTH, intermediate_size=FFN, num_hidden_layers=blocks,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, tie_word_embeddings=True, dtype="bfloat16",
        architectures=["LlamaForCausalLM"],
    )  # fmt: skip
    config.save_pretrained(folder)
    return total


def write_tokenizer(folder: Path) -> int:
    """A tokenizer of bytes; returns the number of its tokens."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: place for place, letter in enumerate(["</s>", *letters])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>").save_pretrained(folder)
    return len(letters) + 1


def resident(pid: int) -> int:
    """Bytes that a process and its children have in memory; 0 once it is gone."""
    try:
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE") + sum(resident(int(child)) for child in children)


def main() -> None:
    """Make the checkpoint, watch the command, print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--gigabytes", type=float, default=4.0, help="size of the checkpoint")
    parser.add_argument("--tokens", type=int, default=2048, help="of calibration text")
    parser.add_argument("--folder", type=Path, help="where there is room for four times as much; else the system's own")
    told = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=told.folder) as place:
        base, recipe, peak = Path(place, "base"), Path(place, "chain.toml"), 0
        base.mkdir()
        size = write_checkpoint(base, told.gigabytes * 1e9)
        recipe.write_text(RECIPE.format(tokens=told.tokens))
        environment = os.environ | {"SIZEWISE_HOME": str(Path(place, "home"))}
        command = [sys.executable, "-m", "sizewise", "make", str(recipe), str(base), "--name", "small", "--json"]
        command += ["--account", "none"]
        began = time.perf_counter()
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        while process.poll() is None:
            peak = max(peak, resident(process.pid))
            time.sleep(0.02)
        seconds, output = time.perf_counter() - began, process.communicate()[0]
        if process.returncode:
            sys.exit(f"sizewise make left with {process.returncode}")
        made = json.loads(output)
    result = {
        "name": "block_memory",
        "ours": round(peak / 1e9, 3),
        "peer": round(size / 1e9, 3),
        "unit": "GB resident at most, pruned and quantized; peer: the weights alone",
        "ratio": round(peak / size, 3),
        "goal": f"<= {GOAL_BYTES / 1e9} GB",
        "holds": peak <= GOAL_BYTES,
        "seconds": round(seconds, 1),
        "made_gb": round(made["bytes"] / 1e9, 3),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main()
