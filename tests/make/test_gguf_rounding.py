"""Rounding to GGUF grids against the gguf library, llama.cpp's own quantizer, brute force and identities."""

import gguf
import numpy as np
import pytest
import torch

from sizewise.load.llama.c import quantize_rows
from sizewise.make.gguf_descent import descend
from sizewise.make.gguf_forms import FORMS, Form
from sizewise.make.gguf_rounding import encode_matrix, encode_rows, metric_of
from sizewise.make.gguf_sweep import candidates, settle, settle_offset, sweep_columns
from sizewise.make.hessian import output_error

WIDTH, ROWS = 512, 40


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def correlated(width: int = WIDTH) -> torch.Tensor:
    """Second moments of inputs that have much in common, as those of real layers do."""
    generator = torch.Generator().manual_seed(0)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -1.5, width)[:, None]
    inputs = torch.randn(4 * width, width, generator=generator) @ mixing
    return inputs.T @ inputs / len(inputs)


def weights(rows: int = ROWS, width: int = WIDTH) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(1)) * 0.05


def decoded(packed: np.ndarray, form: Form) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(packed, gguf.GGMLQuantizationType(form.kind.code)))


def llamas(weight: torch.Tensor, form: Form, hessian: torch.Tensor) -> torch.Tensor:
    """What llama.cpp makes of it with an importance matrix."""
    importance = hessian.diagonal().numpy().astype(np.float32)
    packed = np.frombuffer(quantize_rows(weight.numpy(), form.kind.code, importance), np.uint8)
    return decoded(packed.reshape(len(weight), -1), form)


