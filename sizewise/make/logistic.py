"""Logistic regression, the training that the linear heads share: scikit-learn's, on one thread, in one order.

It minimises the sum of the items' -log p(label) plus |W|^2 / (2 c), which is convex: one answer, whatever the start.
One thread, because the sums of several would be added in an order that changes from run to run.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import UsageError
from sizewise.load.linear_model import LinearModel

ClassWeight = Literal["none", "balanced"]
_ITERATIONS = 1000


class Fitted(NamedTuple):
    """What training leaves."""

    classes: tuple[str, ...]
    coefficients: NDArray[np.float32]  # (features, outputs): 1 output for two classes
    intercept: NDArray[np.float32]  # (outputs,)


def fit_logistic(features: Any, labels: Sequence[str], *, c: float, class_weight: ClassWeight) -> Fitted:
    """Fit by L-BFGS until the gradient is small.

    Args:
        features: (n, features), dense or sparse.
        labels: n of them.
        c: how much a wrong answer weighs against large coefficients.
        class_weight: "balanced" lets every class weigh the same, however rare.

    Raises:
        UsageError: there are no rows, or all have one label.
    """
    from sklearn.linear_model import LogisticRegression
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]  # comes with scikit-learn

    if len(set(labels)) < 2:
        raise UsageError(f"{len(labels)} training rows with {len(set(labels))} label(s): there is nothing to learn")
    weight = None if class_weight == "none" else class_weight
    with threadpool_limits(1):
        trained = LogisticRegression(C=c, class_weight=weight, max_iter=_ITERATIONS).fit(features, list(labels))
    return Fitted(
        tuple(map(str, trained.classes_)),
        np.ascontiguousarray(trained.coef_.T, np.float32),
        trained.intercept_.astype(np.float32),
    )


def halved_if_alike(model: LinearModel, inputs: Sequence[str] | NDArray[np.float32]) -> LinearModel:
    """The model in half the bytes, if it still answers every one of `inputs` as before."""
    half = model.halved()
    return half if half.predict(inputs) == model.predict(inputs) else model
