"""Statistics of a walk are those that hooks on the whole model see; they are kept, and a killed pass goes on."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES
from torch import Tensor
from transformers import AutoModelForCausalLM

from sizewise.core.errors import Unsupported
from sizewise.core.events import Progress
from sizewise.load.layers import layout_of
from sizewise.make.method import INPUT_STATISTICS, NETWORK_STATISTICS
from sizewise.make.recorded import Recorded

Family = Callable[[str], Path]
ALL = {*INPUT_STATISTICS, *NETWORK_STATISTICS} - {"gradient"}


def recorded(folder: Path, windows: Tensor, root: Path, wanted: set[str] = ALL, **options: Any) -> Recorded:
    made = Recorded("sha256:model", "sha256:text", layout_of(folder), root)
    made.gather(folder, windows, wanted, **options)
    return made


def hooked(folder: Path, windows: Tensor) -> tuple[dict[str, Tensor], tuple[Tensor, ...]]:
    """What enters every module of the whole model, by name, and the hidden states at all boundaries."""
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    inputs: dict[str, Tensor] = {}
    for name, module in model.named_modules():
        if name:
            module.register_forward_pre_hook(
                lambda _, args, name=name: inputs.__setitem__(name, args[0]) if args else None
            )
    boundaries = []
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    for block in blocks:
        block.register_forward_hook(
            lambda _, args, out: boundaries.append((args[0], out[0] if isinstance(out, tuple) else out))
        )
    with torch.inference_mode():
        model(input_ids=windows, use_cache=False)
    return inputs, (*(entered for entered, _ in boundaries), boundaries[-1][1])


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "phi", "phi3", "opt"])
def test_they_equal_those_of_hooks(name: str, family: Family, windows: Tensor, tmp_path: Path) -> None:
    folder = family(name)
    made, (inputs, states) = recorded(folder, windows, tmp_path), hooked(folder, windows)
    for block in layout_of(folder).blocks:
        seen = made.block(block.index, hessian=True)
        assert sorted(each for group in seen for each in group.names) == sorted(each.name for each in block.linears)
        for group in seen:
            for matrix in group.names:
                rows = inputs[matrix].reshape(-1, inputs[matrix].shape[-1]).double()
                assert group.tokens == len(rows) == windows.numel()
                close(group.mean("input_norm"), rows.square().mean(0).sqrt())
                close(group.mean("abs_mean"), rows.abs().mean(0))
                close(group.mean("abs_max"), rows.abs().amax(0))
                close(group.mean("hessian"), rows.T @ rows / len(rows))
        near = torch.nn.functional.cosine_similarity(states[block.index], states[block.index + 1], dim=-1)
        close(made.network("block_influence")[block.index], 1 - near.mean())
        flat = states[block.index].reshape(-1, states[block.index].shape[-1])
        close(made.network("attention_gram")[block.index], flat.T @ flat / len(flat))
    flat = states[-1].reshape(-1, states[-1].shape[-1])
    close(made.network("final_gram"), flat.T @ flat / len(flat))
    last = torch.nn.functional.normalize(torch.stack([state[:, -1] for state in states]), dim=-1)
    angle = (last[0] * last[-1]).sum(-1).clamp(-1, 1).arccos().mean() / torch.pi
    close(made.network("angular")[0, -1], angle)


def close(one: Tensor, two: Tensor) -> None:
    assert torch.allclose(one.double(), two.double(), rtol=1e-4, atol=1e-5 * float(two.abs().max()))


def test_activations_of_heads_and_channels(family: Family, windows: Tensor, tmp_path: Path) -> None:
    made, (inputs, _) = recorded(family("llama"), windows, tmp_path), hooked(family("llama"), windows)
    for index in range(2):
        block = f"model.layers.{index}"
        mean = inputs[f"{block}.mlp.down_proj"].abs().mean(1).square().mean(0).sqrt()
        close(made.network("channel_activation")[index], mean)
        mean = inputs[f"{block}.self_attn.o_proj"].abs().mean(1).square().mean(0).sqrt()
        close(made.network("head_activation")[index], mean.reshape(4, 16).norm(dim=1))
    assert made.network("hidden_activation").shape == (64,)


@pytest.mark.parametrize("name", FAMILIES)
def test_inputs_are_shared_and_norms_found_in_every_family(
    name: str, family: Family, windows: Tensor, tmp_path: Path
) -> None:
    layout = layout_of(family(name))
    made = recorded(family(name), windows, tmp_path, {"input_norm"})
    for block in layout.blocks:
        by_name = {each: group for group in made.block(block.index, hessian=False) for each in group.names}
        roles = {each.role: by_name[each.name] for each in block.linears}
        first = roles["q"] if "q" in roles else roles["qkv"]
        assert first.norm in block.norms
        if "q" in roles:
            assert roles["k"] is roles["v"] is first
        upper = next(roles[role] for role in ("gate", "gate_up", "up") if role in roles)
        if "gate" in roles and not layout.experts:
            assert roles["up"] is upper
        if not layout.experts:
            assert upper.norm in block.norms
        assert roles["o"].norm is roles["down"].norm is None
        assert roles["o"] is not first
        separate = not layout.parallel or name == "falcon-40b"  # which has a norm for each half
        assert (upper is not first) == separate


def test_experts_count_their_own_tokens(family: Family, windows: Tensor, tmp_path: Path) -> None:
    layout = layout_of(family("phimoe"))
    made = recorded(family("phimoe"), windows, tmp_path, {"hessian"})
    groups = made.block(0, hessian=True)
    experts = {each.name: each.expert for each in layout.blocks[0].of("gate")}
    counted = [group for group in groups if group.names[0] in experts]
    assert len(counted) == 4
    assert sum(group.tokens for group in counted) == 2 * windows.numel()  # every token goes to two
    assert all(len(group.names) == 2 for group in counted)
    for group in counted:
        if group.tokens:
            assert float(group.mean("hessian").diagonal().sub(group.mean("input_norm").square()).abs().max()) < 1e-4
    with pytest.raises(Unsupported, match="mixture of experts"):
        made.network("channel_activation")


def test_a_second_time_nothing_is_computed(family: Family, windows: Tensor, tmp_path: Path) -> None:
    heard: list[Progress] = []
    recorded(family("llama"), windows, tmp_path, {"hessian"}, listen=heard.append)
    assert len(heard) == 3
    recorded(family("llama"), windows, tmp_path, {"input_norm"}, listen=heard.append)
    assert len(heard) == 3
    recorded(family("llama"), windows, tmp_path, {"attention_gram"}, listen=heard.append)
    assert len(heard) == 6
    assert not list(tmp_path.rglob("hidden-*"))
    assert not list(tmp_path.rglob(".tmp*"))


@pytest.mark.parametrize("fault", ["rename:1", "rename:3", "done:2", "done:4"])
def test_a_killed_pass_goes_on_with_the_same_result(
    fault: str, family: Family, windows: Tensor, tmp_path: Path
) -> None:
    folder = family("llama")
    code = (
        "import sys, torch; from pathlib import Path; torch.set_num_threads(2)\n"
        "from sizewise.load.layers import layout_of; from sizewise.make.recorded import Recorded\n"
        "windows = torch.randint(3, 100, (6, 40), generator=torch.Generator().manual_seed(0))\n"
        "folder, root = map(Path, sys.argv[1:])\n"
        "made = Recorded('sha256:model', 'sha256:text', layout_of(folder), root)\n"
        "made.gather(folder, windows, {'hessian'})"
    )
    command = [sys.executable, "-c", code, str(folder), str(tmp_path / "killed")]
    done = subprocess.run(command, env=os.environ | {"SIZEWISE_FAULT": f"{fault}:kill"}, check=False, timeout=120)
    assert done.returncode == -signal.SIGKILL
    heard: list[Progress] = []
    after = recorded(folder, windows, tmp_path / "killed", {"hessian"}, listen=heard.append)
    whole = recorded(folder, windows, tmp_path / "whole", {"hessian"})
    if fault == "done:4":
        assert heard[0].done == 1  # block 0 was not done again
    for index in range(2):
        pairs = zip(after.block(index, hessian=True), whole.block(index, hessian=True), strict=True)
        for one, two in pairs:
            assert one.names == two.names
            assert all(torch.equal(one.sums[key], two.sums[key]) for key in two.sums)
