"""Small forms in files: every bit comes back, every description is checked, every module multiplies as its matrix."""

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from families import write_family

from sizewise.core.errors import BadModel, SizewiseError, Unsupported, UsageError
from sizewise.load.checkpoint.export_gguf import export_gguf
from sizewise.load.checkpoint.folder import inspect_checkpoint
from sizewise.load.checkpoint.packed import Spec, config_of, form_of, note_on, spec_of, specs_of, tensors_of
from sizewise.load.checkpoint.packed_bits import pack, unpack, words_for
from sizewise.load.checkpoint.packed_modules import Uniform, module_for
from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.checkpoint.tensors import TensorSource, save_tensors
from sizewise.load.forms import Codebook, Factors, Int8, Packed, Quantized, narrow
from sizewise.load.layers import layout_of


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits)).to(torch.uint8)


def uniform(bits: int, symmetric: bool, rows: int = 24, columns: int = 64, group: int = 16) -> Quantized:
    scales = random(rows, columns // group).abs() + 0.01
    middle = torch.full_like(scales, 2 ** (bits - 1))
    zeros = middle if symmetric else codes(bits, rows, columns // group).float()
    return Quantized(codes(bits, rows, columns), scales, zeros, bits, group, symmetric)


def scattered() -> Quantized:
    groups = torch.arange(64, dtype=torch.int32) % 4
    return Quantized(codes(4, 24, 64), random(24, 4).abs(), codes(4, 24, 4).float(), 4, 16, groups=groups)


def eight(rows: int, columns: int, *kept: int) -> Int8:
    integers = codes(7, rows, columns).to(torch.int8) - 64
    integers[:, list(kept)] = 0
    places = torch.tensor(kept, dtype=torch.long)
    return Int8(integers, random(rows).abs(), places, random(rows, len(kept)), 6.0)


FORMS: dict[str, Callable[[], Packed]] = {
    **{f"uniform-{bits}": partial(uniform, bits, False) for bits in range(2, 9)},
    "symmetric": lambda: uniform(4, True),
    "whole rows": lambda: uniform(4, False, group=64),
    "odd width": lambda: uniform(3, False, columns=50, group=10),
    "real zeros": lambda: Quantized(codes(4, 24, 64), random(24, 4).abs(), 8 + random(24, 4), 4, 16),
    "scattered": scattered,
    "codebook": lambda: Codebook(codes(3, 24, 64), random(24, 8), 3),
    "int8": lambda: eight(24, 64, 3, 40),
    "int8 without outliers": lambda: eight(24, 64),
    "factors": lambda: Factors(random(24, 5), random(5, 64)),
}
every_form = pytest.mark.parametrize("make", FORMS.values(), ids=FORMS.keys())


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("columns", [1, 31, 32, 33, 100])
def test_words_hold_codes_bit_after_bit(bits: int, columns: int) -> None:
    given = codes(bits, 3, columns)
    words = pack(given, bits)
    assert words.shape == (3, words_for(columns, bits))
    for row, packed in zip(given.tolist(), words.tolist(), strict=True):
        long = sum(code << (place * bits) for place, code in enumerate(row))
        assert [word & 0xFFFFFFFF for word in packed] == [
            (long >> (32 * at)) & 0xFFFFFFFF for at in range(words.shape[1])
        ]
    assert torch.equal(unpack(words, bits, columns), given)


@every_form
def test_files_give_back_every_bit(make: Callable[[], Packed]) -> None:
    form = make().stored()
    spec, tensors = spec_of(form, transposed=False), tensors_of(form)
    again = form_of("a", spec, tensors)
    assert torch.equal(again.dense(), form.dense())
    assert again.shape == form.shape
    assert torch.equal(form.stored().dense(), form.dense())  # nothing is rounded twice
    assert all(part.dtype.itemsize <= 2 or not part.is_floating_point() for part in tensors.values())


@every_form
def test_the_account_counts_what_files_hold(make: Callable[[], Packed]) -> None:
    form = make()
    stored = sum(8 * part.numel() * part.itemsize for name, part in tensors_of(form).items() if name != "weight_shape")
    rows, columns = form.shape
    bits = getattr(form, "bits", 0)
    padding = rows * (32 * words_for(columns, bits) - columns * bits) if bits else 0
    if isinstance(form, Quantized) and not form.symmetric and bool((form.zeros == form.zeros.round()).all()):
        padding += form.zeros.shape[1] * (32 * words_for(rows, bits) - rows * bits)
    assert stored == form.size_bits + padding


def test_rounding_takes_the_nearer_of_the_two_short_types() -> None:
    assert narrow(torch.tensor([1.0009765625])).dtype == torch.float16  # 1 + 2^-10
    assert narrow(torch.tensor([1e30])).dtype == torch.bfloat16  # beyond float16's range
    assert narrow(torch.empty(0)).numel() == 0


@every_form
@pytest.mark.parametrize("tokens", [1, 9])
def test_modules_multiply_as_the_matrix_does(make: Callable[[], Packed], tokens: int) -> None:
    form, bias, x = make().stored(), random(24), random(tokens, make().shape[1])
    spec = spec_of(form, transposed=False)
    module = module_for(spec, tensors_of(form), bias, torch.float32)
    if isinstance(form, Int8):  # its module rounds inputs: these need no rounding
        x = x.bfloat16().float()
    close = 1e-2 if isinstance(form, Int8) else 1e-5
    wanted = torch.nn.functional.linear(x, form.dense(), bias)
    torch.testing.assert_close(module(x[None])[0], wanted, rtol=close, atol=close * float(wanted.abs().max()))


@every_form
def test_exact_modules_round_nothing(make: Callable[[], Packed]) -> None:
    form, x = make().stored(), random(5, make().shape[1])
    module = module_for(spec_of(form, transposed=False), tensors_of(form), None, torch.float32)
    module.exact = True
    wanted = torch.nn.functional.linear(x, form.dense())
    torch.testing.assert_close(module(x), wanted, rtol=1e-5, atol=1e-5 * float(wanted.abs().max()))


def test_exact_four_bits_are_unpacked() -> None:
    form, x = uniform(4, False, 128, 192, 64).stored(), random(5, 192)
    module = module_for(spec_of(form, transposed=False), tensors_of(form), None, torch.float32)
    module.exact = True
    torch.testing.assert_close(module(x), torch.nn.functional.linear(x, form.dense()), rtol=1e-5, atol=1e-4)


def test_rows_are_unpacked_some_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    form, x = uniform(4, False).stored(), random(5, 64)
    module = module_for(spec_of(form, transposed=False), tensors_of(form), None, torch.float32)
    whole = module(x)
    monkeypatch.setattr("sizewise.load.checkpoint.packed_modules._PIECE", 64 * 7)
    torch.testing.assert_close(module(x), whole, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("tokens", [1, 40])
@pytest.mark.parametrize(
    "form",
    [
        *(uniform(bits, symmetric, 128, 192, 64) for bits in (2, 3, 4) for symmetric in (True, False)),
        uniform(4, False, 64, 96, 96),  # whole rows, no multiple of 64: scales are repeated
        uniform(3, False, 192, 512, 512),
    ],
    ids=lambda form: f"{form.bits}-{form.group}-{'even' if form.symmetric else 'odd'}",
)
def test_up_to_four_bits_are_multiplied_as_they_are(form: Quantized, tokens: int, dtype: torch.dtype) -> None:
    module = module_for(spec_of(form.stored(), transposed=False), tensors_of(form.stored()), None, dtype)
    x = random(tokens, form.shape[1]).to(dtype)
    wanted = torch.nn.functional.linear(x.float(), form.stored().dense())
    for _ in range(2):  # the words are packed anew by the first call
        apart = (module(x).float() - wanted).norm() / wanted.norm()
        assert float(apart) < 5e-3
    assert isinstance(module, Uniform)
    assert module.four is not None
    assert module.words.numel() == 0


@pytest.mark.parametrize(("rows", "columns", "group"), [(24, 64, 64), (128, 64, 16), (64, 100, 100)])
def test_what_that_product_cannot_take_is_unpacked(rows: int, columns: int, group: int) -> None:
    form, x = uniform(4, False, rows, columns, group).stored(), random(3, columns).bfloat16()
    module = module_for(spec_of(form, transposed=False), tensors_of(form), None, torch.bfloat16)
    wanted = torch.nn.functional.linear(x, form.dense().bfloat16())
    assert torch.equal(module(x), wanted)
    assert isinstance(module, Uniform)
    assert module.words.numel() > 0


def test_int8_means_the_same_for_one_token_and_for_many() -> None:
    form, x = FORMS["int8"]().stored(), random(40, 64)
    module = module_for(spec_of(form, transposed=False), tensors_of(form), None, torch.float32)
    one_by_one = torch.cat([module(row[None]) for row in x])
    step = 2**-8 * float(one_by_one.abs().max())  # what one rounding to bfloat16 can move
    torch.testing.assert_close(module(x), one_by_one, rtol=0, atol=2 * step)


SHARED = {
    "model.layers.0.a": Spec("uniform", 4, 64, shared=True),
    "model.layers.0.b": Spec("uniform", 8, 0, shared=True),
}
MIXED = SHARED | {"c": Spec("codebook", 3), "d": Spec("int8", 8, threshold=6.0, transposed=True), "e": Spec("factors")}


@pytest.mark.parametrize("specs", [SHARED, MIXED, {"model.layers.0.a": SHARED["model.layers.0.a"]}])
def test_descriptions_come_back(specs: dict[str, Spec]) -> None:
    said = json.loads(json.dumps({"quantization_config": config_of(specs, ["router"])}))
    names = [f"{name}.weight_packed" for name in specs]
    assert specs_of(said, names) == specs
    assert ("compressed-tensors" in note_on(specs)) == (specs is not MIXED)
    assert specs_of({}, names) == {}


def test_zero_points_of_experts_stay_ours() -> None:
    expert = {"model.layers.0.mlp.experts.3.w1": Spec("uniform", 4, 64, shared=True)}
    assert "sizewise" in config_of(expert, [])
    plain = {name: Spec("uniform", 4, 64, symmetric=True, shared=True) for name in expert}
    assert config_of(plain, [])["quant_method"] == "compressed-tensors"


@pytest.mark.parametrize(
    ("said", "error", "match"),
    [
        ({"quant_method": "gptq", "bits": 4}, Unsupported, "packed as gptq"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, Unsupported, "nvfp4"),
        ({"sizewise": {"version": 99, "forms": []}}, Unsupported, "version 99"),
        ({"sizewise": {"version": 1, "forms": [{"kind": "magic", "modules": ["a"]}]}}, BadModel, "magic"),
        ({"sizewise": {"version": 1, "forms": [{"kind": "uniform", "bits": 40, "modules": ["a"]}]}}, BadModel, "40"),
        ({"sizewise": {"version": 1, "forms": 3}}, BadModel, "damaged"),
        ({"sizewise": []}, Unsupported, "version None"),
        ({"quant_method": "compressed-tensors", "format": "pack-quantized"}, BadModel, "config_groups"),
        (
            {"quant_method": "compressed-tensors", "format": "pack-quantized", "config_groups": {}},
            BadModel,
            "no scheme for a",
        ),
    ],
)
def test_descriptions_that_cannot_be_believed(said: object, error: type[SizewiseError], match: str) -> None:
    with pytest.raises(error, match=match) as caught:
        specs_of({"quantization_config": said}, ["a.weight_packed"])
    assert "\n" not in str(caught.value)


def test_tensors_that_contradict_each_other() -> None:
    form = scattered()
    spec, good = spec_of(form, transposed=False), tensors_of(form)
    bad = [
        {name: part for name, part in good.items() if name != "weight_scale"},
        good | {"weight_scale": good["weight_scale"][:, :3]},
        good | {"weight_g_idx": good["weight_g_idx"] + 1},
        good | {"weight_g_idx": good["weight_g_idx"][:9]},
        good | {"weight_packed": good["weight_packed"][:, :2]},
    ]
    for tensors in bad:
        with pytest.raises(BadModel, match=r"^a[:.] ?[^\n]*get the model again"):
            form_of("a", spec, tensors)


@pytest.fixture(scope="module")
def packed_llama(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny checkpoint with matrices in four kinds of forms, and the dense one that it stands for."""
    root = tmp_path_factory.mktemp("packed")
    base = write_family("llama", root / "base")
    source = TensorSource(base)
    specs: dict[str, Spec] = {}
    tensors: dict[str, torch.Tensor] = {}
    kinds = {"q_proj": "uniform", "k_proj": "int8", "up_proj": "codebook", "down_proj": "factors"}
    dense = {name: source.get(name) for name in source}
    for linear in layout_of(base).linears:
        kind = kinds.get(linear.name.rpartition(".")[2])
        rows, columns = linear.shape
        made: Packed | None = None
        if kind == "uniform":
            made = uniform(4, False, rows, columns)
        elif kind == "int8":
            made = Int8(
                codes(7, rows, columns).to(torch.int8), random(rows).abs(), torch.tensor([1]), random(rows, 1), 6
            )
        elif kind == "codebook":
            made = Codebook(codes(2, rows, columns), random(rows, 4), 2)
        elif kind == "factors":
            made = Factors(random(rows, 3), random(3, columns))
        if made:
            made = made.stored()
            specs[linear.name] = spec_of(made, transposed=False)
            tensors |= {f"{linear.name}.{part}": value for part, value in tensors_of(made).items()}
            dense[linear.weight] = made.dense()
    for place, held in (
        ("packed", tensors | {n: t for n, t in dense.items() if n[:-7] not in specs}),
        ("dense", dense),
    ):
        save_tensors(root / place, held.items())
        for path in base.iterdir():
            if path.suffix != ".safetensors":
                (root / place / path.name).write_bytes(path.read_bytes())
    config = json.loads((base / "config.json").read_text())
    config["quantization_config"] = config_of(specs, [])
    (root / "packed" / "config.json").write_text(json.dumps(config))
    return root / "packed", root / "dense"


def test_a_folder_says_how_it_is_packed(packed_llama: tuple[Path, Path]) -> None:
    packed, dense = packed_llama
    info, plain = inspect_checkpoint(packed), inspect_checkpoint(dense)
    factored = [matrix for matrix in info.packed.values() if matrix.rank]
    assert info.parameters is not None
    saved = sum(rows * columns - 3 * (rows + columns) for rows, columns in (matrix.shape for matrix in factored))
    assert info.parameters == (plain.parameters or 0) - saved
    assert info.dtype == "lut2"  # the widest matrices
    assert (info.base_dtype, plain.dtype, plain.packed) == ("F32", "F32", {})
    assert info.size_bytes < plain.size_bytes
    assert layout_of(packed) == layout_of(dense)


def test_it_can_be_read_as_what_it_stands_for(packed_llama: tuple[Path, Path]) -> None:
    packed, dense = (DenseSource(folder) for folder in packed_llama)
    assert set(packed) == set(dense)
    assert len(packed) == len(dense)
    for name in dense:
        assert name in packed
        assert (packed.shape(name), packed.dtype(name)) == (dense.shape(name), dense.dtype(name))
        assert packed.bytes_of(name) == dense.bytes_of(name)
        assert torch.equal(packed.get(name), dense.get(name))
    assert "model.layers.0.self_attn.q_proj.weight_packed" not in packed


def test_an_export_unpacks_only_when_it_is_told_to(packed_llama: tuple[Path, Path], tmp_path: Path) -> None:
    packed, dense = packed_llama
    with pytest.raises(UsageError, match=r"packed as lut2: export the model that it was made from"):
        export_gguf(packed, tmp_path / "a.gguf")
    assert not (tmp_path / "a.gguf").exists()
    export_gguf(packed, tmp_path / "a.gguf", name="x", dequantize=True)
    export_gguf(dense, tmp_path / "b.gguf", name="x")
    assert (tmp_path / "a.gguf").read_bytes() == (tmp_path / "b.gguf").read_bytes()


def test_a_shape_that_its_words_do_not_have(packed_llama: tuple[Path, Path], tmp_path: Path) -> None:
    packed = packed_llama[0]
    for path in packed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    source = TensorSource(packed)
    name = "model.layers.0.self_attn.q_proj.weight_shape"
    wrong = {each: source.get(each) for each in source} | {name: torch.tensor([64, 1 << 40])}
    (tmp_path / "model.safetensors").unlink()
    save_tensors(tmp_path, wrong.items())
    with pytest.raises(BadModel, match="q_proj: its packed tensors contradict each other"):
        inspect_checkpoint(tmp_path)