@pytest.mark.parametrize("name", FORMS)
def test_the_bytes_say_what_was_chosen_and_cost_less_than_llamas(name: str) -> None:
    form, weight, hessian = FORMS[name], weights(), correlated()
    metric = metric_of(hessian, WIDTH)
    columns = weight.T.contiguous()
    made = sweep_columns(columns.clone(), metric.factor, form)
    swept = made.dense().T
    assert torch.equal(decoded(made.packed(), form), swept)
    before = output_error((swept - weight).double(), metric.hessian.double())
    descend(made, columns, metric.hessian)
    final = made.dense().T
    packed = made.packed()
    assert packed.shape == (ROWS, WIDTH // form.block * form.kind.bytes)
    assert torch.equal(decoded(packed, form), final)
    after = output_error((final - weight).double(), metric.hessian.double())
    assert after < before
    theirs = output_error((llamas(weight, form, hessian) - weight).double(), hessian.double())
    assert output_error((final - weight).double(), hessian.double()) < 0.4 * theirs


@pytest.mark.parametrize("name", FORMS)
def test_without_correlations_it_is_about_as_good_as_llamas_search(name: str) -> None:
    form, weight, plain = FORMS[name], weights(), torch.eye(WIDTH)
    ours = decoded(encode_rows(weight.numpy(), metric_of(None, WIDTH), form), form)
    assert output_error(ours - weight, plain) < 1.05 * output_error(llamas(weight, form, plain) - weight, plain)


@pytest.mark.parametrize("name", FORMS)
def test_zeros_constants_and_spikes_come_out_whole(name: str) -> None:
    form = FORMS[name]
    weight = torch.zeros(4, WIDTH)
    weight[1] = 0.25
    weight[2, 7] = 3.0
    weight[3] = -0.5
    dense = decoded(encode_rows(weight.numpy(), metric_of(None, WIDTH), form), form)
    assert bool(torch.isfinite(dense).all())
    assert not bool(dense[0].any())
    assert output_error((dense - weight)[1:], torch.eye(WIDTH)) < 0.01 * output_error(weight, torch.eye(WIDTH))


def test_a_sweep_of_one_group_finds_the_best_of_its_candidates() -> None:
    """The candidate kept is the one with the least tr(E H ET), which the sweep knows without computing it."""
    form, weight, hessian = FORMS["Q4_0"], weights(8, 32), correlated(32)
    metric = metric_of(hessian, 32)
    columns = weight.T.contiguous()
    scales, offsets = candidates(columns, metric.factor.diagonal().reciprocal().square(), form, 6)
    scales = settle(scales, None, form)
    one_by_one = []
    for scale in scales:
        result = torch.empty_like(columns)
        for row in range(8):  # GPTQ by its definition: H^-1 of what is left, column by column
            left, inverse = weight[row].double().clone(), torch.linalg.inv(metric.hessian.double())
            for place in range(32):
                level = form.nearest(left[place] / scale[row].double())
                error = left[place] - level * scale[row]
                result[place, row] = (level * scale[row]).float()
                left -= error / inverse[place, place] * inverse[place]
                inverse -= torch.outer(inverse[:, place], inverse[place]) / inverse[place, place]
                inverse[place, place] = 1.0
        one_by_one.append(result)
    costs = [((each - columns) * (metric.hessian @ (each - columns))).sum(0) for each in one_by_one]
    best = torch.stack(costs).argmin(0)
    made = sweep_columns(columns.clone(), metric.factor, form, 6)
    expected = torch.stack([one_by_one[int(which)][:, row] for row, which in enumerate(best)], 1)
    assert torch.allclose(made.dense(), expected, atol=1e-6)
    assert not offsets.any()


def test_where_descent_ends_no_single_change_helps() -> None:
    """Brute force over every other level of every weight, and over the neighbouring 16-bit scales and offsets."""
    form, weight, hessian = FORMS["Q4_1"], weights(1, 32).T.contiguous(), correlated(32)
    made = sweep_columns(weight.clone(), metric_of(hessian, 32).factor, form)
    descend(made, weight, hessian, rounds=50)

    def cost(level: torch.Tensor, scale: torch.Tensor, offset: torch.Tensor) -> float:
        return output_error((level * scale + offset - weight[:, 0]).double()[None], hessian.double())

    level, scale, offset = made.level[:, 0], made.scale[0, 0], made.offset[0, 0]
    least = cost(level, scale, offset)
    others = torch.eye(32)[:, None] * torch.arange(16.0)[:, None] + (1 - torch.eye(32))[:, None] * level
    assert min(cost(other, scale, offset) for other in others.reshape(-1, 32)) >= least * (1 - 1e-4)
    for side in (-torch.inf, torch.inf):
        target = torch.tensor(side).half()
        assert cost(level, scale.half().nextafter(target).float(), offset) >= least * (1 - 1e-4)
        assert cost(level, scale, offset.half().nextafter(target).float()) >= least * (1 - 1e-4)


@pytest.mark.parametrize("name", ["Q4_1", "Q2_K", "Q6_K", "IQ4_NL"])
def test_no_round_of_descent_makes_a_row_worse(name: str) -> None:
    form, weight = FORMS[name], weights()
    metric = metric_of(correlated(), WIDTH)
    columns = weight.T.contiguous()
    made = sweep_columns(columns.clone(), metric.factor, form)
    last = torch.full((ROWS,), torch.inf, dtype=torch.float64)
    for _ in range(4):
        error = (made.dense() - columns).double()
        now = (error * (metric.hessian.double() @ error)).sum(0)
        assert bool((now <= last * (1 + 1e-5)).all())
        last = now
        descend(made, columns, metric.hessian, rounds=1)


def test_rows_do_not_depend_on_each_other_or_on_how_they_are_cut() -> None:
    form, weight, metric = FORMS["Q4_K"], weights().numpy(), metric_of(correlated(), WIDTH)
    whole = encode_rows(weight, metric, form)
    assert np.array_equal(np.concatenate([encode_rows(part, metric, form) for part in (weight[:7], weight[7:])]), whole)
    assert b"".join(encode_matrix(weight, metric, form)) == whole.tobytes()


@pytest.mark.parametrize("name", ["Q4_0", "Q4_1", "Q3_K", "Q4_K"])
def test_scales_and_offsets_settle_on_what_can_be_stored(name: str) -> None:
    form = FORMS[name]
    unit = torch.tensor([0.01, -0.02, 0.0]) if form.steps and form.steps[0] < 0 else torch.tensor([0.01, 0.02, 0.0])
    wanted = torch.tensor([[0.0449, 0.0451, 0.05], [9.0, 9.0, 9.0]])
    scale, offset = settle(wanted, unit, form), settle_offset(-wanted, unit, form)
    if form.steps is None:
        assert torch.equal(scale, wanted.half().float())
        assert torch.equal(offset, -wanted.half().float() if form.offset else torch.zeros_like(wanted))
    else:
        assert torch.equal(scale[0], unit * (wanted[0] / unit).nan_to_num(0, 0).round())
        most = [form.steps[1], form.steps[1] if form.steps[0] >= 0 else form.steps[0], 0]
        assert torch.equal(scale[1], unit * torch.tensor(most))
        assert bool((offset <= 0).all())
