"""The doors between checkpoints and GGUF files, from the command line: what passes, and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import write_family
from safetensors.torch import load_file

from sizewise.core.model import Model
from sizewise.load.models import find_model, list_models
from sizewise.load.store.store import Store


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_family("llama", tmp_path_factory.mktemp("doors") / "plain")


@pytest.fixture
def spoiled(checkpoint: Path, tmp_path: Path) -> Path:
    """Its tokenizer writes everything in lower case, which a GGUF cannot say: no export of it is the same model."""
    folder = Path(shutil.copytree(checkpoint, tmp_path / "spoiled"))
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["normalizer"]["normalizers"].insert(0, {"type": "Lowercase"})
    path.write_text(json.dumps(tokenizer))
    return folder


@pytest.fixture
def sizewise(tmp_path: Path) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The program with a store of its own; it runs in `tmp_path`."""

    def run(*arguments: str) -> "subprocess.CompletedProcess[str]":
        environment = os.environ | {"SIZEWISE_MODELS": str(tmp_path / "store")}
        command = [sys.executable, "-m", "sizewise", *arguments]
        return subprocess.run(
            command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240
        )

    return run


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def _refused(done: "subprocess.CompletedProcess[str]", store: Store) -> None:
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "is not the same model as" in line
    assert "texts have other tokens" in line
    assert list_models(store) == []
    left = [path for path in store.layout.incoming.rglob("*") if path.is_file()]
    assert left == []


def test_a_spoiled_copy_is_refused_by_make(spoiled: Path, sizewise: Run, tmp_path: Path) -> None:
    done = sizewise("make", "export-gguf", str(spoiled), "--name", "copy", "--account", "none")
    _refused(done, Store(tmp_path / "store"))


def test_a_spoiled_copy_is_refused_by_create(spoiled: Path, sizewise: Run, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {spoiled}\n")
    _refused(sizewise("create", "copy", "-q", "q8_0"), Store(tmp_path / "store"))


def test_there_and_back(checkpoint: Path, sizewise: Run, tmp_path: Path) -> None:
    """Out to a GGUF and in again: the weights are the same numbers; packed on the way, the lineage says so."""
    store = Store(tmp_path / "store")
    for arguments in (("export-gguf", str(checkpoint), "--name", "out"), ("import-gguf", "out", "--name", "back")):
        done = sizewise("make", *arguments, "--account", "none")
        assert done.returncode == 0, done.stderr
    out, back = find_model("out", store), find_model("back", store)
    assert (out.kind, out.quantization, back.kind) == ("gguf", "F32", "checkpoint")
    for model in (out, back):
        assert model.lineage.figures["parity"]["largest_logprob_difference"] < 0.01
    before, after = load_file(checkpoint / "model.safetensors"), _tensors(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_a_mix_of_types_is_packed_after_the_comparison(checkpoint: Path, sizewise: Run, tmp_path: Path) -> None:
    done = sizewise("make", "export-gguf", str(checkpoint), "--name", "small", "--type", "Q4_K_M", "--account", "none")
    assert done.returncode == 0, done.stderr
    small = find_model("small", Store(tmp_path / "store"))
    assert small.quantization == "Q4_K_M"
    assert small.lineage.figures["parity"]["bound"] == 0.01  # of the unpacked file, not of the packed one
    assert small.size_bytes < find_model(str(checkpoint)).size_bytes / 3


def test_create_packs_a_checkpoint(checkpoint: Path, sizewise: Run, tmp_path: Path) -> None:
    (tmp_path / "Modelfile").write_text(f"FROM {checkpoint}\nSYSTEM Be brief.\n")
    done = sizewise("create", "packed", "-q", "q8_0")
    assert done.returncode == 0, done.stderr
    packed = find_model("packed", Store(tmp_path / "store"))
    assert (packed.kind, packed.quantization, packed.system) == ("gguf", "Q8_0", "Be brief.")
    assert packed.lineage.recipe is not None
    assert packed.lineage.recipe.steps[0].method == "export-gguf"


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, path in model.files.items():
        if name.endswith(".safetensors"):
            found |= load_file(path)
    return found
