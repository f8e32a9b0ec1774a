"""FLOPs per token of every family: the closed form against what torch counts while the network runs."""

from pathlib import Path

import pytest
import torch
from families import FAMILIES, write_family
from torch.utils.flop_counter import FlopCounterMode

from sizewise.load.models import find_model
from sizewise.measure.meters.flops import flops

LENGTH = 32


def counted(folder: Path) -> int:
    """By torch, for a pass over LENGTH tokens; all attention scores are computed, masked or not."""
    from transformers import AutoModelForCausalLM

    extra = {"experts_implementation": "eager"} if "phimoe" in folder.name else {}
    net = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager", **extra)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.randint(3, 200, (1, LENGTH), generator=torch.Generator().manual_seed(1)))
    return int(counter.get_total_flops())


@pytest.mark.parametrize("family", FAMILIES)
def test_flops_of_a_checkpoint_are_what_torch_counts(tmp_path: Path, family: str) -> None:
    folder = write_family(family, tmp_path / family)
    found = flops(find_model(str(folder)), positions=LENGTH).value
    assert found is not None
    # of so few weights up to 2 % are norms and biases, which are not counted as products
    assert found * LENGTH == pytest.approx(counted(folder), rel=0.025)
