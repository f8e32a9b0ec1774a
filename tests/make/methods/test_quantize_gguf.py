"""Oracles of quantize-gguf: the gguf library's own arithmetic, published sizes, the engine that runs the result."""

import math
import typing
from pathlib import Path

import gguf
import numpy as np
import pytest
from numpy.typing import NDArray
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import BadModel, Unsupported, UsageError
from sizewise.core.events import silent
from sizewise.core.model import Model
from sizewise.load.gguf.file import ArrayRef, GgufInfo, TensorInfo, read_gguf
from sizewise.load.gguf.types import BY_NAME
from sizewise.make.gguf_mix import MIXES, assign, average_bits, fitting, may_change
from sizewise.make.method import Made
from sizewise.make.methods.quantize_gguf import quantize_gguf
from sizewise.make.repack import Type

TYPES: tuple[Type, ...] = typing.get_args(Type)


def as_model(path: Path, kind: typing.Literal["gguf", "checkpoint"] = "gguf") -> Model:
    return Model(path.name, kind, "sha256:" + "0" * 64, {"model.gguf": path}, path.stat().st_size)


def quantize(path: Path, kind: Type, *, requantize: bool = False) -> Made:
    out = path.parent / f"{kind}-{len(list(path.parent.iterdir()))}"
    out.mkdir()
    return quantize_gguf(as_model(path), out, silent, type=kind, requantize=requantize)


def weights_of(path: Path) -> dict[str, NDArray[np.float32]]:
    return {
        tensor.name: np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
        for tensor in gguf.GGUFReader(path).tensors
    }


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """Rows of 64 and 128: too narrow for blocks of 256."""
    return write_tiny_llama(tmp_path / "small.gguf")


@pytest.fixture
def wide(tmp_path: Path) -> Path:
    """Rows of 256 and 512: every type fits."""
    return write_tiny_llama(tmp_path / "wide.gguf", width=256, hidden=512)


def test_every_mix_can_be_asked_for_and_has_a_code() -> None:
    assert set(TYPES) == set(MIXES)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "BF16"])
def test_bytes_are_those_of_the_gguf_library(kind: Type, small: Path) -> None:
    path = quantize(small, kind).files["model.gguf"]
    source = {tensor.name: tensor for tensor in gguf.GGUFReader(small).tensors}
    compared = 0
    for tensor in gguf.GGUFReader(path).tensors:
        if tensor.tensor_type.name == kind:  # the tied embedding has a type of its own
            expected = gguf.quantize(source[tensor.name].data, tensor.tensor_type)
            assert tensor.data.tobytes() == expected.tobytes(), tensor.name
            compared += 1
    assert compared >= 14


# Root mean square error of normally distributed weights, relative to their size: what b bits can do.
ERRORS = {"Q8_0": 0.006, "Q6_K": 0.02, "Q5_K_S": 0.04, "Q5_1": 0.041, "Q5_0": 0.046, "Q4_K_S": 0.075, "Q4_1": 0.082}
ERRORS |= {"IQ4_NL": 0.08, "IQ4_XS": 0.081, "Q4_0": 0.09, "Q3_K_S": 0.16, "Q2_K": 0.31}


@pytest.mark.parametrize("kind", ERRORS)
def test_error_is_what_so_many_bits_allow(kind: Type, wide: Path) -> None:
    path = quantize(wide, kind).files["model.gguf"]
    name = "blk.1.attn_q.weight"
    before, after = weights_of(wide)[name], weights_of(path)[name]
    error = float(np.sqrt(np.mean((after - before) ** 2) / np.mean(before**2)))
    bits = BY_NAME[MIXES[kind].base].bits
    assert 2.0**-bits / 4 < error < ERRORS[kind]  # not below what the bits can hold: then nothing was quantized


def test_more_bits_are_never_worse(wide: Path) -> None:
    before = weights_of(wide)["blk.1.ffn_up.weight"]
    errors = []
    kinds: tuple[Type, ...] = ("Q2_K", "Q3_K_S", "Q4_K_S", "Q5_K_S", "Q6_K", "Q8_0", "F16")
    for kind in kinds:
        after = weights_of(quantize(wide, kind).files["model.gguf"])["blk.1.ffn_up.weight"]
        errors.append(float(np.abs(after - before).mean()))
    assert errors == sorted(errors, reverse=True)


