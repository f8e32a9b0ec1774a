"""From what a model wrote to the answer in it: a label, a choice, a number, a text to compare.

Each function returns None where there is no answer that a careful reader would be sure of. Guessing would turn "did not
answer" into "wrong" or, worse, into "right".
"""

import re
import string
import unicodedata
from collections.abc import Sequence
from decimal import Decimal
from functools import lru_cache

from sizewise.core.task import parse_number

_QUOTES = "\u2018\u2019\u201c\u201d\u00ab\u00bb\u2026"
_EDGES = string.punctuation + string.whitespace + _QUOTES
_NOT = re.compile(r"(?:\b(?:not|never|neither|nor)|n['\u2019]t)\s+(?:\w+\s+)?[\"'*]*$", re.IGNORECASE)
_NUMBER = re.compile(
    r"(?<!\w)[-+\u2212]?\s?[$\u20ac\u00a3]?\s?"  # sign, currency
    r"(?:(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)?|\.\d+)"  # 1,234.5 or 1234.5 or .5
    r"(?:[eE][+-]?\d{1,3}(?!\w))?"
)
_LETTER = re.compile(r"(?i:(?:the\s+)?(?:correct\s+)?(?:answer|option|choice)\s*(?:is\b)?\s*:?)?\W*([A-Z])(?:[\W_]|$)")


def normalise(text: str) -> str:
    """A text as exact match compares it: NFC, case folded, white space as one space, no punctuation at either end."""
    folded = unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())
    return " ".join(folded.strip(_EDGES).split())


def find_label(text: str, labels: Sequence[str]) -> str | None:
    """The label that a text gives.

    The whole text, but for case, white space and punctuation at its ends; else the one label that the first line with
    any label mentions as a whole word. A line with two different labels, or with a "not" before the label, gives none.
    """
    plain, folded, pattern = _readings(tuple(labels))
    whole = folded.get(_fold(text)) or plain.get(normalise(text))
    if whole is not None:
        return whole
    for line in text.splitlines():
        matches = list(pattern.finditer(line))
        found = {folded.get(_fold(match[0])) for match in matches}
        if found:
            negated = any(_NOT.search(line[: match.start()]) for match in matches)
            return found.pop() if len(found) == 1 and not negated else None
    return None


@lru_cache(maxsize=256)
def _readings(labels: tuple[str, ...]) -> tuple[dict[str, str], dict[str, str], re.Pattern[str]]:
    """Normalised and case-folded label -> label, and what finds one as a whole word, the longest of several."""
    normal = [normalise(label) for label in labels]
    # C and C# differ in punctuation alone: then punctuation counts.
    plain = {key: label for key, label in zip(normal, labels, strict=True) if key and normal.count(key) == 1}
    folded = {_fold(label): label for label in labels}
    longest = sorted(labels, key=len, reverse=True)
    words = "|".join(r"\s+".join(map(re.escape, label.split())) for label in longest)
    return plain, folded, re.compile(rf"(?<!\w)(?:{words})(?!\w)", re.IGNORECASE)


def _fold(text: str) -> str:
    """Without differences of case and white space."""
    return " ".join(text.casefold().split())


def find_choice(text: str, choices: Sequence[str]) -> str | None:
    """The choice that a text gives: its own text, else its letter (`B`, `(b)` alone, `Answer: C. because`)."""
    exact = [choice for choice in choices if _fold(choice) == _fold(text)]
    exact = exact or [choice for choice in choices if normalise(choice) == normalise(text) != ""]
    if len(exact) == 1:
        return exact[0]
    bare = text.strip(_EDGES)
    letter = bare.upper() if len(bare) == 1 else ""
    if not letter and (match := _LETTER.match(text.lstrip())) and not _article(text.lstrip(), match):
        letter = match[1]
    if letter and letter in string.ascii_uppercase[: len(choices)]:
        return choices[string.ascii_uppercase.index(letter)]
    return find_label(text, choices)


def _article(text: str, match: re.Match[str]) -> bool:
    """Whether the letter is a word of a sentence: "A dog is ...", "I think ...", with nothing to set it off."""
    return match[1] in "AI" and match.end() < len(text) and text[match.end() - 1] == " "


def find_number(text: str) -> Decimal | None:
    """The number that a text ends with: after the last `####`, else in the last TeX box, else the last of all."""
    marked = text.rpartition("####")[2] if "####" in text else ""
    boxed = re.findall(r"\\boxed\{([^{}]*)\}", text)
    for part, first in ((marked, True), (boxed[-1] if boxed else "", True), (text, False)):
        found = [number for match in _NUMBER.finditer(part) if (number := _read(part, match)) is not None]
        if found:
            return found[0] if first else found[-1]
    return None


def _read(text: str, match: re.Match[str]) -> Decimal | None:
    """A match as a number. A minus that joins two numbers (`10-3`, `10 - 3`) is no sign."""
    written = match[0]
    before = text[: match.start()].rstrip()
    if written[0] in "-+\u2212" and before and (before[-1].isalnum() or before[-1] in ")%"):
        written = written[1:]
    return parse_number(written.replace(" ", ""))
