"""The layout against the real module trees: every matrix named exactly once, with its shape and role."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from families import FAMILIES, write_family

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.checkpoint.tensors import TensorSink, TensorSource
from sizewise.load.layers import Layout, layout_of


def _model(folder: Path) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)


def _matrices(model: Any) -> dict[str, tuple[int, int]]:
    """(out, in) of every matrix in the blocks of the real module tree, by the name that it has on disk."""
    found: dict[str, tuple[int, int]] = {}
    for name, module in model.named_modules():
        kind = type(module).__name__
        if kind == "Conv1D":
            found[name] = (module.weight.shape[1], module.weight.shape[0])
        elif isinstance(module, torch.nn.Linear):
            place = name.replace(".mlp.router", ".block_sparse_moe.gate")
            found[place] = (module.weight.shape[0], module.weight.shape[1])
        elif kind == "PhimoeExperts":
            where = name.replace(".mlp.", ".block_sparse_moe.")
            for expert in range(module.num_experts):
                half, width = module.gate_up_proj.shape[1] // 2, module.gate_up_proj.shape[2]
                found |= {f"{where}.{expert}.{part}": (half, width) for part in ("w1", "w3")}
                found[f"{where}.{expert}.w2"] = (width, half)
    return {name: shape for name, shape in found.items() if not name.startswith("lm_head")}


@pytest.mark.parametrize("family", FAMILIES)
def test_every_matrix_is_named_once(family: str, tmp_path: Path) -> None:
    layout = layout_of(write_family(family, tmp_path))
    model = _model(tmp_path)
    names = [linear.name for linear in layout.linears]
    assert len(set(names)) == len(names)
    assert {linear.name: linear.shape for linear in layout.linears} == _matrices(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_roles_heads_and_sizes(family: str, tmp_path: Path) -> None:
    layout = layout_of(write_family(family, tmp_path))
    block = layout.blocks[0]
    q, k = _part_rows(layout, "q"), _part_rows(layout, "k")
    assert q == layout.heads * layout.head_dim
    assert k == _part_rows(layout, "v") == layout.kv_heads * layout.head_dim
    (o,) = block.of("o")
    assert o.shape == (layout.hidden, q)
    experts = max(1, layout.experts)
    assert len(block.of("down")) == experts
    assert _part_rows(layout, "up") == experts * layout.ffn
    gated = bool(block.of("gate", "gate_up"))
    assert gated == (family not in ("phi", "falcon", "falcon-40b", "gpt2", "opt"))
    assert block.norms


def _part_rows(layout: Layout, part: str) -> int:
    linears = layout.blocks[0].linears
    return sum(len(rows) for linear in linears for rows in linear.rows_of(part))


@pytest.mark.parametrize("family", FAMILIES)
def test_what_is_outside_the_blocks(family: str, tmp_path: Path) -> None:
    layout = layout_of(write_family(family, tmp_path))
    source = TensorSource(tmp_path)
    tied = _model(tmp_path).config.tie_word_embeddings
    assert layout.tied == tied == (layout.head is None)
    assert source.shape(layout.embedding + ".weight") == (layout.vocabulary, layout.hidden)
    known = {layout.embedding, layout.head, layout.final_norm, layout.positions}
    known |= {linear.name for linear in layout.linears} | {norm for block in layout.blocks for norm in block.norms}
    unknown = [name for name in source if name.rpartition(".")[0] not in known]
    assert not unknown
    assert not layout.others


def test_fused_rows_are_those_that_the_real_attention_splits(tmp_path: Path) -> None:
    """Falcon interleaves heads: zeroing the rows of v (and their biases' absence) must silence the attention alone."""
    layout = layout_of(write_family("falcon-40b", tmp_path))
    (qkv,) = layout.blocks[0].of("qkv")
    model = _model(tmp_path)
    attention = model.transformer.h[0].self_attention
    heard: dict[str, torch.Tensor] = {}
    attention.dense.register_forward_pre_hook(lambda _, given: heard.update(context=given[0]))
    ids = torch.arange(5, 15)[None]
    with torch.no_grad():
        for rows in qkv.rows_of("v"):
            attention.query_key_value.weight[rows.start : rows.stop] = 0
        model(ids)
        assert heard["context"].abs().max() == 0
        first = qkv.rows_of("v")[0]
        attention.query_key_value.weight[first.start : first.stop] = 1.0
        model(ids)
    per_head = heard["context"][0, -1].view(layout.heads, layout.head_dim).abs().amax(1)
    assert (per_head > 0).tolist() == [True, True, False, False]  # the first group's heads hear its values


def test_windows_by_layer(tmp_path: Path) -> None:
    layout = layout_of(write_family("gemma3_text", tmp_path / "a"))
    assert [block.window for block in layout.blocks] == [32, 32, None]
    assert layout_of(write_family("mistral", tmp_path / "b")).window == 32
    assert layout_of(write_family("llama", tmp_path / "c")).window is None


def test_a_bare_decoder_without_its_prefix(tmp_path: Path) -> None:
    folder = write_family("gpt2", tmp_path)
    tensors = {name: TensorSource(folder).get(name) for name in TensorSource(folder)}
    with TensorSink(folder) as sink:
        for name, tensor in tensors.items():
            sink.put(name.removeprefix("transformer."), tensor)
        sink.finish()
    assert layout_of(folder).blocks[0].linears[0].name == "h.0.attn.c_attn"


def test_unknown_families_and_matrices_are_refused(tmp_path: Path) -> None:
    folder = write_family("llama", tmp_path)
    with TensorSink(folder / "more") as sink:
        source = TensorSource(folder)
        for name in source:
            sink.put(name, source.get(name))
        sink.put("model.layers.0.mlp.extra_proj.weight", torch.zeros(4, 4))
        sink.finish()
    for name in ("config.json", "tokenizer.json"):
        (folder / "more" / name).write_bytes((folder / name).read_bytes())
    with pytest.raises(Unsupported, match="extra_proj"):
        layout_of(folder / "more")
    config = json.loads((folder / "config.json").read_text()) | {"model_type": "bloom"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(Unsupported, match="bloom"):
        layout_of(folder)


def test_a_missing_matrix_is_named(tmp_path: Path) -> None:
    folder = write_family("qwen2", tmp_path)
    source = TensorSource(folder)
    with TensorSink(folder) as sink:
        for name in list(source):
            if "layers.1.mlp.up_proj" not in name:
                sink.put(name, source.get(name))
        sink.finish()
    with pytest.raises(BadModel, match=r"model\.layers\.1 has no matrix for up"):
        layout_of(folder)
