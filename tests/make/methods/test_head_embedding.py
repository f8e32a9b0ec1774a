"""Embedding head: its oracle is scikit-learn, and a direction that is known."""

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression

from sizewise.core.errors import UsageError
from sizewise.make.methods.head_embedding import head_embedding


@pytest.mark.parametrize("classes", [2, 4])
def test_it_predicts_what_scikit_learn_predicts(classes: int) -> None:
    generator = np.random.default_rng(0)
    embeddings = generator.normal(size=(200, 16)).astype(np.float32)
    labels = [f"class {place}" for place in (embeddings @ generator.normal(size=(16, classes))).argmax(1)]
    model = head_embedding(embeddings, labels, c=1.0)
    oracle = LogisticRegression(C=1.0, max_iter=1000).fit(embeddings, labels)
    assert model.predict(embeddings) == list(oracle.predict(embeddings))
    unseen = generator.normal(size=(100, 16)).astype(np.float32)
    mine = np.exp(model.predict_log_proba(unseen))
    assert np.allclose(mine, oracle.predict_proba(unseen), atol=2e-3)  # coefficients are kept in fp16


def test_it_finds_the_direction_that_decides() -> None:
    generator = np.random.default_rng(1)
    embeddings = generator.normal(size=(400, 8)).astype(np.float32)
    labels = ["yes" if row[3] > 0 else "no" for row in embeddings]
    weights = np.abs(head_embedding(embeddings, labels).coefficients[:, 0])
    assert weights.argmax() == 3
    assert weights[3] > 5 * np.delete(weights, 3).max()


def test_one_label_is_nothing_to_learn() -> None:
    with pytest.raises(UsageError):
        head_embedding(np.ones((3, 2), np.float32), ["a", "a", "a"])