def test_half_to_full_and_back_is_the_same_file(tmp_path: Path) -> None:
    half = write_tiny_llama(tmp_path / "half.gguf", dtype=np.float16, file_type=1)
    full = quantize(half, "F32").files["model.gguf"]
    again = quantize(full, "F16").files["model.gguf"]
    assert weights_of(full).keys() == weights_of(half).keys()
    assert all((weights_of(full)[name] == values).all() for name, values in weights_of(half).items())
    before, after = read_gguf(half), read_gguf(again)
    assert half.read_bytes()[before.data_start :] == again.read_bytes()[after.data_start :]


def test_norms_stay_and_everything_said_is_kept(small: Path) -> None:
    made = quantize(small, "Q4_0")
    before, after = gguf.GGUFReader(small), gguf.GGUFReader(made.files["model.gguf"])
    changed = {"general.file_type", "general.quantization_version"}
    assert set(after.fields) - set(before.fields) <= changed
    for name, field in before.fields.items():
        if name not in changed | {"GGUF.kv_count"}:
            assert after.fields[name].contents() == field.contents(), name
    assert after.fields["general.file_type"].contents() == gguf.LlamaFileType.MOSTLY_Q4_0
    norms = [tensor for tensor in after.tensors if tensor.name.endswith("norm.weight")]
    assert len(norms) == 5
    assert all(tensor.tensor_type == gguf.GGMLQuantizationType.F32 for tensor in norms)


@pytest.mark.parametrize("kind", TYPES)
def test_every_type_gives_a_file_that_says_so(kind: Type, wide: Path) -> None:
    made = quantize(wide, kind)
    info = read_gguf(made.files["model.gguf"])
    assert (info.quantization, made.quantization, info.parameters) == (kind, kind, read_gguf(wide).parameters)
    assert all(np.isfinite(values).all() for values in weights_of(made.files["model.gguf"]).values())


def llama_3_8b() -> GgufInfo:
    """The shapes of Llama 3 8B, without its weights."""
    full, half, tensors = BY_NAME["F32"], BY_NAME["F16"], []

    def add(name: str, *shape: int) -> None:
        tensors.append(TensorInfo(name, shape, half if len(shape) > 1 else full, 0, 0))

    add("token_embd.weight", 4096, 128_256)
    for layer in range(32):
        for name in ("attn_norm", "ffn_norm"):
            add(f"blk.{layer}.{name}.weight", 4096)
        for name, rows in (("attn_q", 4096), ("attn_k", 1024), ("attn_v", 1024), ("attn_output", 4096)):
            add(f"blk.{layer}.{name}.weight", 4096, rows)
        for name in ("ffn_gate", "ffn_up"):
            add(f"blk.{layer}.{name}.weight", 4096, 14_336)
        add(f"blk.{layer}.ffn_down.weight", 14_336, 4096)
    add("output_norm.weight", 4096)
    add("output.weight", 4096, 128_256)
    return GgufInfo(
        path=Path("llama-3-8b.gguf"),
        version=3,
        architecture="llama",
        parameters=sum(item.elements for item in tensors),
        quantization="F16",
        context_length=8192,
        embedding_length=4096,
        block_count=32,
        template=None,
        bos=None,
        eos=None,
        tensors=tuple(tensors),
        metadata={"llama.attention.head_count": 32, "llama.attention.head_count_kv": 8},
        size_bytes=0,
        alignment=32,
        data_start=0,
        kv_bytes_per_token=None,
        spans={},
    )


# GiB of Llama 3 8B, from the help of llama.cpp's own quantizer.
PUBLISHED = {"Q2_K": 2.96, "Q3_K_S": 3.41, "Q3_K_M": 3.74, "Q3_K_L": 4.03, "Q4_0": 4.34, "Q4_1": 4.78, "Q5_0": 5.21}
PUBLISHED |= {"Q5_1": 5.65, "Q4_K_S": 4.37, "Q4_K_M": 4.58, "Q5_K_S": 5.21, "Q5_K_M": 5.33, "Q6_K": 6.14, "Q8_0": 7.96}


