"""Embedding and head in small forms: every family computes with them what its stock class does with dense ones."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from networks import load as load_stock
from networks import logits

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.events import Progress
from sizewise.core.model import Model
from sizewise.load.checkpoint.packed_modules import Looked, Small
from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.checkpoint.tensors import TensorSource, save_tensors
from sizewise.load.checkpoint.weights import load
from sizewise.load.doors import link_files
from sizewise.load.layers import layout_of
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.calibration import load_calibration
from sizewise.make.hessian import output_error
from sizewise.make.outer import outer_blocks
from sizewise.measure.meters.flops import flops

Family = Callable[[str], Path]
OPTIONS: dict[str, dict[str, Any]] = {
    "rtn": {"group": 16},
    "gptq": {"group": 16},
    "awq": {"group": 16},
    "lut": {"bits": 3},
    "int8": {},
    "svd": {"keep": 0.7},
}
SMALL_TEXT: dict[str, Any] = {"tokens": 240, "window": 40}
CALIBRATED = ("gptq", "awq", "int8", "lut")


def made(method: str, folder: Path, parts: str = "all", **more: Any) -> Model:
    options = OPTIONS.get(method, {}) | (SMALL_TEXT if method in CALIBRATED else {}) | {"parts": parts} | more
    return make(method, str(folder), name="small", options=options, store=Store())


def opened(model: Model) -> Any:
    files = {title: str(path) for title, path in model.files.items()}
    sizes = {"context": None, "parameters": model.parameters}
    return load(model.name, "checkpoint", files, dtype="float32", device="cpu", **sizes).model


def unpacked(model: Model, base: Path, target: Path) -> Path:
    """The checkpoint that its small forms stand for, in full precision."""
    packed = link_files(model.files, target / "packed")
    source, dense = DenseSource(packed), target / "dense"
    whole = {name: source.get(name) for name in source}
    for module, matrix in source.matrices.items():
        form = source.form(module).dense()
        whole[f"{module}.weight"] = (form.T if matrix.spec.transposed else form).contiguous()
    dense.mkdir()
    save_tensors(dense, whole.items())
    config = json.loads((base / "config.json").read_text())
    (dense / "config.json").write_text(json.dumps(config))
    return dense


@pytest.mark.parametrize("which", FAMILIES)
@pytest.mark.parametrize("method", OPTIONS)
def test_small_embeddings_compute_what_dense_ones_do(method: str, which: str, family: Family, tmp_path: Path) -> None:
    base = family(which)
    model, layout = made(method, base), layout_of(base)
    network = opened(model)
    assert isinstance(network.get_input_embeddings(), Looked)
    head = network.get_output_embeddings()
    assert isinstance(head, Small)
    assert (head is network.get_input_embeddings().small) == layout.tied
    assert torch.allclose(logits(network), logits(load_stock(unpacked(model, base, tmp_path))), atol=2e-3, rtol=1e-3)
    assert "sizewise's own form" in model.lineage.note
    dense = {f"{layout.embedding}.weight", "lm_head.weight"}
    assert not dense & set(TensorSource(tmp_path / "packed"))


@pytest.mark.parametrize("which", ["llama", "qwen2", "gpt2"])
def test_of_a_factorized_embedding_one_factor_is_looked_up(which: str, family: Family, tmp_path: Path) -> None:
    base = family(which)
    model, layout, config = made("svd", base), layout_of(base), json.loads((base / "config.json").read_text())
    source = TensorSource(link_files(model.files, tmp_path / "made"))
    looked_up = {layout.positions and f"{layout.positions}.weight"}
    looked_up |= set() if layout.tied else {f"{layout.embedding}.weight_left"}
    multiplied = sum(math.prod(source.shape(name)) for name in source if name not in looked_up)
    attention = 4 * len(layout.blocks) * 32 * (config.get("hidden_size") or config["n_embd"])
    assert flops(model, positions=32).value == pytest.approx(2 * multiplied + attention)


@pytest.mark.parametrize("which", ["llama", "qwen2", "gpt2"])
def test_only_what_is_asked_for_changes(which: str, family: Family) -> None:
    base = family(which)
    layout, before = layout_of(base), TensorSource(base)
    model = make("magnitude", str(base), name="small", options={"sparsity": 0.5, "parts": "head"}, store=Store())
    after = TensorSource(link_files(model.files, Path(next(iter(model.files.values()))).parent / "links"))
    head = f"{layout.head or layout.embedding}.weight"
    assert {name for name in before if not torch.equal(before.get(name), after.get(name))} == {head}
    assert int(after.get(head).count_nonzero()) == pytest.approx(after.get(head).numel() / 2, rel=0.01)


@pytest.mark.parametrize("sequential", [False, True])
def test_errors_of_the_head_are_made_up_for_where_it_is_used(sequential: bool, family: Family, tmp_path: Path) -> None:
    """GPTQ on a head changes its outputs less than rounding does, on the calibration text."""
    base = family("llama")
    found = {}
    for method in ("rtn", "gptq"):
        more = {"sequential": sequential, **SMALL_TEXT} if method == "gptq" else {}
        model = made(method, base, "head", bits=3, **more)
        source = DenseSource(link_files(model.files, tmp_path / method))
        found[method] = source.form("lm_head").dense()
    inputs: list[torch.Tensor] = []
    network = load_stock(base)
    network.lm_head.register_forward_pre_hook(lambda _, given: inputs.append(given[0].reshape(-1, 64).double()))
    logits(network, load_calibration(None, base, **SMALL_TEXT).windows.long())
    hessian = inputs[0].T @ inputs[0] / len(inputs[0])
    weight = TensorSource(base).get("lm_head.weight").double()
    errors = {name: output_error(weight - dense.double(), hessian) for name, dense in found.items()}
    assert errors["gptq"] < 0.9 * errors["rtn"]


@pytest.mark.parametrize("sequential", [False, True])
@pytest.mark.parametrize("stop", [0, 1])
def test_interrupted_outside_the_blocks_it_goes_on_there(sequential: bool, stop: int, family: Family) -> None:
    base, options = str(family("llama")), {"bits": 3, "group": 16, "parts": "all", "sequential": sequential}
    place, heard = len(layout_of(base).blocks) + stop, []

    def interrupt(progress: Progress) -> None:
        heard.append((progress.what, progress.done))
        if heard.count(("gptq", place)) == 1 and heard[-1] == ("gptq", place):
            raise KeyboardInterrupt

    settings = {**options, **SMALL_TEXT}
    with pytest.raises(KeyboardInterrupt):
        make("gptq", base, name="small", options=settings, store=Store(), listen=interrupt)
    heard.append(("again", 0))
    made = make("gptq", base, name="small", options=settings, store=Store(), listen=interrupt)
    after = heard[heard.index(("again", 0)) :]
    assert next(done for what, done in after if what == "gptq") == place
    whole = make("gptq", base, name="whole", options=settings, store=Store())
    assert made.digest == whole.digest


def test_a_budget_counts_them(family: Family) -> None:
    base = family("llama")
    model = made("rtn", base, budget=4.5, **SMALL_TEXT)
    assert model.lineage.figures["weight_bits"] <= 4.5
    names = {
        linear.name for block in outer_blocks(layout_of(base), TensorSource(base), ["head"]) for linear in block.linears
    }
    assert names == {"lm_head"}
    count = len(layout_of(base).linears) + 2
    assert sum(model.lineage.figures["matrices_by_bits"].values()) == count


def test_a_typo_and_what_has_no_gradients_are_refused(family: Family) -> None:
    with pytest.raises(UnknownName, match="embeding"):
        made("rtn", family("llama"), "embeding")
    with pytest.raises(UsageError, match="obd has no gradients of embedding and head"):
        make("obd", str(family("llama")), name="small", options={"parts": "head", **SMALL_TEXT}, store=Store())
