"""What a walk leaves in small forms: reloads as the dense model does, in every family; resumes; is not packed twice."""

import json
import os
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from transformers import AutoModelForCausalLM

from sizewise.core.errors import UsageError
from sizewise.load.checkpoint.folder import inspect_checkpoint
from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.checkpoint.tensors import TensorSource, save_tensors
from sizewise.load.checkpoint.weights import load
from sizewise.load.layers import layout_of
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.methods.hqq import hqq
from sizewise.make.methods.int8 import int8
from sizewise.make.methods.lut import lut
from sizewise.make.methods.rtn import rtn
from sizewise.make.methods.svd import svd
from sizewise.make.treat import Treatment
from sizewise.make.walk import walk

Family = Callable[[str], Path]

IDS = torch.arange(3, 43)[None]


def logits_of(folder: Path, dtype: str = "float32") -> torch.Tensor:
    files = {path.name: str(path) for path in folder.iterdir() if path.is_file()}
    model = load("x", "checkpoint", files, dtype=dtype, device="cpu", context=None, parameters=None).model
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def every_form() -> Treatment:
    """A method that gives each matrix another form than the one before it; LLM.int8() apart, which rounds inputs."""
    turn = count()

    def mixed(weight: torch.Tensor) -> Any:
        loud = torch.ones(weight.shape[1])
        return (
            lambda: rtn(weight, bits=4, group=16),
            lambda: hqq(weight, bits=3, group=16),
            lambda: svd(weight, keep=0.5),
            lambda: lut(weight, loud, bits=2, steps=3),
            lambda: weight,
        )[next(turn) % 5]()

    return Treatment("mixed", mixed, {})


def dense_twin(packed: Path, base: Path, folder: Path) -> Path:
    """The same model with every matrix written out."""
    source = DenseSource(packed)
    save_tensors(folder, ((name, source.get(name)) for name in source))
    for path in base.iterdir():
        if path.suffix != ".safetensors":
            (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("which", FAMILIES)
def test_it_reloads_as_the_dense_model_does(which: str, family: Family, tmp_path: Path) -> None:
    base = family(which)
    _, tally = walk(base, tmp_path / "made", every_form())
    twin = dense_twin(tmp_path / "made", base, tmp_path / "twin")
    packed, dense = logits_of(tmp_path / "made"), logits_of(twin)
    torch.testing.assert_close(packed, dense, rtol=1e-4, atol=1e-3)
    assert not torch.equal(dense, logits_of(base))
    info = inspect_checkpoint(tmp_path / "made")
    assert len(info.packed) == len(tally.forms)
    assert info.parameters == (inspect_checkpoint(base).parameters or 0) - tally.saved_parameters
    assert info.size_bytes < inspect_checkpoint(twin).size_bytes
    assert "sizewise's own form" in tally.note
    outer, before = TensorSource(tmp_path / "made"), TensorSource(base)
    layout = layout_of(base)
    assert torch.equal(outer.get(f"{layout.embedding}.weight"), before.get(f"{layout.embedding}.weight"))


@pytest.mark.parametrize("which", ["llama", "phimoe", "gpt2"])
def test_int8_reloads_near_to_what_it_stands_for(which: str, family: Family, tmp_path: Path) -> None:
    loud = torch.ones(1)

    def eight(weight: torch.Tensor) -> Any:
        return int8(weight, torch.where(torch.arange(weight.shape[1]) == 3, 9 * loud, loud), threshold=6.0)

    walk(family(which), tmp_path / "made", Treatment("eight", eight, {}))
    twin = dense_twin(tmp_path / "made", family(which), tmp_path / "twin")
    packed, dense = logits_of(tmp_path / "made").log_softmax(-1), logits_of(twin).log_softmax(-1)
    assert float((dense.exp() * (dense - packed)).sum(-1).median()) < 1e-3


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("bits", [3, 4])
def test_stock_transformers_reads_the_integers(bits: int, symmetric: bool, family: Family, tmp_path: Path) -> None:
    pytest.importorskip("compressed_tensors")
    options = {"bits": bits, "group": 16, "symmetric": symmetric}
    _, tally = walk(family("llama"), tmp_path / "made", Treatment("rtn", rtn, options))
    assert "compressed-tensors" in tally.note
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "made", dtype=torch.bfloat16)
    with torch.no_grad():
        assert torch.equal(theirs(input_ids=IDS).logits, logits_of(tmp_path / "made", "bfloat16"))


class Killed(Exception):
    """The process ends here."""


def test_a_killed_walk_goes_on(family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, treatment = family("llama"), Treatment("rtn", rtn, {"group": 16})
    whole, _ = walk(base, tmp_path / "whole", treatment)
    calls = count()

    def killed(weight: torch.Tensor, *, group: int) -> Any:
        if next(calls) == 9:
            raise Killed
        return rtn(weight, group=group)

    with pytest.raises(Killed):
        walk(base, tmp_path / "made", Treatment("rtn", killed, {"group": 16}))
    assert json.loads((tmp_path / "made" / "walk.json").read_text())["blocks"] == 1
    assert not (tmp_path / "made" / "config.json").exists()
    made, tally = walk(base, tmp_path / "made", treatment)
    assert {name: path.read_bytes() for name, path in made.items()} == {
        name: path.read_bytes() for name, path in whole.items()
    }
    assert len(tally.forms) == len(layout_of(base).linears)


def test_a_walk_killed_while_it_names_its_files_begins_anew(family: Family, tmp_path: Path) -> None:
    base, treatment = family("llama"), Treatment("rtn", rtn, {"group": 16})
    files, tally = walk(base, tmp_path / "made", treatment)
    before = {name: path.read_bytes() for name, path in files.items()}
    (tmp_path / "made" / "walk.json").write_text(json.dumps({"blocks": 2, "forms": tally.forms}))
    os.unlink(tmp_path / "made" / "config.json")
    again, _ = walk(base, tmp_path / "made", treatment)
    assert {name: path.read_bytes() for name, path in again.items()} == before


def test_what_is_packed_is_not_packed_again(family: Family, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    first = make("rtn", str(family("llama")), name="small", options={"group": 16}, store=store)
    assert first.quantization == "rtn-4"
    assert "compressed-tensors" in first.lineage.note
    assert first.parameters == inspect_checkpoint(family("llama")).parameters
    with pytest.raises(UsageError, match=r"packed in rtn-4: start from what it was made from"):
        make("svd", "small", name="smaller", store=store)
