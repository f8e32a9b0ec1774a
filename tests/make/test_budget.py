"""Bits for each matrix under a budget: the best of all choices, never more than may be spent."""

import itertools
import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sizewise.core.errors import UsageError
from sizewise.load.layers import layout_of
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.make.budget import Unit, choose
from sizewise.make.grids import fit, quantize
from sizewise.make.recorded import Recorded
from sizewise.make.treat import read_block

Family = Callable[[str], Path]
SMALL = {"tokens": 240, "window": 40}


def units(seed: int, count: int, *, whole: int = 1) -> list[Unit]:
    """Matrices of random sizes whose errors fall with their widths, each at its own pace."""
    draw = random.Random(seed)
    made = []
    for number in range(count):
        weights = draw.randrange(1, 9) * whole
        error, errors = draw.uniform(0.1, 10), {}
        for width in range(2, 7):
            error *= draw.uniform(0.1, 1.0)
            errors[width] = error
        made.append(Unit((str(number),), weights, {width: weights * (width * 4 + 1) for width in errors}, errors))
    return made


def spent(made: list[Unit], widths: list[int]) -> int:
    return sum(unit.sizes[width] for unit, width in zip(made, widths, strict=True))


def cost(made: list[Unit], widths: list[int]) -> float:
    return sum(unit.errors[width] for unit, width in zip(made, widths, strict=True))


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**16), st.integers(1, 5), st.floats(9, 26))
def test_no_other_choice_within_the_budget_is_better(seed: int, count: int, budget: float) -> None:
    made = units(seed, count)
    most = int(budget * sum(unit.weights for unit in made))
    widths = choose(made, most)
    assert spent(made, widths) <= most
    every = itertools.product(*(unit.sizes for unit in made))
    best = min(cost(made, list(each)) for each in every if spent(made, list(each)) <= most)
    assert cost(made, widths) == pytest.approx(best, rel=1e-12)


@pytest.mark.parametrize("whole", [1_000_003, 7_919])
def test_sizes_beyond_the_table_stay_within_the_budget(whole: int) -> None:
    """What is lost by rounding sizes up is no more than a cell of the table for each matrix."""
    for seed in range(20):
        made = [
            Unit(unit.names, unit.weights, {width: size + number for width, size in unit.sizes.items()}, unit.errors)
            for number, unit in enumerate(units(seed, 4, whole=whole))
        ]  # no common divisor
        most = 14 * sum(unit.weights for unit in made)
        widths = choose(made, most)
        assert spent(made, widths) <= most
        sure = most - len(made) * -(-most // 20_000)
        every = (list(each) for each in itertools.product(*(unit.sizes for unit in made)))
        assert cost(made, widths) <= min(cost(made, each) for each in every if spent(made, each) <= sure)


def test_more_bits_to_spend_do_no_harm_and_too_few_are_refused() -> None:
    made = units(1, 6)
    weights = sum(unit.weights for unit in made)
    costs = [cost(made, choose(made, int(budget * weights))) for budget in (9, 12, 15, 20, 25)]
    assert costs == sorted(costs, reverse=True)
    assert choose(made, 1000 * weights) == [6] * 6
    with pytest.raises(UsageError, match=r"budget of 8 bits per weight cannot be met: .* these matrices take is 9"):
        choose(made, 8 * weights)


def test_equal_matrices_get_equal_bits_and_a_sensitive_one_gets_more() -> None:
    errors = {width: 4.0**-width for width in range(2, 9)}
    sizes = {width: 100 * width for width in errors}
    plain = [Unit((name,), 100, sizes, errors) for name in "abc"]
    assert choose(plain, 1200) == [4, 4, 4]
    loud = Unit(("d",), 100, sizes, {width: 1000 * error for width, error in errors.items()})
    widths = choose([*plain, loud], 1600)
    assert widths[3] > max(widths[:3])
    assert sum(widths) == 16


@pytest.mark.parametrize(
    ("method", "options"),
    [("rtn", {"group": 16}), ("gptq", {"group": 16}), ("gptq", {"group": 16, "static_groups": False}),
     ("awq", {"group": 16, "grid": 4}), ("hqq", {"group": 16}), ("lut", {})],
)  # fmt: skip
def test_methods_keep_within_it_on_a_model(
    method: str, options: dict[str, object], family: Family, tmp_path: Path
) -> None:
    budget = {"lut": 6.0, "awq": 5.8}.get(method, 6.3 if "static_groups" in options else 5.3)
    given_options = {**options, **SMALL, "budget": budget}
    made = make(method, str(family("llama")), name="x", options=given_options, store=Store(tmp_path))
    figures = made.lineage.figures
    assert budget - 0.5 < figures["weight_bits"] <= budget
    assert len(figures["matrices_by_bits"]) > 1
    assert sum(figures["matrices_by_bits"].values()) == 14
    assert made.quantization == f"{method}-{budget:g}"
    recipe = made.lineage.recipe
    assert recipe is not None
    assert recipe.steps[0].options["budget"] == budget


def test_what_is_measured_is_the_error_of_the_outputs(
    family: Family, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each width's error, by hand from the stored statistics, and the same choice of it."""
    from sizewise.make import budget as module

    met: list[Unit] = []
    whole = module.choose

    def spied(asked: list[Unit], most: int) -> list[int]:
        met.extend(asked)
        return whole(asked, most)

    monkeypatch.setattr(module, "choose", spied)
    monkeypatch.setenv("SIZEWISE_HOME", str(tmp_path / "home"))
    base = family("llama")
    options = {"group": 16, "budget": 5.0, **SMALL}
    model = make("rtn", str(base), name="x", options=options, store=Store(tmp_path / "s"))
    layout = layout_of(base)
    (folder,) = (tmp_path / "home" / "cache" / "statistics").iterdir()
    recorded = Recorded("", "", layout)
    recorded.folder = folder
    from sizewise.load.checkpoint.tensors import TensorSource

    tensors = read_block(TensorSource(base), layout.blocks[1])
    unit = next(unit for unit in met if unit.names == ("model.layers.1.mlp.down_proj",))
    weight = tensors["model.layers.1.mlp.down_proj.weight"].double()
    seen = next(seen for seen in recorded.block(1, hessian=True) if unit.names[0] in seen.names)
    hessian = seen.mean("hessian").double()
    grouped = weight.float().reshape(len(weight), -1, 16)
    for width in (2, 5, 8):
        error = weight - quantize(grouped, fit(grouped, width, False), False).dense().double()
        expected = torch.trace(error @ hessian @ error.T) / torch.trace(weight @ hessian @ weight.T)
        assert unit.errors[width] == pytest.approx(float(expected), rel=1e-4)
        assert unit.sizes[width] == weight.numel() * width + weight.numel() // 16 * (16 + width)
    assert json.dumps(model.lineage.figures)


def test_methods_without_bits_have_no_budget(family: Family, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no option of wanda named 'budget'"):
        make("wanda", str(family("llama")), name="x", options={"budget": 3.0}, store=Store(tmp_path))
    options = {"budget": 2.0, "group": 16, **SMALL}
    with pytest.raises(UsageError, match="cannot be met"):
        make("rtn", str(family("llama")), name="x", options=options, store=Store(tmp_path))
