"""Checkpoint -> GGUF -> checkpoint for every family: the engine computes the same, and nothing is lost on the way."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from families import FAMILIES, write_family
from safetensors.torch import load_file
from tiny_checkpoint import as_model
from tiny_tokenizers import write_bytes_tokenizer

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load._parity_child import Llama, Torch
from sizewise.load.checkpoint.export_gguf import export_gguf
from sizewise.load.checkpoint.import_gguf import import_gguf
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.gguf.file import read_gguf
from sizewise.load.gguf.vocabulary import load_tokenizer
from sizewise.load.layers import layout_of
from sizewise.load.parity import BOUNDS, PROBES

KNOWN = tuple(family for family in FAMILIES if family != "opt")
GELU = ("gpt2", "phi", "falcon", "falcon-40b", "gemma2", "gemma3_text")  # read from a table of 16-bit numbers


def _torch(folder: Path) -> Torch:
    files = {name: str(path) for name, path in as_model(folder).files.items()}
    return Torch(folder.name, "checkpoint", files, 2)


def _gaps(one: Any, other: Any, window: int | None) -> Any:
    """Largest difference of a log-probability at each position, over some probes within the window."""
    found = []
    for text in PROBES[4:8]:
        ids = one.encode(text)[: window or 48]
        left, right = (torch.log_softmax(torch.tensor(engine.logits(ids)), -1).numpy() for engine in (one, other))
        found.append(np.abs(left - right).max(axis=1))
    return np.concatenate(found)


@pytest.mark.parametrize("family", KNOWN)
def test_the_engine_computes_the_same(family: str, tmp_path: Path) -> None:
    folder = write_family(family, tmp_path / "model")
    made = export_gguf(folder, tmp_path / "model.gguf", precision="F32")
    one, other = _torch(folder), Llama(str(made.path), 2, False)
    assert [one.encode(text) for text in PROBES] == [other.encode(text) for text in PROBES]
    gaps = _gaps(one, other, layout_of(folder).window)
    bound = 0.05 if family in GELU else BOUNDS["F32"]
    if family == "phimoe":  # experts that are nearly as good as each other are weighted otherwise, see load.gguf.names
        assert np.median(gaps) < bound
        assert made.notes
    else:
        assert gaps.max() < bound


@pytest.mark.parametrize("family", KNOWN)
def test_there_and_back_changes_nothing(family: str, tmp_path: Path) -> None:
    folder = write_family(family, tmp_path / "model")
    made = export_gguf(folder, tmp_path / "model.gguf", precision="F32")
    back = import_gguf(made.path, tmp_path / "back")
    one, other = TensorSource(folder), TensorSource(back.folder)
    assert set(one) == set(other)
    assert back.parameters == made.parameters == sum(one.get(name).numel() for name in one)
    if family != "phimoe":
        assert all(torch.equal(one.get(name), other.get(name)) for name in one)
    first, second = load_tokenizer(folder), load_tokenizer(back.folder)
    for text in PROBES:
        assert first(text)["input_ids"] == second(text)["input_ids"]
    assert first.chat_template == second.chat_template
    assert _same_logits(folder, back.folder) < 1e-4


def _same_logits(one: Path, other: Path) -> float:
    from transformers import AutoModelForCausalLM

    ids = torch.arange(4, 4 + (layout_of(one).window or 40))[None]
    with torch.no_grad():
        left, right = (AutoModelForCausalLM.from_pretrained(folder)(ids).logits for folder in (one, other))
    return float((left - right).abs().max())


@pytest.mark.parametrize("precision", ["F16", "BF16"])
def test_other_precisions_are_the_rounded_weights(precision: str, tmp_path: Path) -> None:
    folder = write_family("granite", tmp_path / "model")
    made = export_gguf(folder, tmp_path / "model.gguf", precision=precision)  # type: ignore[arg-type]
    assert read_gguf(made.path).quantization == precision
    back = import_gguf(made.path, tmp_path / "back")
    kind = {"F16": torch.float16, "BF16": torch.bfloat16}[precision]
    one, other = load_file(folder / "model.safetensors"), load_file(back.folder / "model.safetensors")
    assert all(torch.equal(other[name], one[name].to(kind)) for name in one)


def test_auto_keeps_the_checkpoints_precision(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    folder = write_family("llama", tmp_path / "model")
    half = tmp_path / "half"
    shutil.copytree(folder, half)
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(half)
    assert export_gguf(half, tmp_path / "model.gguf").quantization == "BF16"


def test_a_quantized_file_becomes_the_numbers_that_it_stands_for(tmp_path: Path) -> None:
    import gguf
    from tiny_gguf import write_tiny_llama

    path = write_tiny_llama(tmp_path / "q.gguf", quantization=gguf.GGMLQuantizationType.Q4_0, file_type=2)
    made = import_gguf(path, tmp_path / "model")
    assert made.dtype == "float32"
    assert made.note.startswith("dequantized from Q4_0")
    embedding = next(tensor for tensor in gguf.GGUFReader(path).tensors if tensor.name == "token_embd.weight")
    expected = gguf.dequantize(embedding.data, embedding.tensor_type)
    assert np.array_equal(load_file(made.folder / "model.safetensors")["model.embed_tokens.weight"].numpy(), expected)
    one, other = Llama(str(path), 2, False), _torch(made.folder)
    ids = one.encode("abc def")
    left, right = one.logits(ids), other.logits(ids)
    assert np.corrcoef(left.ravel(), right.ravel())[0, 1] > 0.99  # the engine rounds activations to 8 bits


def test_llama_cpp_has_no_opt(tmp_path: Path) -> None:
    folder = write_family("opt", tmp_path / "model")
    with pytest.raises(Unsupported, match="no architecture for family 'opt'"):
        export_gguf(folder, tmp_path / "model.gguf")
    assert not (tmp_path / "model.gguf").exists()


@pytest.mark.parametrize(
    ("family", "changes", "what"),
    [
        ("gemma2", {"query_pre_attn_scalar": 24}, "scales attention"),
        ("llama", {"hidden_act": "relu"}, "activation"),
        ("smollm3", {"no_rope_layers": [1, 0, 1, 0]}, "fourth layer"),
        ("phi", {"qk_layernorm": True}, "norms of queries"),
        ("falcon", {"alibi": True}, "rotary positions"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    ],
)
def test_what_the_engine_cannot_express_is_refused(
    family: str, changes: dict[str, Any], what: str, tmp_path: Path
) -> None:
    folder = write_family(family, tmp_path / "model", **changes)
    with pytest.raises(Unsupported, match=what):
        export_gguf(folder, tmp_path / "model.gguf")


def test_numbers_split_into_digits(tmp_path: Path) -> None:
    folder = write_family("llama3", tmp_path / "model")
    write_bytes_tokenizer(folder, digits=True)
    made = export_gguf(folder, tmp_path / "model.gguf")
    assert read_gguf(made.path).metadata["tokenizer.ggml.pre"] == "smollm"


def test_weights_that_are_not_numbers_are_refused(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    folder = write_family("qwen2", tmp_path / "model")
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.up_proj.weight"][3, 5] = torch.nan
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(BadModel, match=r"layers\.1\.mlp\.up_proj"):
        export_gguf(folder, tmp_path / "model.gguf")
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
