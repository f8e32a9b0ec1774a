"""The gguf method on whole tiny models: what it refuses and what it writes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import StorageError, UsageError
from sizewise.core.model import Model
from sizewise.load.gguf.file import read_gguf
from sizewise.load.layers import layout_of
from sizewise.load.models import list_models
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.calibration import load_calibration
from sizewise.make.gguf_encoder import Encoder
from sizewise.make.gguf_mix import assign
from sizewise.make.recorded import Recorded

FEW: dict[str, Any] = {"tokens": 1024, "window": 64}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return write_tiny_llama(tmp_path_factory.mktemp("base") / "llama.gguf", width=256, hidden=256, layers=2)


@pytest.fixture(scope="module")
def made(base: Path, store: Store) -> Model:
    return make("gguf", str(base), name="measured", options={"type": "Q4_K_M", **FEW}, store=store)


def test_measured_types_take_no_more_bytes_than_the_mix(base: Path, made: Model, store: Store) -> None:
    mix = make("gguf", str(base), name="mix", options={"type": "Q4_K_M", "types": "mix", **FEW}, store=store)
    plain = read_gguf(mix.files["model.gguf"])
    assert {tensor.name: tensor.type for tensor in plain.tensors} == assign(read_gguf(base), "Q4_K_M")
    assert made.size_bytes <= mix.size_bytes
    assert made.lineage.figures["expected_kl"] > 0
    assert made.lineage.figures["calibration_tokens"] == 1024
    assert made.lineage.data_name == "calibration.jsonl"
    assert str(made.lineage.data_digest).startswith("sha256:")
    assert sum(made.lineage.figures["types"].values()) == 15


def test_a_quantized_base_is_refused_unless_asked_for(made: Model, store: Store) -> None:
    path = str(made.files["model.gguf"])
    before = len(list_models(store))
    with pytest.raises(UsageError, match="already Q4_K_M: start from a model in 16 bits, or pass --dequantize"):
        make("gguf", path, name="twice", options={"type": "Q4_0", **FEW}, store=store)
    assert len(list_models(store)) == before
    twice = make("gguf", path, name="twice", options={"type": "Q4_0", "dequantize": True, **FEW}, store=store)
    assert "dequantized from Q4_K_M" in twice.lineage.note


def test_too_little_text_is_told(base: Path, store: Store, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text("Too short.", encoding="utf-8")
    with pytest.raises(UsageError, match="give more text"):
        make("gguf", str(base), name="short", options={"calibration": str(text), **FEW}, store=store)


def test_a_text_that_is_not_there_is_told_before_the_base_is_unpacked(base: Path, store: Store, tmp_path: Path) -> None:
    heard: list[object] = []
    options = {"calibration": str(tmp_path / "typo.txt"), **FEW}
    with pytest.raises(StorageError, match=r"typo\.txt: cannot be read"):
        make("gguf", str(base), name="typo", options=options, store=store, listen=heard.append)
    assert heard == []


@pytest.mark.parametrize("name", ["gpt2", "phimoe"])
def test_a_checkpoint_of_any_family_becomes_a_gguf(name: str, family: Callable[[str], Path], store: Store) -> None:
    done = make("gguf", str(family(name)), name=f"from-{name}", options={"type": "Q4_0", **FEW}, store=store)
    info = read_gguf(done.files["model.gguf"])
    assert done.kind == "gguf"
    assert {tensor.type.name for tensor in info.tensors} & {"Q4_0", "IQ4_NL", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "F16"}
    assert set(done.files) == {"model.gguf"}


def test_values_count_loudness_alone_and_the_others_the_whole_hessian(base: Path, made: Model, tmp_path: Path) -> None:
    from sizewise.load.checkpoint.import_gguf import import_gguf

    folder = tmp_path / "checkpoint"
    import_gguf(base, folder)
    layout = layout_of(folder)
    windows = load_calibration(None, folder, tokens=1024, window=64).windows
    recorded = Recorded("m", "t", layout, tmp_path)
    recorded.gather(folder, windows, ["hessian"])
    encoder = Encoder(folder, read_gguf(base), tries=2, rounds=0, damp=0.01)
    encoder.use(recorded)
    prefix = layout.blocks[1].prefix
    value, query = (encoder.metric(f"{prefix}.self_attn.{part}_proj").hessian for part in ("v", "q"))
    assert torch.equal(value, value.diagonal().diag())
    assert torch.allclose(value.diagonal(), query.diagonal(), rtol=1e-5)
    assert float((query - query.diagonal().diag()).abs().max()) > 0
    assert encoder.metric(f"{prefix}.self_attn.k_proj") is encoder.metric(f"{prefix}.self_attn.q_proj")
