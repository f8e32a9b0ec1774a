"""The majority class: right as often as the commonest label occurs. What does no better has learnt nothing."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from sizewise.core.errors import UsageError
from sizewise.load.linear_model import LinearModel
from sizewise.make.method import head_method


@head_method
def head_majority(labels: Sequence[str]) -> LinearModel:
    """Always answer the commonest label: the floor that everything else must clear.

    Args:
        labels: of the training rows; of labels that are equally common the first in the alphabet wins.

    Raises:
        UsageError: there are no rows.
    """
    if not labels:
        raise UsageError("no training rows: there is no commonest label")
    counts = Counter(labels)
    classes = tuple(sorted(counts))
    shares = np.array([counts[label] for label in classes], np.float64) / len(labels)
    return LinearModel("majority", classes, np.zeros((0, len(classes)), np.float32), np.log(shares).astype(np.float32))
