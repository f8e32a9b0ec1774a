"""Perplexity: between how many equally likely tokens the text leaves the model to choose, at each step on average.

exp(-log-probability / tokens), both summed over all items. It counts the model's own tokens, so it compares models with
one tokenizer only; bits per byte compares any.
"""

import math
from collections.abc import Sequence

import numpy as np

from sizewise.core.requests import TextScore
from sizewise.core.results import Outcome
from sizewise.measure.metric import Floats, Metric, Scored, sums


def _score(text: TextScore) -> Scored:
    """Statistics: log-probability, tokens, bytes."""
    statistics = (text.logprob, float(text.tokens), float(text.bytes))
    value = math.exp(min(-text.logprob / text.tokens, 700.0)) if text.tokens else None
    return Scored(None, value, statistics)


def _values(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    totals = sums(outcomes, counts)
    values: Floats = np.exp(-totals[:, 0] / totals[:, 1])
    return values


perplexity = Metric(
    "perplexity", "perplexity", frozenset({"perplexity"}), _values, of_text=_score, higher_is_better=False, scale=None
)