@pytest.mark.parametrize("kind", PUBLISHED)
def test_mixes_have_the_published_sizes(kind: str) -> None:
    info = llama_3_8b()
    gib = average_bits(info, assign(info, kind)) * info.parameters / 8 / 2**30
    assert gib + 0.0073 == pytest.approx(PUBLISHED[kind], abs=0.012)  # its tokenizer and template take 7.8 MB


def test_where_the_bits_go() -> None:
    info = llama_3_8b()
    names = {name: kind.name for name, kind in assign(info, "Q4_K_M").items()}
    better = [layer for layer in range(32) if names[f"blk.{layer}.ffn_down.weight"] == "Q6_K"]
    assert better == [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    assert [names[f"blk.{layer}.attn_v.weight"] == "Q6_K" for layer in range(32)] == [at in better for at in range(32)]
    assert (names["token_embd.weight"], names["output.weight"], names["blk.9.attn_q.weight"]) == (
        "Q4_K",
        "Q6_K",
        "Q4_K",
    )


def test_eight_experts_keep_their_small_attention() -> None:
    info = llama_3_8b()
    info.metadata["llama.expert_count"] = 8
    names = {name: kind.name for name, kind in assign(info, "Q4_K_S").items()}
    picked = ("attn_v", "attn_k", "attn_output", "attn_q", "ffn_down")
    assert [names[f"blk.9.{part}.weight"] for part in picked] == ["Q8_0", "Q8_0", "Q5_K", "Q4_K", "Q4_K"]


@pytest.mark.parametrize(
    ("wanted", "width", "got"),
    [
        ("Q2_K", 576, "Q4_0"),
        ("Q3_K", 576, "Q4_0"),
        ("Q4_K", 576, "Q5_0"),
        ("Q5_K", 576, "Q5_1"),
        ("Q6_K", 576, "Q8_0"),
        ("IQ4_XS", 576, "IQ4_NL"),
        ("Q6_K", 512, "Q6_K"),
        ("Q4_0", 576, "Q4_0"),
        ("Q4_0", 48, "F16"),
        ("Q2_K", 1000, "F16"),
    ],
)
def test_rows_that_do_not_fit_get_the_nearest_type(wanted: str, width: int, got: str) -> None:
    assert fitting(BY_NAME[wanted], width).name == got


def test_small_and_delicate_tensors_are_kept() -> None:
    def changes(name: str, *shape: int) -> bool:
        return may_change(TensorInfo(name, shape, BY_NAME["F32"], 0, 0))

    assert changes("blk.0.ffn_up.weight", 64, 8)
    assert changes("blk.0.ffn_up_exps.weight", 64, 8, 4)
    for name in ("blk.0.attn_norm.weight", "blk.0.ffn_gate_inp.weight", "position_embd.weight", "blk.0.attn_q.bias"):
        assert not changes(name, 64, 8), name
    assert not changes("blk.0.ffn_up.weight", 64)
    assert not changes("blk.0.ffn_up.weight", 64, 1)


def test_a_quantized_model_is_not_quantized_again_unasked(tmp_path: Path) -> None:
    base = write_tiny_llama(tmp_path / "q.gguf", quantization=gguf.GGMLQuantizationType.Q4_1, file_type=3)
    with pytest.raises(UsageError, match=r"already Q4_1: dequantize first with --type F16, or pass --requantize"):
        quantize(base, "Q2_K")
    forced = quantize(base, "Q8_0", requantize=True)
    assert forced.note.startswith("requantized from Q4_1")
    unpacked = quantize(base, "F16")
    assert unpacked.note.startswith("dequantized from Q4_1")
    kept, back = weights_of(base), weights_of(unpacked.files["model.gguf"])
    assert all((values.astype(np.float16) == back[name]).all() for name, values in kept.items())
    assert quantize(unpacked.files["model.gguf"], "Q2_K").note == ""


def test_what_cannot_be_quantized(small: Path, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="needs a single GGUF file"):
        quantize_gguf(as_model(small, "checkpoint"), tmp_path, silent)
    with pytest.raises(BadModel, match="no such file"):
        quantize_gguf(Model("x", "gguf", "", {"model.gguf": tmp_path / "none.gguf"}, 0), tmp_path, silent)


@pytest.mark.parametrize(("value", "error", "says"), [(np.nan, BadModel, "not finite"), (1e5, Unsupported, "BF16")])
def test_weights_that_no_type_holds(value: float, error: type[Exception], says: str, small: Path) -> None:
    info = read_gguf(small)
    tensor = next(item for item in info.tensors if item.name == "blk.1.ffn_up.weight")
    data = bytearray(small.read_bytes())
    data[tensor.start + 400 : tensor.start + 404] = np.float32(value).tobytes()
    small.write_bytes(data)
    with pytest.raises(error, match=f"blk.1.ffn_up.weight.*{says}"):
        quantize(small, "F16")
    assert not list(small.parent.rglob("F16-*/*"))


def log_probabilities(path: Path, sequence: list[int]) -> NDArray[np.float64]:
    """(tokens, vocabulary) log-probabilities, from the engine itself."""
    from sizewise.load.llama.c import log_to
    from sizewise.load.llama.model import NativeContext, NativeModel

    log_to(lambda level, text: None)
    model = NativeModel(path)
    context = NativeContext(model, n_ctx=256, n_threads=1, n_threads_batch=1)
    count = len(sequence)
    context.decode(sequence, list(range(count)), [[0]] * count, [True] * count)
    logits = context.logits(count).astype(np.float64)
    context.close()
    model.close()
    highest = logits.max(1, keepdims=True)
    result: NDArray[np.float64] = logits - highest - np.log(np.exp(logits - highest).sum(1, keepdims=True))
    return result


def test_the_engine_runs_it_and_answers_nearly_the_same(wide: Path) -> None:
    sequence = [1, *range(260, 285)]
    before = log_probabilities(wide, sequence)
    divergences = []
    kinds: tuple[Type, ...] = ("Q8_0", "Q4_K_M", "Q2_K")
    for kind in kinds:
        after = log_probabilities(quantize(wide, kind).files["model.gguf"], sequence)
        assert np.isfinite(after).all()
        divergences.append(float((np.exp(before) * (before - after)).sum(1).mean()))
    assert divergences[0] < 1e-3 < divergences[1]
    assert divergences == sorted(divergences)
    assert math.isfinite(divergences[-1])


@pytest.mark.model
@pytest.mark.parametrize(
    ("kind", "megabytes"), [("F16", 271), ("Q8_0", 145), ("Q6_K", 138), ("Q4_K_M", 105), ("Q3_K_M", 93), ("Q2_K", 88)]
)
def test_sizes_of_a_real_model_are_those_of_llama_cpp(kind: str, megabytes: int, smollm2: Path) -> None:
    info = read_gguf(smollm2)
    size = info.data_start + average_bits(info, assign(info, kind)) * info.parameters / 8
    assert size / 1e6 == pytest.approx(megabytes, abs=0.6)


@pytest.mark.model
def test_a_real_model_shrinks_and_keeps_its_tokenizer(smollm2: Path, tmp_path: Path) -> None:
    half = quantize_gguf(as_model(smollm2), tmp_path, silent, type="F16").files["model.gguf"]
    out = tmp_path / "small"
    out.mkdir()
    info = read_gguf(quantize_gguf(as_model(half), out, silent, type="Q2_K").files["model.gguf"])
    assert (round(half.stat().st_size / 1e6), round(info.size_bytes / 1e6)) == (271, 88)
    before, kept = read_gguf(smollm2), info.metadata["tokenizer.ggml.tokens"]
    assert isinstance(kept, ArrayRef)
    assert info.path.read_bytes()[kept.start : kept.end] == _bytes_of(before, "tokenizer.ggml.tokens")
    assert info.template == before.template


def _bytes_of(info: GgufInfo, key: str) -> bytes:
    array = info.metadata[key]
    return info.path.read_bytes()[array.start : array.end]
