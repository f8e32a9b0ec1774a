"""Depth: which blocks go is known in closed form, and the real classes load and compute what is left."""

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, write_family
from networks import IDS, config_of, load, logits, write

from sizewise.core.errors import UsageError
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import layout_of
from sizewise.make.methods.depth import depth, least_angle, least_influence
from sizewise.make.packed import Reshaped


def _made(folder: Path, influence: list[float], **options: Any) -> Reshaped:
    count = len(influence)
    angular = torch.rand(count + 1, count + 1, generator=torch.Generator().manual_seed(0))
    tensors = TensorSource(folder)
    return depth(layout_of(folder), config_of(folder), tensors, torch.tensor(influence), angular, **options)


def test_the_least_influential_go_and_the_last_stays() -> None:
    assert least_influence(torch.tensor([0.5, 0.1, 0.3, 0.05]), 1) == {1}
    assert least_influence(torch.tensor([0.5, 0.1, 0.3, 0.05]), 3) == {0, 1, 2}
    assert least_influence(torch.tensor([0.5, 0.1]), 0) == set()


def test_no_other_run_turns_the_state_less() -> None:
    angular = torch.rand(8, 8, generator=torch.Generator().manual_seed(3))
    for drop in range(1, 7):
        gone = least_angle(angular, drop)
        runs = [run for run in combinations(range(6), drop) if run[-1] - run[0] == drop - 1]
        assert angular[min(gone), max(gone) + 1] == min(angular[run[0], run[0] + drop] for run in runs)
        assert 6 not in gone
    assert least_angle(angular, 0) == set()


@pytest.mark.parametrize("name", FAMILIES)
def test_removing_is_masking(name: str, tmp_path: Path) -> None:
    """A block whose outputs are zero passes its input on: leaving it out must change nothing."""
    folder = write_family(name, tmp_path / "base", **_three_layers(name))
    count = len(layout_of(folder).blocks)
    made = _made(folder, [0.5, 0.1, *[0.9] * (count - 2)], share=1 / count)
    assert made.figures["blocks_left_out"] == [1]
    small = load(write(made, folder, tmp_path / "small"))
    masked = load(folder)
    blocks = next(module for module in masked.modules() if isinstance(module, torch.nn.ModuleList))
    with torch.no_grad():
        for key, weight in blocks[1].named_parameters():
            # the last matrix or norm of each branch decides what it adds
            ends: tuple[str, ...] = ("o_proj", "dense", "dense_4h_to_h", "down_proj", "c_proj", "out_proj", "fc2")
            ends += ("post_attention_layernorm", "post_feedforward_layernorm") if name.startswith("gemma") else ()
            if any(f".{end}." in f".{key}." for end in ends) or key.endswith("experts.down_proj"):
                weight.fill_(-1.0 if name.startswith("gemma") and "layernorm" in key else 0.0)
    assert torch.allclose(logits(small), logits(masked), atol=1e-5)
    assert small.num_parameters() < masked.num_parameters()


def _three_layers(name: str) -> dict[str, Any]:
    if name in ("gemma3_text", "smollm3"):
        return {}
    return {"n_layer": 3} if name == "gpt2" else {"num_hidden_layers": 3}


def test_nothing_left_out_is_the_same_network(family: Callable[[str], Path]) -> None:
    folder = family("gemma2")
    made = _made(folder, [0.1, 0.2], share=0.0)
    source = TensorSource(folder)
    after = dict(made.tensors)
    assert set(after) == set(source)
    assert all(torch.equal(after[name], source.get(name)) for name in source)
    assert made.config["layer_types"] == ["sliding_attention", "full_attention"]


def test_lists_by_block_follow(family: Callable[[str], Path]) -> None:
    made = _made(family("smollm3"), [0.1, 0.2, 0.3, 0.4], share=0.5)
    assert made.config["num_hidden_layers"] == 2
    assert made.config["no_rope_layers"] == [1, 0]  # of 1 1 1 0 the first two went


def test_influence_of_a_block_that_does_nothing_is_zero(tmp_path: Path) -> None:
    from sizewise.make.recorded import Recorded

    folder = write_family("llama", tmp_path / "model")
    tensors = {name: TensorSource(folder).get(name) for name in TensorSource(folder)}
    for name in tensors:
        if "layers.1." in name and ("o_proj" in name or "down_proj" in name):
            tensors[name].zero_()
    from sizewise.load.checkpoint.tensors import save_tensors

    save_tensors(folder, tensors.items())
    recorded = Recorded("m", "c", layout_of(folder), tmp_path / "statistics")
    recorded.gather(folder, IDS.int(), {"block_influence", "angular"})
    influence = recorded.network("block_influence")
    assert influence[1].abs() < 1e-5
    assert influence[0] > 0.01


def test_at_least_one_block_stays(family: Callable[[str], Path]) -> None:
    with pytest.raises(UsageError, match="all 2 blocks"):
        _made(family("llama"), [0.1, 0.2], share=1.0)
