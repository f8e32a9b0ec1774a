"""Block by block the network says what it says as a whole."""

import gc
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from families import FAMILIES
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from sizewise.core.errors import BadModel, Unsupported
from sizewise.make.stream import Stream

Family = Callable[[str], Path]


@pytest.mark.parametrize("name", FAMILIES)
def test_hidden_states_and_logits_are_those_of_the_whole_model(
    name: str, family: Family, windows: torch.Tensor
) -> None:
    stream = Stream(family(name), windows)
    stream.embed()
    whole = AutoModelForCausalLM.from_pretrained(family(name), dtype=stream.compute).eval()
    with torch.inference_mode():
        made = whole(input_ids=windows, output_hidden_states=True, use_cache=False)
        for index, expected in enumerate(made.hidden_states[:-1]):
            assert torch.allclose(stream.hidden, expected.to(stream.keep), atol=1e-5, rtol=1e-4)
            with stream.block(index) as module:
                stream.hidden = torch.cat([stream.run(index, module, hidden) for _, hidden in stream.batches()])
        with stream.top() as top:
            assert torch.allclose(top(stream.hidden[2:3]), made.logits[2:3], atol=1e-4, rtol=1e-4)


def test_weights_are_held_while_a_block_is_open_and_no_longer(family: Family, windows: torch.Tensor) -> None:
    stream = Stream(family("llama"), windows)
    stream.embed()
    held = []
    for index in range(2):
        with stream.block(index):
            held.append([parameter.is_meta for parameter in stream.model.parameters()])
    gc.collect()
    assert all(parameter.is_meta for parameter in stream.model.parameters())
    assert [states.count(False) for states in held] == [9, 9]


def test_tensors_can_be_taken_from_elsewhere(family: Family, windows: torch.Tensor) -> None:
    stream = Stream(family("gpt2"), windows)
    stream.embed()
    names = [name for name in stream.source if name.startswith("transformer.h.0.") and "c_proj" in name]
    nothing = {name: torch.zeros(stream.source.shape(name)) for name in names}
    with stream.block(0, nothing) as module, torch.inference_mode():
        for start, hidden in stream.batches():
            assert torch.equal(stream.run(0, module, hidden), hidden)
            assert start % stream.batch == 0


def test_batches_are_all_of_one_size(family: Family) -> None:
    for count, expected in ((6, 6), (120, 24), (23, 23), (29, 1), (150, 25)):
        assert Stream(family("llama"), torch.zeros(count, 40, dtype=torch.int32)).batch == expected


def test_damaged_weights_and_long_windows(family: Family, windows: torch.Tensor, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="windows of 300 tokens exceed the model's context of 256"):
        Stream(family("llama"), torch.zeros(2, 300, dtype=torch.int32))
    for path in family("llama").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 4] = torch.nan
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    stream = Stream(tmp_path, windows)
    stream.embed()
    with stream.block(0), pytest.raises(BadModel, match=r"layers\.1\.mlp\.up_proj.* not finite"), stream.block(1):
        pass
