"""chrF: how many runs of one to six characters an answer and the expected text share (Popovic 2015).

An F-measure that counts recall twice (beta = 2), over characters without white space; it needs no tokenizer and treats
all languages alike. Counts are summed over the corpus, as sacrebleu does; the values are the same.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sizewise.core.results import Outcome
from sizewise.core.task import Item, Task
from sizewise.measure.metric import Floats, Metric, Scored, sums

_ORDERS = 6
_BETA_SQUARED = 4.0


def _runs(text: str) -> list[Counter[str]]:
    """For each length, how often each run of that many characters occurs."""
    dense = "".join(text.split())
    return [Counter(dense[i : i + size] for i in range(len(dense) - size + 1)) for size in range(1, _ORDERS + 1)]


def _score(item: Item, output: str, task: Task) -> Scored:
    """Statistics, for each length of run: how many the answer has, the expected text has, both share."""
    statistics: list[float] = []
    for made, expected in zip(_runs(output), _runs(item.expected or ""), strict=True):
        # Runs longer than the expected text cannot be right or wrong.
        statistics += [made.total() if expected else 0, expected.total(), (made & expected).total()]
    if not output.strip():
        return Scored(None, None, tuple(statistics))
    return Scored(output.strip(), float(_f_measure(np.array([statistics]))[0]), tuple(statistics))


def _f_measure(totals: Floats) -> Floats:
    """(B, 3 * orders) counts to (B,) chrF, 0 to 100. Lengths that either side is too short for are left out."""
    made, expected, shared = totals[:, 0::3], totals[:, 1::3], totals[:, 2::3]
    present = (made > 0) & (expected > 0)
    orders = present.sum(axis=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        precision = np.where(present, shared / made, 0.0).sum(axis=1) / orders
        recall = np.where(present, shared / expected, 0.0).sum(axis=1) / orders
        values: Floats = (1 + _BETA_SQUARED) * precision * recall / (_BETA_SQUARED * precision + recall)
    return np.where((orders > 0) & (precision + recall > 0), 100 * values, 0.0)


def _values(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    return _f_measure(sums(outcomes, counts))


chrf = Metric("chrf", "chrF", frozenset({"generate"}), _values, _score, scale=100.0)
