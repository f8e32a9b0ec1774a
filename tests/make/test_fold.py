"""A scale moved from a matrix's input into what makes that input changes nothing, in every family."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from torch import Tensor

from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import layout_of
from sizewise.make.fold import divide, outlet_of
from sizewise.make.recorded import Recorded
from sizewise.make.stream import Stream
from sizewise.make.treat import read_block
from sizewise.make.walk import activation_of

Family = Callable[[str], Path]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_network_says_what_it_said(name: str, family: Family, windows: Tensor, tmp_path: Path) -> None:
    folder = family(name)
    layout, source = layout_of(folder), TensorSource(folder)
    recorded = Recorded("sha256:m", "sha256:t", layout, tmp_path)
    recorded.gather(folder, windows, {"input_norm"})
    stream = Stream(folder, windows, layout)
    stream.embed()
    places = set()
    for block in layout.blocks:
        with stream.block(block.index) as module, torch.no_grad():
            before = torch.cat([stream.run(block.index, module, hidden) for _, hidden in stream.batches()])
        tensors = read_block(source, block)
        for number, seen in enumerate(recorded.block(block.index, hessian=False)):
            outlet = outlet_of(layout, block, seen.names, seen.norm, activation_of(folder))
            if outlet is None:
                continue
            places.add("norm" if outlet.norm else outlet.linear.role if outlet.linear else "")
            draw = torch.Generator().manual_seed(number)
            members = [linear for linear in block.linears if linear.name in seen.names]
            scale = 2.0 ** torch.randint(-2, 3, (members[0].shape[1],), generator=draw)
            for linear in members:
                tensors[linear.weight] = tensors[linear.weight] * scale
            divide(tensors, outlet, scale, layout.norm_offset)
        transposed = {linear.weight for linear in block.linears if linear.transposed}
        folded = {key: value.T.contiguous() if key in transposed else value for key, value in tensors.items()}
        with stream.block(block.index, folded) as module, torch.no_grad():
            after = torch.cat([stream.run(block.index, module, hidden) for _, hidden in stream.batches()])
        assert torch.allclose(before, after, rtol=1e-5, atol=1e-5 * float(before.abs().max()))
        assert any(not torch.equal(folded[key], source.get(key).float()) for key in folded) or not places
        stream.hidden = before.to(stream.keep)
    if not layout.experts:
        assert "norm" in places


def test_values_shared_by_query_heads_and_nonlinear_ways_take_no_scale(family: Family) -> None:
    layout = layout_of(family("llama"))  # two query heads share the values of one head
    block = layout.blocks[0]
    (o,), (down,) = block.of("o"), block.of("down")
    assert layout.kv_heads < layout.heads
    assert outlet_of(layout, block, (o.name,), None, "silu") is None
    gated = outlet_of(layout, block, (down.name,), None, "silu")
    assert gated is not None
    assert gated.linear is not None
    assert gated.linear.role == "up"
    plain = layout_of(family("gpt2")).blocks[0]
    (last,) = plain.of("down")
    assert outlet_of(layout_of(family("gpt2")), plain, (last.name,), None, "gelu_new") is None
    assert outlet_of(layout_of(family("gpt2")), plain, (last.name,), None, "relu") is not None
    (value,) = plain.of("o")
    own = outlet_of(layout_of(family("gpt2")), plain, (value.name,), None, "gelu_new")
    assert own is not None
    assert own.rows == (range(128, 192),)
