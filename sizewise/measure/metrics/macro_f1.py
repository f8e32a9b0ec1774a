"""Macro-F1: the mean over classes of the harmonic mean of precision and recall.

With 87 % ham, "always ham" is 87 % accurate and has a macro-F1 of 0.47. For a class with TP items right, FP items given
its label in error and FN of its items missed, F1 = 2 TP / (2 TP + FP + FN). An item without an answer is a miss of its
class and nobody's false alarm.
"""

from collections.abc import Sequence

import numpy as np

from sizewise.core.results import Outcome
from sizewise.core.task import Item, Task
from sizewise.measure.extract import find_label
from sizewise.measure.metric import Floats, Metric, Scored


def _score(item: Item, output: str, task: Task) -> Scored:
    answer = find_label(output, task.labels)
    return Scored(answer, None if answer is None else float(answer == item.expected))


def _values(outcomes: Sequence[Outcome], counts: Floats) -> Floats:
    """(B,) macro-F1, over the classes that occur in each draw, as a label or as an answer."""
    given = [outcome.answer if outcome.score is not None else None for outcome in outcomes]
    classes = sorted({outcome.expected for outcome in outcomes if outcome.expected} | {name for name in given if name})
    columns = {name: column for column, name in enumerate(classes)}
    unit = np.vstack([np.eye(len(classes)), np.zeros(len(classes))])  # the last row, index -1, is no class at all
    true = unit[[columns.get(outcome.expected or "", -1) for outcome in outcomes]]  # (n, C)
    said = unit[[columns.get(answer or "", -1) for answer in given]]
    right = counts @ (true * said)  # (B, C) TP
    involved = counts @ true + counts @ said  # (B, C) 2 TP + FP + FN
    f1 = np.where(involved > 0, 2 * right / involved, 0.0)
    values: Floats = f1.sum(axis=1) / (involved > 0).sum(axis=1)
    return values


macro_f1 = Metric("macro-f1", "F1", frozenset({"classify"}), _values, _score)
