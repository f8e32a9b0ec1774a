"""A model's text made ready to be shown: cleaned, its words compared with another answer's, code told from prose."""

import difflib
import re
from dataclasses import dataclass
from typing import Any, Literal

from sizewise.core.units import format_bytes, format_seconds
from sizewise.pick.report.numbers import NO_VALUE

_WORD = re.compile(r"\s+|\w+|[^\w\s]")
_FENCE = re.compile(r"^[ \t]*```[^\n]*$", re.MULTILINE)
_MOST_WORDS = 1500  # difflib takes quadratic time
_LITTLE = 0.25  # below this share of common words marking the rest would mark everything
_LONG = 700  # characters that are shown unfolded


@dataclass(frozen=True, slots=True)
class Run:
    """Text that is either the same as in the reference answer, or different."""

    text: str
    different: bool


@dataclass(frozen=True, slots=True)
class Segment:
    """Prose or code."""

    kind: Literal["prose", "code"]
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Shown:
    """One answer as the page shows it. `common` is the share of words that it has in common with the reference."""

    segments: tuple[Segment, ...]
    folded: tuple[Segment, ...]  # the rest of a long answer
    folded_words: int
    common: float | None

    @property
    def text(self) -> str:
        """The whole answer, fences left out."""
        return "\n".join("".join(run.text for run in segment.runs) for segment in (*self.segments, *self.folded))


def clean(text: str, longest: int) -> str:
    """Text that any browser shows as it is: no control characters, no half characters, at most `longest` long."""
    text = text.encode("utf-8", "replace").decode()  # lone surrogates
    text = "".join(_visible(character) for character in text.replace("\r\n", "\n"))
    if len(text) <= longest:
        return text
    return f"{text[:longest]}… [{len(text) - longest:,} more characters in the JSON file]"


def _visible(character: str) -> str:
    if character in "\n\t" or not (ord(character) < 32 or ord(character) == 127):
        return character
    return chr(0x2400 + (ord(character) if ord(character) < 32 else 0x21))  # the pictures of control characters


def plainly(key: str, value: Any) -> tuple[str, str]:
    """A key that carries its unit, and its value, in words: `memory_bytes` 25200000000 is `memory`, `25.2 GB`."""
    name, _, unit = key.rpartition("_")
    if isinstance(value, (int, float)) and name and unit in ("bytes", "s"):
        return name.replace("_", " "), format_bytes(value) if unit == "bytes" else format_seconds(value)
    if isinstance(value, (list, tuple)):
        value = ", ".join(map(str, value))
    elif isinstance(value, dict):
        value = ", ".join(f"{inner} {each}" for inner, each in value.items())
    return key.replace("_", " "), NO_VALUE if value in (None, "") else clean(str(value), 400)


def show(answer: str, reference: str | None, longest: int) -> Shown:
    """An answer cut into prose and code, with the words that `reference` (None: none) does not have marked."""
    text = clean(answer, longest)
    marks, common = _differences(text, clean(reference, longest)) if reference is not None else ([], None)
    # A fold for the last few words would take more room than they do.
    fold = (
        len(text)
        if len(text) <= _LONG * 1.3
        else max(text.rfind(" ", 0, _LONG), text.rfind("\n", 0, _LONG), 0) or _LONG
    )
    parts = [(kind, start, end) for kind, start, end in _parts(text) if text[start:end].strip()]
    above = [(kind, start, min(end, fold)) for kind, start, end in parts if start < fold]
    below = [(kind, max(start, fold), end) for kind, start, end in parts if end > fold]
    head, tail = (
        tuple(Segment(kind, _runs(text, start, end, marks)) for kind, start, end in half if text[start:end].strip())
        for half in (above, below)
    )
    return Shown(head, tail, len(text[fold:].split()), common)


def _differences(text: str, reference: str) -> tuple[list[tuple[int, int]], float]:
    """Ranges of `text` that are not in `reference`, and the share of words that both have."""
    own, other = (_WORD.findall(each)[:_MOST_WORDS] for each in (text, reference))
    if not own or not other:
        return [], float(own == other)
    matcher = difflib.SequenceMatcher(None, other, own, autojunk=False)
    blocks = matcher.get_matching_blocks()
    same = sum(not word.isspace() for block in blocks for word in own[block.b : block.b + block.size])
    words = max(sum(not word.isspace() for word in each) for each in (own, other))
    common = same / words if words else 1.0
    if common < _LITTLE:
        return [], common
    starts = [0]
    for word in own:
        starts.append(starts[-1] + len(word))
    ranges = [
        (starts[first], starts[last])
        for kind, _, _, first, last in matcher.get_opcodes()
        if kind in ("replace", "insert")
    ]
    return ranges, common


def _parts(text: str) -> list[tuple[Literal["prose", "code"], int, int]]:
    """Where prose and fenced code begin and end; a fence left open at the end of a cut answer still is code."""
    parts: list[tuple[Literal["prose", "code"], int, int]] = []
    start, inside = 0, False
    for fence in _FENCE.finditer(text):
        parts.append(("code" if inside else "prose", start, max(start, fence.start() - 1)))
        start, inside = min(fence.end() + 1, len(text)), not inside
    parts.append(("code" if inside else "prose", start, len(text)))
    return parts


def _runs(text: str, start: int, end: int, marks: list[tuple[int, int]]) -> tuple[Run, ...]:
    while start < end and text[start] == "\n":
        start += 1
    end = start + len(text[start:end].rstrip())
    runs: list[Run] = []
    at = start
    for first, last in marks:
        first, last = max(first, at), min(last, end)
        if first >= last or not text[first:last].strip():
            continue
        if first > at:
            runs.append(Run(text[at:first], False))
        runs.append(Run(text[first:last], True))
        at = last
    if at < end:
        runs.append(Run(text[at:end], False))
    return tuple(runs)
