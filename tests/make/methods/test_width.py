"""Width: removing channels and heads equals masking them, in the families' own classes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from networks import config_of, load, logits, write

from sizewise.core.errors import Unsupported, UsageError
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import Layout, layout_of
from sizewise.make.methods.width import width
from sizewise.make.packed import Reshaped

HEADED = tuple(name for name in FAMILIES if name not in ("falcon", "falcon-40b", "gpt2", "opt", "phi3.5"))
ROOTED = tuple(name for name in HEADED if name not in ("phi", "phimoe"))  # norms that subtract no mean


def _scores(layout: Layout) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    blocks = len(layout.blocks)
    shapes = ((blocks, layout.ffn), (blocks, layout.heads), (layout.hidden,))
    return tuple(torch.rand(shape, generator=random) for shape in shapes)  # type: ignore[return-value]


def _made(folder: Path, **options: Any) -> Reshaped:
    layout = layout_of(folder)
    shares = {"ffn": 0.0, "heads": 0.0, "hidden": 0.0, "multiple": 8} | options
    return width(layout, config_of(folder), TensorSource(folder), *_scores(layout), **shares)


def _masked(folder: Path, target: Path, mask: Callable[[Layout, dict[str, torch.Tensor]], None]) -> Any:
    """The base with some numbers set to zero."""
    tensors = {name: TensorSource(folder).get(name) for name in TensorSource(folder)}
    mask(layout_of(folder), tensors)
    return load(write(Reshaped(config_of(folder), iter(tensors.items())), folder, target))


@pytest.mark.parametrize("name", FAMILIES)
def test_removing_feed_forward_channels_is_masking_them(
    name: str, family: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = family(name)
    small = load(write(_made(folder, ffn=0.3), folder, tmp_path / "small"))

    def mask(layout: Layout, tensors: dict[str, torch.Tensor]) -> None:
        count = round(layout.ffn * 0.7 / 8) * 8
        scores, _, _ = _scores(layout)
        for linear in (linear for block in layout.blocks for linear in block.of("down")):
            index = next(block.index for block in layout.blocks if linear in block.linears)
            gone = scores[index].argsort()[: layout.ffn - count]
            weight = tensors[linear.weight]
            (weight.T if not linear.transposed else weight)[gone] = 0

    assert torch.allclose(logits(small), logits(_masked(folder, tmp_path / "masked", mask)), atol=1e-5)


@pytest.mark.parametrize("name", HEADED)
def test_removing_groups_of_heads_is_masking_them(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family(name)
    small = load(write(_made(folder, heads=0.5), folder, tmp_path / "small"))

    def mask(layout: Layout, tensors: dict[str, torch.Tensor]) -> None:
        _, scores, _ = _scores(layout)
        each = layout.heads // layout.kv_heads
        for block in layout.blocks:
            groups = scores[block.index].view(layout.kv_heads, each).sum(1)
            (output,) = block.of("o")
            for group in groups.argsort()[: layout.kv_heads // 2].tolist():
                first = group * each * layout.head_dim
                tensors[output.weight][:, first : first + each * layout.head_dim] = 0

    assert small.config.num_attention_heads == layout_of(folder).heads // 2
    assert torch.allclose(logits(small), logits(_masked(folder, tmp_path / "masked", mask)), atol=1e-5)


@pytest.mark.parametrize("name", ROOTED)
def test_removing_hidden_channels_is_masking_them(name: str, family: Callable[[str], Path], tmp_path: Path) -> None:
    """Masked: nothing writes into the channel, so that it stays zero, and nothing reads it."""
    folder = family(name)
    small = load(write(_made(folder, hidden=0.25), folder, tmp_path / "small"))

    def mask(layout: Layout, tensors: dict[str, torch.Tensor]) -> None:
        _, _, scores = _scores(layout)
        gone = scores.argsort()[:16]
        tensors[layout.embedding + ".weight"][:, gone] = 0
        for linear in layout.linears:
            if linear.role in ("o", "down"):
                tensors[linear.weight][gone] = 0
        for norm in (norm for block in layout.blocks for norm in block.norms):
            if tensors[norm + ".weight"].numel() == layout.hidden:
                tensors[norm + ".weight"][gone] = -layout.norm_offset

    assert small.config.hidden_size == 48
    assert torch.allclose(logits(small), logits(_masked(folder, tmp_path / "masked", mask)), atol=1e-4)


@pytest.mark.parametrize("name", ["llama", "phi3", "gpt2"])
def test_parameters_are_as_many_as_the_formula_says(name: str, family: Callable[[str], Path]) -> None:
    folder = family(name)
    before = sum(TensorSource(folder).get(each).numel() for each in TensorSource(folder))
    after = sum(tensor.numel() for _, tensor in _made(folder, ffn=0.5).tensors)
    layout = layout_of(folder)
    per_channel = sum(linear.shape[1] for linear in layout.blocks[0].linears if linear.role in ("up", "gate_up"))
    per_channel += sum(linear.shape[1] for linear in layout.blocks[0].of("gate", "gate_up"))
    bias = sum(linear.bias for linear in layout.blocks[0].of("up"))
    gone = layout.ffn // 2
    assert before - after == len(layout.blocks) * gone * (per_channel + layout.hidden + bias)


@pytest.mark.parametrize("name", FAMILIES)
def test_nothing_pruned_is_the_same_network(name: str, family: Callable[[str], Path]) -> None:
    folder = family(name)
    made, source = _made(folder), TensorSource(folder)
    after = dict(made.tensors)
    assert made.config == config_of(folder)
    assert set(after) == set(source)
    assert all(torch.equal(after[each], source.get(each)) for each in source)


def test_quiet_channels_go_first(family: Callable[[str], Path]) -> None:
    folder = family("llama")
    layout = layout_of(folder)
    channels, heads, hidden = _scores(layout)
    channels[1, 5] = -1.0
    made = width(layout, config_of(folder), TensorSource(folder), channels, heads, hidden, ffn=1 / 96, multiple=1)
    down = dict(made.tensors)["model.layers.1.mlp.down_proj.weight"]
    before = TensorSource(folder).get("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(down, torch.cat([before[:, :5], before[:, 6:]], 1))


def test_one_group_for_all_loses_heads_one_by_one(tmp_path: Path) -> None:
    from families import write_family

    folder = write_family("gemma2", tmp_path / "base", num_key_value_heads=1)
    made = _made(folder, heads=0.5)
    small = load(write(made, folder, tmp_path / "small"))
    assert (small.config.num_attention_heads, small.config.num_key_value_heads) == (2, 1)
    assert torch.isfinite(logits(small)).all()


@pytest.mark.parametrize(("name", "options", "what"), [
    ("gpt2", {"heads": 0.5}, "as wide as hidden size"),
    ("opt", {"hidden": 0.5}, "as wide as hidden size"),
    ("phi", {"hidden": 0.5}, "subtract the mean"),
])  # fmt: skip
def test_what_no_stock_class_can_hold_is_refused(
    name: str, options: dict[str, float], what: str, family: Callable[[str], Path]
) -> None:
    with pytest.raises(Unsupported, match=what):
        _made(family(name), **options)


def test_sizes_that_transformers_refuses_are_refused_before_anything_is_written(
    family: Callable[[str], Path], tmp_path: Path
) -> None:
    from families import write_family

    with pytest.raises(UsageError, match="short_factor"):
        _made(family("phi3.5"), heads=0.5)
    folder = write_family("gemma2", tmp_path / "base", num_key_value_heads=1)
    with pytest.raises(UsageError, match="not a multiple of the number of attention heads"):
        _made(folder, heads=0.25)


def test_something_must_stay(family: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="none would stay"):
        _made(family("llama"), ffn=1.0)
    with pytest.raises(UsageError, match="none would stay"):
        _made(family("llama"), heads=1.0)


def test_a_result_can_be_pruned_again(family: Callable[[str], Path], tmp_path: Path) -> None:
    folder = family("qwen3")
    once = write(_made(folder, ffn=0.25, heads=0.5, hidden=0.25), folder, tmp_path / "once")
    layout = layout_of(once)
    assert (layout.ffn, layout.heads, layout.kv_heads, layout.hidden, layout.head_dim) == (72, 2, 1, 48, 32)
    twice = write(_made(once, ffn=0.25), once, tmp_path / "twice")
    assert torch.isfinite(logits(load(twice))).all()
