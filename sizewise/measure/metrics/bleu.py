"""BLEU: how many of an answer's runs of one to four words the expected text holds (Papineni et al. 2002).

The value belongs to the whole corpus: matches are summed over items before precisions are taken. The counts come from
sacrebleu (tokenizer 13a, exponential smoothing), so the values can be shared and compared. An item's own score, shown
beside it, uses the orders that it is long enough for.
"""

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from sizewise.core.results import Outcome
from sizewise.core.task import Item, Task
from sizewise.measure.metric import Floats, Metric, Scored, sums

_ORDERS = 4


@lru_cache(maxsize=1)
def _sentence_bleu() -> Any:
    from sacrebleu.metrics import BLEU

    return BLEU(effective_order=True)


def _score(item: Item, output: str, task: Task) -> Scored:
    """Statistics: length, expected length, matches of each order, n-grams of each order."""
    made = _sentence_bleu().sentence_score(output, [item.expected or ""])
    statistics = (float(made.sys_len), float(made.ref_len), *map(float, made.counts), *map(float, made.totals))
    if not output.strip():
        return Scored(None, None, statistics)
    return Scored(output.strip(), float(made.score), statistics)


def _values(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    """(B,) corpus BLEU, 0 to 100."""
    totals = sums(outcomes, counts)  # (B, 2 + 2 * orders)
    length, expected = totals[:, 0], totals[:, 1]
    matches, made = totals[:, 2 : 2 + _ORDERS], totals[:, 2 + _ORDERS :]
    # Smoothing: the k-th order without a match counts as 1 / 2^k of one.
    misses = np.cumsum(matches == 0, axis=1)
    precisions = np.where(matches > 0, matches / made, 0.5**misses / made)
    usable = np.logical_and(made.min(axis=1) > 0, matches.max(axis=1) > 0)
    mean = np.exp(np.log(np.where(usable[:, None], precisions, 1.0)).mean(axis=1))
    brevity = np.where(length < expected, np.exp(1 - expected / length), 1.0)
    values: Floats = np.where(usable, 100 * brevity * mean, 0.0)
    return values


bleu = Metric("bleu", "BLEU", frozenset({"generate"}), _values, _score, scale=100.0)
