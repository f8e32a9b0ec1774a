"""Logistic regression on an encoder's embeddings: a small network that knows the language, a line that knows the job.

The encoder was trained on other text and is left as it is; the head learns (width + 1) numbers for each class, so a few
hundred labelled rows are enough. Texts whose words never occur in training still land near their like.
"""

from collections.abc import Sequence
from typing import Annotated

import numpy as np
from numpy.typing import NDArray

from sizewise.core.params import Range, Search
from sizewise.load.linear_model import LinearModel
from sizewise.make.logistic import ClassWeight, fit_logistic, halved_if_alike
from sizewise.make.method import head_method


@head_method
def head_embedding(
    embeddings: NDArray[np.float32],
    labels: Sequence[str],
    *,
    c: Annotated[float, Range(1e-6, 1e6), Search(1.0, 10.0, 100.0)] = 10.0,
    class_weight: ClassWeight = "none",
) -> LinearModel:
    """Classify by meaning: an encoder's embeddings and logistic regression.

    Args:
        embeddings: (n, width), of the training inputs.
        labels: n of them.
        c: how much a wrong answer weighs against large coefficients; larger fits the training rows more closely.
        class_weight: balanced lets every class weigh the same, however rare.

    Raises:
        UsageError: all labels are one.
    """
    fitted = fit_logistic(embeddings, labels, c=c, class_weight=class_weight)
    model = LinearModel("embedding", fitted.classes, fitted.coefficients, fitted.intercept)
    return halved_if_alike(model, embeddings)
