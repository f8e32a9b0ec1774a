"""The gate between a model and its copy: a faithful copy passes, each known way to spoil one is caught and named."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import write_family
from safetensors.torch import load_file, save_file
from tiny_checkpoint import as_model

from sizewise.core.errors import BadModel
from sizewise.core.model import Model
from sizewise.load.checkpoint.export_gguf import export_gguf
from sizewise.load.models import find_model
from sizewise.load.parity import Observed, compare, observe, require_parity


@pytest.fixture(scope="module")
def seen(parent: Model) -> Observed:
    return observe(parent, threads=2)


@pytest.fixture(scope="module")
def parent(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """A llama with SentencePiece-like tokens, grouped heads and a BOS."""
    return as_model(write_family("llama", tmp_path_factory.mktemp("parity") / "parent"))


def _exported(folder: Path) -> Model:
    return find_model(str(export_gguf(folder, folder.parent / f"{folder.name}.gguf", precision="F32").path))


def _spoiled(parent: Model, folder: Path, spoil: Callable[[Path], None]) -> Model:
    """The export of a copy of the parent that was changed on the way."""
    folder.mkdir()
    for name, path in parent.files.items():
        (folder / name).write_bytes(path.read_bytes())
    spoil(folder)
    return _exported(folder)


def test_a_faithful_copy_passes(parent: Model, tmp_path: Path) -> None:
    found = require_parity(parent, _spoiled(parent, tmp_path / "same", lambda folder: None), threads=2)
    assert found.positions > 100
    assert found.worst < 1e-3
    assert found.as_json()["bound"] == 0.01


def _swap_q_and_k(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    name = "model.layers.0.self_attn.q_proj.weight"
    tensors[name] = tensors[name].reshape(4, 2, 8, 64).transpose(1, 2).reshape(64, 64).contiguous()
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def _lose_template(folder: Path) -> None:
    (folder / "chat_template.jinja").unlink()


def _other_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("assistant:", "assistant :"))


def _other_rotation(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["rope_parameters"]["rope_theta"] = 500.0
    (folder / "config.json").write_text(json.dumps(config))


def _lose_bos(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["post_processor"] = None
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def _lose_a_merge(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    tokenizer["model"]["merges"] = tokenizer["model"]["merges"][::-1]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (_swap_q_and_k, "log-probabilities"),
        (_lose_template, "template is missing"),
        (_other_template, "template writes"),
        (_other_rotation, "log-probabilities"),
        (_lose_bos, "no BOS is put in front"),
        (_lose_a_merge, "have other tokens"),
    ],
)
def test_a_spoiled_copy_is_refused(
    parent: Model, seen: Observed, tmp_path: Path, spoil: Callable[[Path], None], says: str
) -> None:
    copy = _spoiled(parent, tmp_path / "spoiled", spoil)
    with pytest.raises(BadModel, match=says):
        require_parity(seen, copy, threads=2)


def test_other_answers_are_named_too(parent: Model, seen: Observed, tmp_path: Path) -> None:
    def negate(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        tensors["lm_head.weight"] = -tensors["lm_head.weight"]
        save_file(tensors, folder / "model.safetensors", {"format": "pt"})

    copy = _spoiled(parent, tmp_path / "negated", negate)
    found = compare(seen, copy, threads=2)
    assert any("log-probabilities" in line for line in found.differences)
    assert any("greedy answer 1 differs" in line for line in found.differences)
    assert torch.isfinite(torch.tensor(found.worst))
