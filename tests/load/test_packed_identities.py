"""Products with small forms, written another way: planes of signs, and sums of inputs that share a value."""

import pytest
import torch

from sizewise.load.checkpoint.packed import spec_of, tensors_of
from sizewise.load.checkpoint.packed_modules import module_for
from sizewise.load.forms import Codebook, Packed, Quantized


def random(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)))


def codes(bits: int, *shape: int) -> torch.Tensor:
    return torch.randint(0, 2**bits, shape, generator=torch.Generator().manual_seed(bits)).to(torch.uint8)


def uniform(bits: int, group: int = 16) -> Quantized:
    scales, zeros = random(24, 64 // group).abs() + 0.01, codes(bits, 24, 64 // group).float()
    return Quantized(codes(bits, 24, 64), scales, zeros, bits, group)


def small_module(form: Packed) -> torch.nn.Module:
    stored = form.stored()
    return module_for(spec_of(stored, transposed=False), tensors_of(stored), None, torch.float32)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_uniform_grid_is_signs_with_scales_of_powers_of_two(bits: int) -> None:
    """W = offset + sum over i of (scale * 2^(i - 1)) * B_i, with B_i of -1 and 1: as many products with signs."""
    form, x = uniform(bits).stored(), random(9, 64)
    scale, zeros = (part[:, form.column_groups()] for part in (form.scales, form.zeros))
    offset = scale * ((2**bits - 1) / 2 - zeros)
    y = x @ offset.T
    for place in range(bits):
        signs = ((form.codes >> place) & 1).float() * 2 - 1
        y += x @ (signs * scale * 2.0 ** (place - 1)).T
    torch.testing.assert_close(small_module(form)(x), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


@pytest.mark.parametrize("bits", [1, 3, 8])
def test_a_table_multiplies_sums_of_inputs_that_share_a_value(bits: int) -> None:
    """y = sum over k of table[k] * (sum of the inputs whose code is k), without the dense matrix."""
    form, x = Codebook(codes(bits, 24, 64), random(24, 2**bits), bits).stored(), random(9, 64)
    sums = torch.zeros(9, 24, 2**bits)
    for row in range(24):
        sums[:, row].index_add_(1, form.codes[row].long(), x)
    y = (sums * form.table).sum(-1)
    torch.testing.assert_close(small_module(form)(x), y, rtol=1e-4, atol=1e-4 * float(y.abs().max()))


@pytest.mark.parametrize("bits", [2, 4])
def test_a_table_of_a_grids_values_is_the_grid(bits: int) -> None:
    form = uniform(bits, group=64).stored()
    table = (torch.arange(2**bits) - form.zeros) * form.scales
    same = Codebook(form.codes, table, bits)
    assert torch.equal(same.dense(), form.dense())
    x = random(9, 64)
    near = 2**-9 * 64 * float(table.abs().max())  # entries of a table have 16 bits
    torch.testing.assert_close(small_module(same)(x), small_module(form)(x), rtol=0, atol=near)
