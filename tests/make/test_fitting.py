"""Options that no matrix of that shape can have are refused before any text is read through the model."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sizewise.core.errors import UsageError
from sizewise.core.events import Progress
from sizewise.load.store.store import Store
from sizewise.make.apply import make

Family = Callable[[str], Path]
SMALL: dict[str, Any] = {"tokens": 240, "window": 40}


@pytest.mark.parametrize(("method", "options", "said"), [
    ("gptq", {"group": 24}, "groups of 24 do not divide"),
    ("awq", {"group": 24}, "groups of 24 do not divide"),
    ("gptq", {"group": 24, "parts": "head"}, "lm_head: groups of 24 do not divide"),
    ("wanda", {"pattern": "4:2"}, "pattern '4:2' is none"),
    ("sparsegpt", {"pattern": "2:5"}, "5 does not divide rows of"),
    ("asvd", {"rank": 1000}, "rank 1000 saves nothing"),
    ("svd-llm", {"keep": 0.001}, "leaves no rank"),
])  # fmt: skip
def test_it_is_refused_at_once(method: str, options: dict[str, Any], said: str, family: Family, tmp_path: Path) -> None:
    heard: list[Progress] = []
    base, store = str(family("llama")), Store(tmp_path)
    with pytest.raises(UsageError, match=said) as caught:
        make(method, base, name="x", options=options | SMALL, store=store, listen=heard.append)
    assert ("lm_head" in str(caught.value)) == ("parts" in options)
    assert not heard


@pytest.mark.parametrize(("method", "options"), [
    ("gptq", {"group": 24, "bits": 16}),  # leaves each matrix as it is
    ("svd-llm", {"keep": 1.0}),  # so does this
])  # fmt: skip
def test_what_is_left_as_it_is_needs_no_fitting(method: str, options: dict[str, Any], family: Family) -> None:
    assert make(method, str(family("llama")), name="x", options=options | SMALL, store=Store()).digest
