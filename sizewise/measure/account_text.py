"""The texts that models are judged on after they were made: the same ones for every model.

One is of the kind that methods calibrate on, the other is not: a method that learned its calibration text by heart
looks good on the first and bad on the second. A text is cut to a number of characters, not of tokens, so that models
with different tokenizers read the same.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sizewise.core.digests import digest_of_json

OWN = Path(__file__).with_name("evaluation.jsonl")
_DOCUMENTS = 8  # a text is made of at least so many documents, however short it is


@dataclass(frozen=True, slots=True)
class Corpus:
    """A named text, ready to be read by a model."""

    name: str  # part of the names of what is measured on it
    text: str

    @property
    def digest(self) -> str:
        """Content address of the text."""
        return digest_of_json(self.text)


def corpus(name: str, documents: Sequence[str], characters: int, seed: int = 0) -> Corpus:
    """Documents in a seeded order, joined by empty lines, until there are so many characters.

    Each is cut to an eighth of that number, so that one long document is not the whole text.
    """
    order = list(documents)
    random.Random(seed).shuffle(order)
    parts: list[str] = []
    left = characters
    for document in order:
        part = document.strip()[: min(left, max(1, characters // _DOCUMENTS))]
        if left <= 0:
            break
        parts.append(part)
        left -= len(part) + 2
    return Corpus(name, "\n\n".join(parts))


def speeches(characters: int) -> Corpus:
    """The text that comes with this package for judging: political speeches, no part of any calibration text here."""
    rows = [json.loads(line) for line in OWN.read_text(encoding="utf-8").splitlines()]
    return corpus("speeches", [row["input"] for row in rows], characters)
