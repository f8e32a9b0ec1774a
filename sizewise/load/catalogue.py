"""The models that can be pulled by a short name: `catalogue.toml`, read once."""

import functools
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class Entry:
    """One known model. What we are not sure of is None or empty, never a guess."""

    name: str
    sources: tuple[str, ...]  # references, tried in this order; never empty
    parameters: int | None = None
    context_length: int | None = None  # tokens
    license: str = ""
    family: str = ""
    prompt_form: str = ""  # for a model without a chat template: text with {prompt}
    scores: dict[str, float] = field(default_factory=dict)  # published: benchmark -> percent
    scores_source: str = ""
    prices: dict[str, Any] = field(default_factory=dict)  # usd_per_million_{input,output}_tokens, date, provenance
    note: str = ""


@functools.cache
def entries() -> dict[str, Entry]:
    """All entries by name, in the order of the file."""
    text = Path(__file__).with_name("catalogue.toml").read_text(encoding="utf-8")
    return {name: _entry(name, body) for name, body in tomllib.loads(text).items()}


def _entry(name: str, body: dict[str, Any]) -> Entry:
    return Entry(name=name, **body | {"sources": tuple(body["sources"])})
