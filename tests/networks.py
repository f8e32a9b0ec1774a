"""Networks before and after a structure method: logits of the real classes, results written as checkpoints."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from sizewise.load.checkpoint.tensors import save_tensors
from sizewise.make.packed import Reshaped

IDS = torch.randint(4, 300, (2, 24), generator=torch.Generator().manual_seed(7))


def load(folder: Path) -> Any:
    """The model of a folder in float32."""
    from transformers import AutoModelForCausalLM

    model, report = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert not report["mismatched_keys"]
    return model.eval()


def logits(model: Any, ids: torch.Tensor = IDS) -> torch.Tensor:
    """Of the fixed tokens."""
    with torch.no_grad():
        return torch.as_tensor(model(input_ids=ids).logits)


def write(made: Reshaped, base: Path, folder: Path) -> Path:
    """The result as a checkpoint beside the base's tokenizer."""
    shutil.copytree(base, folder)
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    save_tensors(folder, made.tensors)
    (folder / "config.json").write_text(json.dumps(dict(made.config)))
    return folder


def config_of(folder: Path) -> dict[str, Any]:
    """Its config.json."""
    found: dict[str, Any] = json.loads((folder / "config.json").read_text())
    return found
