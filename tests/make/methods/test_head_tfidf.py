"""TF-IDF head: its oracle is scikit-learn's own pipeline."""

from pathlib import Path

import numpy as np
import pytest
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from sizewise.core.errors import UsageError
from sizewise.make.method import kind_of, wants
from sizewise.make.methods.head_tfidf import head_tfidf


def rows(n: int, seed: int) -> tuple[list[str], list[str]]:
    """Texts of random words, labelled by which of three words they hold most of."""
    generator = np.random.default_rng(seed)
    words = np.array([f"word{index}" for index in range(60)] + ["good", "bad", "plain"])
    texts = [" ".join(generator.choice(words, 12)) for _ in range(n)]
    labels = [max(("good", "bad", "plain"), key=lambda word: (text.count(word), word)) for text in texts]
    return texts, labels


@pytest.mark.parametrize("class_weight", ["none", "balanced"])
@pytest.mark.parametrize("ngram_max", [1, 2])
def test_it_predicts_what_the_scikit_learn_pipeline_predicts(ngram_max: int, class_weight: str) -> None:
    texts, labels = rows(300, 0)
    unseen, _ = rows(200, 1)
    weight = None if class_weight == "none" else "balanced"
    pipeline = make_pipeline(
        TfidfVectorizer(ngram_range=(1, ngram_max), min_df=2, sublinear_tf=True),
        LogisticRegression(C=10, max_iter=1000, class_weight=weight),
    ).fit(texts, labels)
    model = head_tfidf(texts, labels, ngram_max=ngram_max, class_weight=class_weight)  # type: ignore[arg-type]
    assert np.allclose(model.predict_log_proba(unseen), pipeline.predict_log_proba(unseen), atol=0.02)  # fp16
    agree = np.mean(np.array(model.predict(unseen)) == pipeline.predict(unseen))
    assert agree >= 0.99
    assert model.predict(texts) == list(pipeline.predict(texts))


def test_two_runs_give_the_same_bytes(tmp_path: Path) -> None:
    texts, labels = rows(200, 3)
    contents = []
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        files = head_tfidf(texts, labels).save(tmp_path / name)
        contents.append({title: path.read_bytes() for title, path in files.items()})
    assert contents[0] == contents[1]


def test_half_precision_is_taken_where_it_changes_nothing() -> None:
    texts, labels = rows(200, 4)
    assert head_tfidf(texts, labels).coefficients.dtype == np.float16


def test_rows_that_cannot_be_learnt_from_are_refused() -> None:
    with pytest.raises(UsageError, match="min_df"):
        head_tfidf(["all words", "are rare"], ["a", "b"])
    with pytest.raises(UsageError, match="nothing to learn"):
        head_tfidf(["one word", "one word"], ["a", "a"])


def test_it_is_a_head_that_wants_texts_and_labels() -> None:
    assert kind_of(head_tfidf) == "head"
    assert wants(head_tfidf) == ("texts", "labels")
