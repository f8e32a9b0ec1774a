"""Rounding what is already on a grid changes nothing: every quantizer's own values are its fixed points."""

import typing
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from layers_at_random import random_layer
from tiny_gguf import write_tiny_llama

from sizewise.core.events import silent
from sizewise.core.model import Model
from sizewise.make.compensate import sweep
from sizewise.make.grids import Grid, fit
from sizewise.make.hessian import inverse_factor
from sizewise.make.methods.gptq import gptq
from sizewise.make.methods.hqq import hqq
from sizewise.make.methods.int8 import int8
from sizewise.make.methods.lut import lut
from sizewise.make.methods.quantize_gguf import quantize_gguf
from sizewise.make.methods.rtn import rtn
from sizewise.make.packed import Codebook, Int8, Quantized
from sizewise.make.repack import Type


def uniform(name: str, bits: int) -> Quantized:
    weight, _, hessian = random_layer(bits, rows=16, columns=32, tokens=128)
    weight = weight.float()
    made = {
        "rtn": lambda: rtn(weight, bits=bits, group=8),
        "symmetric": lambda: rtn(weight, bits=bits, group=8, symmetric=True),
        "clip": lambda: rtn(weight, bits=bits, group=8, clip=True),
        "hqq": lambda: hqq(weight, bits=bits, group=8),
        "gptq": lambda: gptq(weight, hessian, bits=bits, group=8),
        "scattered": lambda: gptq(weight, hessian, bits=bits, group=8, static_groups=False),
    }[name]()
    assert isinstance(made, Quantized)
    return made


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("name", ["rtn", "symmetric", "clip", "hqq", "gptq", "scattered"])
def test_integers_on_grids_find_themselves_again(name: str, bits: int) -> None:
    made = uniform(name, bits).stored()  # as a file holds it: scales and zeros are not rounded a second time
    of_column = made.column_groups()
    grid = Grid(made.scales[:, of_column], made.zeros[:, of_column], bits)
    dense = made.dense()
    assert torch.equal(grid.encode(dense).to(torch.uint8), made.codes)
    assert torch.equal(grid.nearest(dense), dense)


def test_a_sweep_over_weights_on_their_grids_has_nothing_to_repair() -> None:
    weight, _, hessian = random_layer(1)
    grid = fit(weight, 3, symmetric=False)
    rounded = grid.nearest(weight)
    new, errors = sweep(
        rounded,
        inverse_factor(hessian),
        lambda _, __: lambda ___, column: grid.nearest(column[:, None])[:, 0],
        segment=16,
    )
    assert torch.equal(new, rounded)
    assert errors.count_nonzero() == 0


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 8])
def test_a_codebook_of_codebook_values_is_the_same_matrix(bits: int) -> None:
    weight, _, hessian = random_layer(bits, columns=64)
    norm = hessian.diagonal().sqrt()
    first = lut(weight.float(), norm, bits=bits)
    assert isinstance(first, Codebook)
    again = lut(first.dense(), norm, bits=bits)
    assert isinstance(again, Codebook)
    assert torch.equal(again.dense(), first.dense())


def test_eight_bits_with_the_same_scales_find_themselves_again() -> None:
    weight, inputs, _ = random_layer(2, columns=64)
    loudest = inputs.abs().amax(0)
    made = int8(weight.float(), loudest, threshold=float(loudest.median()))
    assert isinstance(made, Int8)
    dense = made.stored().dense()
    again = int8(dense, loudest, threshold=made.threshold)
    assert isinstance(again, Int8)
    assert torch.equal(again.kept, made.kept)
    assert torch.equal(again.stored().columns, made.stored().columns)
    integers = (dense / made.scales[:, None]).round().masked_fill(loudest >= made.threshold, 0.0)
    assert torch.equal(integers, made.codes.float())
    # the scales of a second time may be finer, since a scale is rounded up: by one step of an 8-bit mantissa at most
    assert (again.scales <= made.scales).all()
    assert (again.dense() - dense).abs().max() <= float(again.scales.max()) / 2


@pytest.mark.parametrize("kind", ["Q8_0", "Q5_1", "Q5_0", "Q4_1", "Q4_0", "BF16"])
def test_a_gguf_of_blocks_with_one_scale_is_quantized_to_itself(kind: str, tmp_path: Path) -> None:
    def quantized(path: Path, name: str) -> dict[str, np.ndarray]:
        out = tmp_path / name
        out.mkdir()
        model = Model("m", "gguf", "sha256:" + "0" * 64, {"model.gguf": path}, path.stat().st_size)
        made = quantize_gguf(model, out, silent, type=typing.cast(Type, kind), requantize=True)
        return {
            tensor.name: np.asarray(gguf.dequantize(tensor.data, tensor.tensor_type), np.float32)
            for tensor in gguf.GGUFReader(made.files["model.gguf"]).tensors
        }

    base = write_tiny_llama(tmp_path / "base.gguf")
    once = quantized(base, "once")
    twice = quantized(tmp_path / "once" / "model.gguf", "twice")
    assert once.keys() == twice.keys()
    for name, values in once.items():
        np.testing.assert_array_equal(twice[name], values, err_msg=name)
