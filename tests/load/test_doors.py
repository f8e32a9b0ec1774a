"""The doors between checkpoints and GGUF files, from the command line: what passes, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from families import write_family
from safetensors.torch import load_file

from sizewise.cli.main import run
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
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    monkeypatch.setenv("SIZEWISE_MODELS", str(tmp_path / "store"))
    monkeypatch.chdir(tmp_path)
    return Store()


def _last_line(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code of a command, and the last line that it says."""
    code = run(arguments)
    return code, capsys.readouterr().err.strip().splitlines()[-1]


@pytest.mark.parametrize(
    "arguments", [["make", "export-gguf", "spoiled", "--name", "copy"], ["create", "copy", "-q", "q8_0"]]
)
def test_a_spoiled_copy_is_refused(
    spoiled: Path, store: Store, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    Path("Modelfile").write_text(f"FROM {spoiled}\n")
    code, line = _last_line([str(spoiled) if word == "spoiled" else word for word in arguments], capsys)
    assert code == 2
    assert re.match("sizewise: .* is not the same model as .* texts have other tokens", line)
    assert list_models(store) == []
    assert [path for path in store.layout.incoming.rglob("*") if path.is_file()] == []


def test_there_and_back(checkpoint: Path, store: Store) -> None:
    """Out to a GGUF and in again: the weights are the same numbers."""
    assert run(["make", "export-gguf", str(checkpoint), "--name", "out", "--account", "none"]) == 0
    assert run(["make", "import-gguf", "out", "--name", "back", "--account", "none"]) == 0
    out, back = find_model("out", store), find_model("back", store)
    assert (out.kind, out.quantization, back.kind) == ("gguf", "F32", "checkpoint")
    for model in (out, back):
        assert model.lineage.figures["parity"]["largest_logprob_difference"] < 0.01
    before, after = load_file(checkpoint / "model.safetensors"), _tensors(back)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name].float(), after[name].float()) for name in before)


def test_a_quantized_checkpoint_is_exported_on_purpose_only(
    checkpoint: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    """Its weights go out as what they stand for, and the comparison holds for them too."""
    assert run(["make", "rtn", str(checkpoint), "--name", "small", "--group", "32", "--account", "none"]) == 0
    command = ["make", "export-gguf", "small", "--name", "out", "--account", "none"]
    code, line = _last_line(command, capsys)
    assert code == 2
    assert line.endswith("packed as int4-g32: export the model that it was made from, or pass --dequantize")
    assert run([*command, "--dequantize"]) == 0
    out = find_model("out", store)
    assert out.lineage.note.endswith("dequantized from int4-g32")
    assert out.lineage.figures["parity"]["largest_logprob_difference"] < 0.01


def test_create_packs_a_checkpoint_after_the_comparison(checkpoint: Path, store: Store) -> None:
    Path("Modelfile").write_text(f"FROM {checkpoint}\nSYSTEM Be brief.\n")
    assert run(["create", "packed", "-q", "q8_0"]) == 0
    packed = find_model("packed", store)
    assert (packed.kind, packed.quantization, packed.system) == ("gguf", "Q8_0", "Be brief.")
    assert packed.size_bytes < find_model(str(checkpoint)).size_bytes / 3
    assert packed.lineage.recipe is not None
    assert packed.lineage.recipe.steps[0].method == "export-gguf"


def _tensors(model: Model) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, path in model.files.items():
        if name.endswith(".safetensors"):
            found |= load_file(path)
    return found
