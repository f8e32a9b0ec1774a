"""SliceGPT: any rotation of the stream leaves the network as it is, and the axes kept hold the most energy."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import config_of, load, logits, write

from sizewise.core.errors import Unsupported, UsageError
from sizewise.load.checkpoint.tensors import TensorSource, save_tensors
from sizewise.load.layers import layout_of
from sizewise.make.methods.slicegpt import principal_axes, rotated, sliced_config, slicegpt
from sizewise.make.packed import Reshaped
from sizewise.make.reshape import count_stream

ROTATED = ("llama", "llama3", "mistral", "qwen2", "qwen3", "phi3", "granite", "smollm3")


def _double(folder: Path, target: Path) -> Path:
    """The model in float64, so that a rotation can be told from rounding."""
    shutil.copytree(folder, target)
    source = TensorSource(folder)
    save_tensors(target, [(name, source.get(name).double()) for name in source])
    return target


def _logits64(folder: Path) -> torch.Tensor:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    for module in model.modules():
        if type(module).__name__.endswith("RMSNorm"):
            _in_64_bits(module)
    return logits(model)


def _in_64_bits(norm: Any) -> None:
    """transformers computes norms in float32 whatever the weights are; a rotation could not be told from rounding."""

    def forward(states: torch.Tensor) -> torch.Tensor:
        size = (states.square().mean(-1, keepdim=True) + norm.variance_epsilon).rsqrt()
        return torch.as_tensor(norm.weight * (states * size))

    norm.forward = forward


def _orthogonal(width: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(5)
    found: torch.Tensor = torch.linalg.qr(torch.randn(width, width, generator=random, dtype=torch.float64)).Q
    return found


def _grams(width: int, count: int) -> torch.Tensor:
    states = torch.randn(count, 3 * width, width, generator=torch.Generator().manual_seed(2))
    states = states * torch.linspace(2, 0.1, width)
    return states.transpose(1, 2) @ states / (3 * width)


@pytest.mark.parametrize("how", ["random", "principal"])
@pytest.mark.parametrize("name", ROTATED)
def test_a_whole_rotation_changes_nothing(name: str, how: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = _double(family(name), tmp_path / "base")
    layout = layout_of(folder)
    axes = _orthogonal(64) if how == "random" else principal_axes(list(_grams(64, 3)), 64)[0]
    made = Reshaped(sliced_config(config_of(folder), layout, 64), rotated(layout, TensorSource(folder), axes))
    turned = write(made, folder, tmp_path / "turned")
    assert (_logits64(folder) - _logits64(turned)).abs().max() < 1e-8
    before = TensorSource(folder).get(layout.linears[0].weight)
    assert not torch.allclose(TensorSource(turned).get(layout.linears[0].weight), before)


def _made(folder: Path, **options: Any) -> Reshaped:
    layout = layout_of(folder)
    blocks, width = len(layout.blocks), layout.hidden
    given = (layout, config_of(folder), TensorSource(folder))
    return slicegpt(*given, _grams(width, blocks), _grams(width, blocks), _grams(width, 1)[0], **options)


def test_nothing_cut_is_the_same_network(family: Callable[[str], Path]) -> None:
    folder = family("qwen2")
    made, source = _made(folder, share=0.0), TensorSource(folder)
    after = dict(made.tensors)
    assert made.config == config_of(folder)
    assert all(torch.equal(after[name], source.get(name)) for name in source)
    assert set(after) == set(source)


@pytest.mark.parametrize("name", ROTATED)
def test_the_result_is_loaded_by_stock_classes(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family(name)
    made = _made(folder, share=0.25, multiple=16)
    small = load(write(made, folder, tmp_path / "small"))
    assert small.config.hidden_size == 48
    assert torch.isfinite(logits(small)).all()
    assert 0.75 < made.figures["energy_kept"] < 1


def test_a_stream_that_uses_few_axes_loses_nothing(family: Callable[[str], Path], tmp_path: Path) -> None:
    """Everything that is written lies in 48 of 64 dimensions: cutting the other 16 must change nothing."""
    base = tmp_path / "base"
    shutil.copytree(family("llama"), base)
    layout, source = layout_of(base), TensorSource(base)
    plane = _orthogonal(64)[:, :48].float()
    project = plane @ plane.T
    tensors = {name: source.get(name) for name in source}
    tensors[layout.embedding + ".weight"] = tensors[layout.embedding + ".weight"] @ project
    for linear in layout.linears:
        if linear.role in ("o", "down"):
            tensors[linear.weight] = project @ tensors[linear.weight]
    save_tensors(base, tensors.items())
    states = torch.randn(4, 500, 48, generator=torch.Generator().manual_seed(1)) @ plane.T
    grams = states.transpose(1, 2) @ states
    made = slicegpt(layout, config_of(base), TensorSource(base), grams, grams, grams[0], share=0.25, multiple=16)
    small = load(write(made, base, tmp_path / "small"))
    assert torch.allclose(logits(small), logits(load(base)), atol=1e-3)
    assert made.figures["energy_kept"] == pytest.approx(1, abs=1e-5)


def test_no_other_axes_hold_more_energy() -> None:
    gram = _grams(16, 1)[0].double()
    axes, kept = principal_axes([gram], 5)
    assert torch.allclose(axes.T @ axes, torch.eye(5, dtype=torch.float64), atol=1e-12)
    values = torch.linalg.eigvalsh(gram)
    assert kept == pytest.approx(float(values[-5:].sum() / values.sum()))
    for seed in range(20):
        random = torch.Generator().manual_seed(seed)
        other = torch.linalg.qr(torch.randn(16, 5, generator=random, dtype=torch.float64)).Q
        assert float((other.T @ gram @ other).trace() / gram.trace()) <= kept + 1e-12


def test_a_loud_block_does_not_decide_alone() -> None:
    quiet, loud = torch.diag(torch.tensor([1.0, 0.1, 0.0])), torch.diag(torch.tensor([0.0, 0.1, 0.6])) * 1e6
    axes, _ = principal_axes([quiet, quiet, loud], 1)
    assert axes.abs()[:, 0].argmax() == 0


@pytest.mark.parametrize(("name", "what"), [("gpt2", "subtracts the mean"), ("gemma2", "norms what it adds")])
def test_other_norms_are_refused(name: str, what: str, family: Callable[[str], Path]) -> None:
    with pytest.raises(Unsupported, match=what):
        _made(family(name), share=0.25, multiple=16)


def test_something_must_stay(family: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="none would stay"):
        _made(family("llama"), share=1.0)


@pytest.mark.parametrize(
    ("hidden", "share", "multiple", "heads", "count"),
    [
        (576, 0.1, 32, 9, 522),
        (576, 0.5, 32, 9, 288),
        (64, 0.25, 16, 4, 48),
        (576, 0.0, 32, 9, 576),
        (2048, 0.3, 32, 32, 1440),
    ],
)
def test_the_heads_divide_the_width(hidden: int, share: float, multiple: int, heads: int, count: int) -> None:
    assert count_stream(hidden, share, multiple, heads, "axes") == count
    assert count % heads == 0
