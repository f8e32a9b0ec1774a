"""Majority head: the mode, by counting."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sizewise.core.errors import UsageError
from sizewise.make.methods.head_majority import head_majority


@given(st.lists(st.sampled_from("abcd"), min_size=1))
def test_it_answers_the_mode_with_the_shares_as_probabilities(labels: list[str]) -> None:
    model = head_majority(labels)
    counts = Counter(labels)
    mode = min(counts, key=lambda label: (-counts[label], label))
    assert model.predict(["whatever", "is asked"]) == [mode, mode]
    for label, log_proba in zip(model.classes, model.predict_log_proba([""])[0], strict=True):
        assert math.exp(log_proba) == pytest.approx(counts[label] / len(labels), rel=1e-5)


def test_no_rows_no_mode() -> None:
    with pytest.raises(UsageError):
        head_majority([])
