"""Masks: exact numbers, nesting, patterns."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sizewise.core.errors import UsageError
from sizewise.make.sparsity import count, lowest, lowest_of_each, parse_pattern


def test_shares_that_floating_point_makes_smaller() -> None:
    assert [count(share, 100) for share in (0.0, 0.29, 0.57, 0.58, 1.0)] == [0, 29, 57, 58, 100]
    assert count(0.999, 10) == 9


@given(st.integers(0, 2**16), st.floats(0, 1), st.floats(0, 1), st.sampled_from(["row", "matrix"]))
def test_masks_are_exact_and_nested(seed: int, one: float, two: float, scope: str) -> None:
    draw = torch.Generator().manual_seed(seed)
    score = torch.randint(0, 4, (5, 7), generator=draw).float()  # many ties
    low, high = sorted((one, two))
    smaller, larger = (lowest(score, share, scope) for share in (low, high))  # type: ignore[arg-type]
    expected = count(low, 35) if scope == "matrix" else 5 * count(low, 7)
    assert int(smaller.sum()) == expected
    assert not (smaller & ~larger).any()
    if scope == "matrix" and 0 < expected < 35:
        assert score[smaller].max() <= score[~smaller].min()


def test_n_of_every_m_stay() -> None:
    score = torch.tensor([[4.0, 1.0, 2.0, 3.0, 0.0, 0.0, 9.0, 0.0]])
    assert lowest_of_each(score, 2, 4).tolist() == [[False, True, True, False, True, True, False, False]]
    assert lowest_of_each(score, 4, 4).sum() == 0
    assert lowest_of_each(score, 0, 4).all()


def test_patterns_that_are_none() -> None:
    assert parse_pattern("", 10) is None
    assert parse_pattern("2:4", 8) == (2, 4)
    for wrong in ("2", "4:2", "a:b", "2:4:8", ":", "1:0"):
        with pytest.raises(UsageError, match="for example 2:4"):
            parse_pattern(wrong, 8)
    with pytest.raises(UsageError, match="does not divide rows of 10"):
        parse_pattern("2:4", 10)
