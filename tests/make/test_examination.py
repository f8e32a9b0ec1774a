"""Every weight and structure method, present and future, on a tiny model of every family."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from sizewise.core.errors import UsageError
from sizewise.core.model import Model
from sizewise.core.params import schema_of
from sizewise.load.checkpoint.weights import load
from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.method import kind_of, methods, needs_calibration, purpose_of

Family = Callable[[str], Path]

NAMES = tuple(name for name in methods() if kind_of(methods().get(name)) in ("weight", "structure"))
# The options with which a method must change nothing at all.
OFF: dict[str, dict[str, Any]] = {
    **{name: {"sparsity": 0.0} for name in ("magnitude", "obd", "wanda", "sparsegpt")},
    **{name: {"bits": 16} for name in ("rtn", "gptq", "awq", "hqq", "lut")},
    **{name: {"keep": 1.0} for name in ("svd", "asvd", "svd-llm")},
    **{name: {"share": 0.0} for name in ("depth", "slicegpt")},
    "int8": {"threshold": 0.0},
    "width": {"ffn": 0.0},
    "vocab": {"minimum": 0},
}
# What makes a tiny run meaningful where defaults are made for real models.
TINY: dict[str, dict[str, Any]] = {
    **{name: {"group": 16} for name in ("rtn", "gptq", "awq", "hqq")},
    "depth": {"share": 0.5},
    "width": {"ffn": 0.34, "multiple": 16},
    "slicegpt": {"share": 0.25, "multiple": 16},
}
# Families that a method refuses, and says so.
REFUSED: dict[str, frozenset[str]] = {
    "width": frozenset({"phimoe"}),
    "slicegpt": frozenset({"phi", "phi3.5", "phimoe", "falcon", "falcon-40b", "gpt2", "opt", "gemma2", "gemma3_text"}),
}
SMALL_TEXT = {"tokens": 240, "window": 40}


def pairs(*families: str) -> pytest.MarkDecorator:
    """Every method with each of these families that it does not refuse."""
    chosen = [(name, which) for name in NAMES for which in families if which not in REFUSED.get(name, ())]
    return pytest.mark.parametrize(("name", "which"), chosen)


def options_for(name: str, more: dict[str, Any] | None = None) -> dict[str, Any]:
    known = {parameter.name for parameter in schema_of(methods().get(name))}
    given = {key: value for key, value in (TINY.get(name, {}) | (more or {})).items() if key in known}
    return given | (SMALL_TEXT if needs_calibration(methods().get(name)) else {})


@pytest.fixture(scope="module")
def shared_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shared")


@pytest.fixture
def run(family: Family, shared_home: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Model]:
    """Make a model of a family; statistics are gathered once for each of them."""
    monkeypatch.setenv("SIZEWISE_HOME", str(shared_home))

    @cache
    def made(name: str, which: str) -> Model:
        return fresh(name, which, Store(shared_home / "store"))

    def fresh(name: str, which: str, store: Store, more: dict[str, Any] | None = None) -> Model:
        options = options_for(name, more)
        return make(name, str(family(which)), name=f"{name}-{which}", options=options, seed=1, store=store)

    def either(name: str, which: str, store: Store | None = None, more: dict[str, Any] | None = None) -> Model:
        return made(name, which) if store is None else fresh(name, which, store, more)

    return either


def tensors_of(files: dict[str, Path]) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for name, path in files.items():
        if name.endswith(".safetensors"):
            found |= load_file(path)
    return found


def as_folder(model: Model, folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for name, path in model.files.items():
        (folder / name).symlink_to(path)
    return folder


@pairs(*FAMILIES)
def test_it_saves_reloads_and_says_what_it_did(
    name: str, which: str, run: Callable[..., Model], family: Family, tmp_path: Path
) -> None:
    model = run(name, which, Store(tmp_path / "store"))
    found = find_model(f"{name}-{which}", Store(tmp_path / "store"))
    assert found == model
    base = find_model(str(family(which)))
    lineage = found.lineage
    assert lineage.recipe is not None
    assert [step.method for step in lineage.recipe.steps] == [name]
    assert lineage.parent_digest == base.digest
    figures = lineage.figures
    assert figures["bytes_before"] == base.size_bytes
    assert figures["bytes_after"] == found.size_bytes
    assert figures["bits_per_weight"] == pytest.approx(found.size_bytes * 8 / (found.parameters or 1), abs=1e-3)
    calibrated = needs_calibration(methods().get(name))
    assert bool(lineage.data_digest) == calibrated
    files = {title: str(path) for title, path in found.files.items()}
    whole = load(
        found.name, "checkpoint", files, dtype="float32", device="cpu", context=None, parameters=found.parameters
    ).model
    with torch.no_grad():
        logits = whole(input_ids=torch.arange(3, 43)[None]).logits
        before = AutoModelForCausalLM.from_pretrained(family(which), dtype=torch.float32).eval()
        old = before(input_ids=torch.arange(3, 43)[None]).logits
    assert torch.isfinite(logits).all()
    if logits.shape == old.shape:
        assert not torch.equal(logits, old)


@pairs("llama", "phimoe", "gpt2")
def test_the_same_order_gives_the_same_bytes(name: str, which: str, run: Callable[..., Model], tmp_path: Path) -> None:
    first, second = (run(name, which, Store(tmp_path / place)) for place in ("one", "two"))
    assert first.digest == second.digest
    assert first.lineage.figures | {"seconds": 0} == second.lineage.figures | {"seconds": 0}


@pairs("llama", "phi3", "phimoe", "gpt2")
def test_off_is_identity(name: str, which: str, run: Callable[..., Model], family: Family, tmp_path: Path) -> None:
    model = run(name, which, Store(tmp_path), OFF[name])
    before, after = load_file(family(which) / "model.safetensors"), tensors_of(model.files)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
    folder = as_folder(model, tmp_path / "made")
    old, new = (AutoConfig.from_pretrained(place).to_dict() for place in (family(which), folder))
    for said in ("_name_or_path", "layer_types"):  # kinds of layers may be listed where they followed from a rule
        old.pop(said, None)
        new.pop(said, None)
    assert old == new


@pytest.mark.parametrize(("name", "which"), [(name, which) for name in REFUSED for which in sorted(REFUSED[name])])
def test_what_cannot_be_done_is_refused_in_words(
    name: str, which: str, run: Callable[..., Model], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"^[^\n]{20,200}$"):
        run(name, which, Store(tmp_path))
    assert not list((tmp_path / "sizewise" / "incoming").glob("*"))


@pytest.mark.parametrize("name", NAMES)
def test_its_help_says_what_it_is_for(name: str) -> None:
    function = methods().get(name)
    if kind_of(function) == "weight":
        assert purpose_of(function) in ("Prune", "Quantize", "Factorize")
    assert name in OFF, "say in OFF with which options the method changes nothing"
