"""The walk does what the method would do by hand; killed or out of disk anywhere, it goes on to the same bytes."""

import itertools
import os
import signal
from collections.abc import Callable
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_gguf import write_tiny_llama
from torch import Tensor
from transformers import AutoModelForCausalLM

from sizewise.core.errors import BadModel, DiskFull, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.load.layers import layout_of
from sizewise.load.models import find_model
from sizewise.load.store import atomic
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.method import methods, wants
from sizewise.make.recorded import Recorded
from sizewise.make.treat import Treatment
from sizewise.make.walk import walk

Family = Callable[[str], Path]
SMALL = {"tokens": 240, "window": 40}
METHOD = "wanda"
MODES = pytest.mark.parametrize("sequential", [False, True])


def by_hand(
    folder: Path, windows: Tensor, name: str, options: dict[str, Any], *, sequential: bool
) -> dict[str, Tensor]:
    """Each block's matrices changed in the whole network, on what hooks see of it then or saw of it before."""
    function, layout = methods().get(name), layout_of(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    seen: dict[str, Tensor] = {}
    for path, module in model.named_modules():
        module.register_forward_pre_hook(lambda _, args, path=path: seen.__setitem__(path, args[0]) if args else None)

    def look() -> dict[str, Tensor]:
        with torch.no_grad():
            model(input_ids=windows, use_cache=False)
        return {
            path: rows.reshape(-1, rows.shape[-1]).clone() for path, rows in seen.items() if rows.is_floating_point()
        }

    inputs, made = look(), {}
    for block in layout.blocks:
        inputs = look() if sequential else inputs
        for linear in block.linears:
            rows, parameter = inputs[linear.name], model.get_submodule(linear.name).weight
            statistics = {"input_norm": rows.square().mean(0).sqrt(), "hessian": rows.T @ rows / len(rows)}
            unrelated = statistics | {"hessian": statistics["input_norm"].square().diag()}
            weight = parameter.data.T if linear.transposed else parameter.data
            changed = torch.empty_like(weight)
            whole = ((linear.role, len(weight)),)
            values = torch.cat([torch.full((count,), part == "v") for part, count in linear.rows or whole])
            splits = "hessian" in wants(function) and linear.role in ("v", "qkv")  # values are not repaired
            for rows, known in (
                ((~values, statistics), (values, unrelated)) if splits else ((~values | values, statistics),)
            ):
                part = function(*({"weight": weight[rows], **known}[want] for want in wants(function)), **options)
                changed[rows] = part if isinstance(part, Tensor) else part.dense()
            made[linear.name] = changed
            parameter.data = changed.T.contiguous() if linear.transposed else changed
    return made


@MODES
@pytest.mark.parametrize(("which", "name", "options"), [
    ("llama", "wanda", {"sparsity": 0.5}),
    ("gpt2", "sparsegpt", {"sparsity": 0.5}),
    ("phi3", "wanda", {"pattern": "2:4"}),
])  # fmt: skip
def test_it_changes_blocks_as_by_hand(
    which: str, name: str, options: dict[str, Any], sequential: bool, family: Family, windows: Tensor, tmp_path: Path
) -> None:
    folder = family(which)
    recorded = Recorded("sha256:model", "sha256:text", layout_of(folder), tmp_path / "cache")
    if not sequential:
        recorded.gather(folder, windows, {"hessian"})
    files, tally = walk(
        folder, tmp_path / "out", Treatment(name, methods().get(name), options),
        recorded=None if sequential else recorded, windows=windows if sequential else None,
    )  # fmt: skip
    expected = by_hand(folder, windows, name, options, sequential=sequential)
    other = by_hand(folder, windows, name, options, sequential=not sequential)
    tensors = load_file(files["model.safetensors"])
    differs = same = total = 0
    for block in layout_of(folder).blocks:
        for linear in block.linears:
            made = tensors[linear.weight].T if linear.transposed else tensors[linear.weight]
            near = torch.isclose(made.float(), expected[linear.name], rtol=1e-2, atol=1e-4)
            same, total = same + int(near.sum()), total + near.numel()
            differs += int((expected[linear.name] == 0).ne(other[linear.name] == 0).sum())
    assert same >= 0.999 * total  # two scores that are as good as equal may change places
    assert differs > 0.002 * total  # which of the two ways is gone is no matter of rounding
    assert tally.blocks == len(layout_of(folder).blocks)
    before = load_file(folder / "model.safetensors")
    inside = {linear.weight for linear in layout_of(folder).linears}
    assert all(torch.equal(tensors[name], before[name]) for name in before if name not in inside)


def bytes_of(model: Model) -> dict[str, bytes]:
    return {name: path.read_bytes() for name, path in model.files.items()}


def ordered(base: Path, place: Path, sequential: bool, listen: Listener = silent) -> Model:
    options = {"sparsity": 0.5, "sequential": sequential, **SMALL}
    return make(METHOD, str(base), name="x", options=options, store=Store(place / "store"), listen=listen)


def killed(base: Path, place: Path, sequential: bool, *, fault: str = "", block: int | None = None) -> int:
    """The exit code of a child process that was to make the model and breaks on the way."""

    def child() -> None:
        os.environ |= {"SIZEWISE_HOME": str(place / "home")} | ({"SIZEWISE_FAULT": fault} if fault else {})
        atomic._passages.clear()

        def listen(progress: Progress) -> None:
            if (progress.what, progress.done) == (METHOD, block):
                os.kill(os.getpid(), signal.SIGKILL)

        ordered(base, place, sequential, listen)

    process = get_context("fork").Process(target=child)
    process.start()
    process.join(120)
    return process.exitcode or 0


@MODES
@pytest.mark.parametrize("block", [0, 1, 2])
def test_killed_in_a_block_it_goes_on_there(
    block: int, sequential: bool, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family("llama")
    heard: list[Progress] = []
    assert killed(base, tmp_path, sequential, block=block) == -signal.SIGKILL
    whole = ordered(base, tmp_path / "whole", sequential)
    monkeypatch.setenv("SIZEWISE_HOME", str(tmp_path / "home"))
    made = ordered(base, tmp_path, sequential, heard.append)
    assert bytes_of(made) == bytes_of(whole)
    own = {"seconds": 0}
    assert made.lineage.figures | own == whole.lineage.figures | own
    assert min(each.done for each in heard if each.what == METHOD) == block  # earlier ones were not done again


@MODES
def test_killed_at_any_file_it_goes_on_to_the_same_bytes(
    sequential: bool, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = family("llama")
    whole = bytes_of(ordered(base, tmp_path / "whole", sequential))
    for nth in itertools.count(1):
        place = tmp_path / str(nth)
        code = killed(base, place, sequential, fault=f"rename:{nth}:kill")
        monkeypatch.setenv("SIZEWISE_HOME", str(place / "home"))
        assert bytes_of(ordered(base, place, sequential)) == whole
        store = Store(place / "store")
        assert not list(store.layout.incoming.glob("make-*"))
        assert not store.verify()
        if code == 0:
            break
        assert code == -signal.SIGKILL
    assert nth > 8


def full(base: Path, place: Path, sequential: bool) -> Model | None:
    """The model, or None where the disk was full."""
    try:
        return ordered(base, place, sequential)
    except DiskFull:
        return None


@MODES
def test_a_disk_that_fills_up_anywhere_leaves_nothing(
    sequential: bool, family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, refusals = family("llama"), 0
    whole = bytes_of(ordered(base, tmp_path / "whole", sequential))
    for nth in itertools.count(1):
        place = tmp_path / str(nth)
        with monkeypatch.context() as patch:
            patch.setenv("SIZEWISE_HOME", str(place / "home"))
            patch.setenv("SIZEWISE_FAULT", f"rename:{nth}:enospc")
            patch.setattr(atomic, "_passages", {})
            made, store = full(base, place, sequential), Store(place / "store")
            reached = atomic._passages.get("rename", 0) >= nth
            incoming = store.layout.incoming
            assert not incoming.exists() or not list(incoming.iterdir())
            assert made or not store.list()
            patch.delenv("SIZEWISE_FAULT")
            refusals += not made
            assert bytes_of(made or ordered(base, place, sequential)) == whole
        if not reached:
            break
    assert refusals > 8


def damaged(family: Family, tmp_path: Path, name: str, value: float) -> str:
    """A llama with one number exchanged."""
    folder = tmp_path / "damaged"
    folder.mkdir()
    for path in family("llama").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    tensors = load_file(folder / "model.safetensors")
    tensors[name].view(-1)[5] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return str(folder)


@pytest.mark.parametrize("method", ["magnitude", "rtn", "wanda", "gptq"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_no_numbers_are_refused(method: str, value: float, family: Family, tmp_path: Path) -> None:
    name = "model.layers.1.mlp.up_proj.weight"
    base, store = damaged(family, tmp_path, name, value), Store(tmp_path / "store")
    options = SMALL if method in ("wanda", "gptq") else {}
    options = options | ({"group": 16} if method in ("rtn", "gptq") else {})
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.up_proj.* not finite") as error:
        make(method, base, name="x", options=options, store=store)
    assert "\n" not in str(error.value)
    assert not store.list()
    assert not list(store.layout.incoming.iterdir())


@MODES
@pytest.mark.parametrize("method", ["wanda", "gptq", "awq"])
def test_activations_that_are_no_numbers_are_refused(
    method: str, sequential: bool, family: Family, tmp_path: Path
) -> None:
    base = damaged(family, tmp_path, "model.layers.0.input_layernorm.weight", 3e38)
    options = {**SMALL, **({"sequential": True} if sequential else {}), **({} if method == "wanda" else {"group": 16})}
    with pytest.raises(BadModel, match=r"(block|layers\.)\D*0.* not finite"):
        make(method, base, name="x", options=options, store=Store(tmp_path / "store"))


def test_few_tokens_are_damped_and_the_lineage_says_so(family: Family, tmp_path: Path) -> None:
    options = {"tokens": 16, "window": 16, "group": 16, "damp": 0.0}
    made = make("gptq", str(family("llama")), name="x", options=options, store=Store(tmp_path))
    assert "Hessian not positive definite: damped by" in made.lineage.note
    assert "block 0" in made.lineage.note


def test_the_quantized_is_quantized_again_only_on_purpose(family: Family, tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    gguf = str(write_tiny_llama(tmp_path / "tiny.gguf", width=256, hidden=256))
    make("quantize-gguf", gguf, name="four", options={"type": "Q4_1"}, store=store)
    with pytest.raises(UsageError, match=r"four is already Q4_1: .*--dequantize"):
        make("rtn", "four", name="x", store=store)
    again = make("rtn", "four", name="again", options={"dequantize": True}, store=store)
    assert "Q4_1" in again.lineage.note  # errors stay
    make("rtn", str(family("llama")), name="small", options={"group": 16}, store=store)
    for method in ("rtn", "magnitude"):
        with pytest.raises(UsageError, match=r"small is packed in .*: start from what it was made from"):
            make(method, "small", name="x", options={}, store=store)
    assert sorted(str(each.name) for each in store.list()) == ["again:latest", "four:latest", "small:latest"]


@pytest.mark.parametrize("which", ["gemma2", "phi3"])
def test_a_head_that_is_the_embedding_stays_so(which: str, family: Family, tmp_path: Path) -> None:
    base = family(which)
    made = make("magnitude", str(base), name="x", options={"sparsity": 0.5}, store=Store(tmp_path))
    before, after = load_file(base / "model.safetensors"), load_file(made.files["model.safetensors"])
    layout = layout_of(base)
    assert before.keys() == after.keys()
    assert layout.tied == (layout.head is None or f"{layout.head}.weight" not in after)
    assert torch.equal(before[f"{layout.embedding}.weight"], after[f"{layout.embedding}.weight"])
    assert find_model("x", Store(tmp_path)) == made


def test_empty_and_full(family: Family, tmp_path: Path) -> None:
    made = make("magnitude", str(family("llama")), name="x", options={"sparsity": 1.0}, store=Store(tmp_path))
    tensors = load_file(made.files["model.safetensors"])
    assert not any(tensors[linear.weight].any() for linear in layout_of(family("llama")).linears)
    assert made.lineage.figures["zeros"] == 1.0


def test_values_are_not_repaired_on_average(family: Family) -> None:
    """GPTQ rounds them to nearest: what it would do for inputs that have nothing to do with one another."""
    codes = {}
    for name in ("rtn", "gptq"):
        more = SMALL if name == "gptq" else {}
        made = make(name, str(family("llama")), name=name, options={"bits": 3, "group": 16, **more}, store=Store())
        codes[name] = load_file(made.files["model.safetensors"])
    alike = {
        role: torch.equal(*(codes[name][f"model.layers.1.self_attn.{role}_proj.weight_packed"] for name in codes))
        for role in ("q", "k", "v", "o")
    }
    assert alike == {"q": False, "k": False, "v": True, "o": False}
