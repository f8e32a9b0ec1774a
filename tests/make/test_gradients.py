"""Gradients block by block are those of autograd on the whole model."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from sizewise.load.layers import layout_of
from sizewise.make.gradients import Gradients
from sizewise.make.stream import matrices


@pytest.mark.parametrize("name", ["llama", "gemma2", "gpt2", "falcon", "phimoe", "granite", "phi", "opt"])
def test_they_equal_those_of_the_whole_model(
    name: str, family: Callable[[str], Path], windows: torch.Tensor, tmp_path: Path
) -> None:
    folder = family(name)
    layout = layout_of(folder)
    gradients = Gradients(tmp_path, layout)
    gradients.gather(folder, windows)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    blocks = next(module for module in model.modules() if isinstance(module, torch.nn.ModuleList))
    sums: dict[str, torch.Tensor] = {}
    for window in windows:
        model.zero_grad()
        logits = model(input_ids=window[None], use_cache=False).logits[0, :-1]
        torch.autograd.backward(torch.nn.functional.cross_entropy(logits, window[1:]))
        for block, spec in zip(blocks, layout.blocks, strict=True):
            pulls = {key: torch.zeros_like(p) if p.grad is None else p.grad for key, p in block.named_parameters()}
            for key, pull in matrices(pulls, spec).items():
                sums[key] = sums.get(key, 0) + pull.square()
    for spec in layout.blocks:
        found = gradients.block(spec.index)
        assert set(found) == {linear.name for linear in spec.linears}
        for key, made in found.items():
            expected = (sums[key] / len(windows)).sqrt()
            assert torch.allclose(made, expected, rtol=1e-3, atol=1e-4 * float(expected.max()))
    assert not list(tmp_path.glob("entering-*"))
