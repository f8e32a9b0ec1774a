"""The page of the table of methods: every row is there, with what has no number and why; the picture is well-formed."""

import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

from _method_page import page

_ACCOUNT = {
    "bytes": 100e6,
    "compression_ratio": 0.4,
    "bits_per_weight": 5.9,
    "perplexity_mixed": 30.1,
    "tokens_per_second": 21.0,
    "perplexity_speeches": 41.5,
    "kl_mixed": 0.08,
    "kl_speeches": 0.07,
    "same_top_speeches": 0.91,
    "flips_speeches": 0.02,
    "peak_memory_bytes": 3e8,
}


def _row(method: str, purpose: str, *, why: str = "", **changes: float) -> dict[str, Any]:
    values = {name: {"value": value, "low": value * 0.95, "high": value} for name, value in _ACCOUNT.items()}
    values |= {name: {"value": value, "low": value * 0.95, "high": value} for name, value in changes.items()}
    if why:
        values["kl_speeches"] = {"value": None, "why": why}  # type: ignore[dict-item]
    known = {
        "method": method,
        "purpose": purpose,
        "machine": "a machine",
        "seconds": 3.0,
        "base": "b",
        "amount": "full",
    }
    return known | {"options": {"bits": 4, "tokens": 99}, "account": values}


def test_the_page_has_every_row_and_every_reason() -> None:
    rows = [
        _row("(the model itself)", "Convert", bytes=270e6, same_top_speeches=1.0),
        _row("gptq", "Quantize"),
        _row("depth", "Prune", why="other tokens", bytes=200e6, same_top_speeches=0.5),
        {"method": "broken", "purpose": "Prune", "options": {}, "failed": "does not divide", "base": "b"},
    ]
    text, picture = page(rows, "`the command`")
    lines = text.splitlines()
    assert sum(line.startswith("| gptq 4 |") for line in lines) == 1
    assert "0.07 (0.0665 to 0.07)" in text
    assert "- broken: does not divide" in lines
    assert "- depth 4: no kl_speeches: other tokens" in lines
    root = ElementTree.fromstring(picture)
    texts = [element.text or "" for element in root.iter("{http://www.w3.org/2000/svg}text")]
    assert "gptq 4 agrees with the model at 91.0 % of positions, in 37 % of its bytes" in texts
    assert {"gptq 4", "depth 4"} <= set(texts)
