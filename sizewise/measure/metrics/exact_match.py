"""Exact match: the share of items answered with the very text that is expected.

Both texts are compared after Unicode NFC, case folding, white space as single spaces, and without punctuation at the
ends. Nothing inside is changed: "the cat" and "cat" differ.
"""

from sizewise.core.task import Item, Task
from sizewise.measure.extract import normalise
from sizewise.measure.metric import Metric, Scored


def _score(item: Item, output: str, task: Task) -> Scored:
    if not output.strip():
        return Scored(None, None)
    return Scored(output.strip(), float(normalise(output) == normalise(item.expected or "")))


exact_match = Metric.of_mean("exact-match", "share of items", frozenset({"generate", "number"}), _score)
