"""The signature is the schema."""

from typing import Annotated, Any, Literal

import pytest

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.params import Range, Search, schema_of, validate


def method(
    base: int,
    *,
    sparsity: Annotated[float, Range(0, 1), Search(0.3, 0.5)] = 0.5,
    kind: Literal["fast", "good"] = "good",
    rank: Annotated[int | None, Range(1)] = None,
    dry: bool = False,
) -> None:
    """Do it.

    Args:
        base: not an option.
        sparsity: share that goes
            away.
        kind: how.
    """


def test_schema_comes_from_the_signature() -> None:
    sparsity, kind, rank, dry = schema_of(method)
    assert (sparsity.name, sparsity.type, sparsity.default, sparsity.search) == ("sparsity", float, 0.5, (0.3, 0.5))
    assert sparsity.help == "share that goes away."
    assert kind.choices == ("fast", "good")
    assert rank.optional
    assert rank.type is int
    assert dry.type is bool


def test_defaults_are_filled_in_and_integers_become_floats() -> None:
    assert validate(method, {"sparsity": 1}, "m") == {"sparsity": 1.0, "kind": "good", "rank": None, "dry": False}


@pytest.mark.parametrize(
    ("given", "part"),
    [
        ({"sparsity": 1.5}, "between 0 and 1"),
        ({"sparsity": "x"}, "must be float"),
        ({"rank": 0}, "at least 1"),
        ({"rank": True}, "must be int"),
        ({"sparsity": float("nan")}, "between 0 and 1"),
    ],
)
def test_values_outside_are_refused(given: dict[str, Any], part: str) -> None:
    with pytest.raises(UsageError, match=part):
        validate(method, given, "m")


def test_typos_get_the_nearest_name() -> None:
    with pytest.raises(UnknownName, match="did you mean 'sparsity'"):
        validate(method, {"sparsty": 0.5}, "m")
    with pytest.raises(UnknownName, match="did you mean 'good'"):
        validate(method, {"kind": "goood"}, "m")
