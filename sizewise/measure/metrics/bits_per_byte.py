"""Bits per byte: how many bits the model would need for each byte of the text, were it used to compress it.

-log2 of the probability of all texts, by their length in UTF-8. Whatever the tokens, the bytes are the same: this is
the measure to compare different models by. English text in zip files takes about 2.5, good small models about 1.
"""

import math
from collections.abc import Sequence

from sizewise.core.requests import TextScore
from sizewise.core.results import Outcome
from sizewise.measure.metric import Floats, Metric, Scored, sums


def _score(text: TextScore) -> Scored:
    """Statistics: log-probability, tokens, bytes."""
    statistics = (text.logprob, float(text.tokens), float(text.bytes))
    return Scored(None, -text.logprob / math.log(2) / text.bytes if text.bytes and text.tokens else None, statistics)


def _values(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    totals = sums(outcomes, counts)
    values: Floats = -totals[:, 0] / (math.log(2) * totals[:, 2])
    return values


bits_per_byte = Metric(
    "bits-per-byte", "bits", frozenset({"perplexity"}), _values, of_text=_score, higher_is_better=False, scale=None
)
