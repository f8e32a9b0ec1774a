"""Linear models: the formula against scikit-learn's, the files, and the runner's answers."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression

from sizewise.core.errors import BadModel, Unsupported
from sizewise.core.model import Model
from sizewise.core.requests import Chunk, GenerateRequest, Message, ScoreRequest
from sizewise.load.linear_model import FACTS_FILE, WEIGHTS_FILE, Analyzer, LinearModel, encoder_of
from sizewise.load.runner import Options, Runner
from sizewise.load.runners.linear import Linear

TEXTS = [
    "The film was good, GOOD fun",
    "a bad film",
    "Straße Über İstanbul — naïve café good",
    "bad bad bad acting; 3 stars of 10",
    "x y z",
    "",
    "good film_maker don't e-mail me at 10:30",
]
LABELS = ["up", "down", "up", "down", "down", "up", "flat"]


def no_encoder() -> Runner:
    raise AssertionError("no encoder was asked for")


def tfidf(texts: list[str], ngram_max: int = 2) -> tuple[LinearModel, TfidfVectorizer, LogisticRegression]:
    vectorizer = TfidfVectorizer(ngram_range=(1, ngram_max), sublinear_tf=True)
    trained = LogisticRegression(C=10).fit(vectorizer.fit_transform(texts), LABELS)
    model = LinearModel(
        kind="tfidf",
        classes=tuple(trained.classes_),
        coefficients=trained.coef_.T.astype(np.float32),
        intercept=trained.intercept_.astype(np.float32),
        vocabulary=tuple(vectorizer.get_feature_names_out()),
        idf=vectorizer.idf_.astype(np.float32),
        analyzer=Analyzer(ngram_max=ngram_max),
    )
    return model, vectorizer, trained


def stored(model: LinearModel, folder: Path) -> Model:
    files = model.save(folder)
    return Model("linear", "linear", "sha256:" + "0" * 64, files, 1)


@pytest.mark.parametrize("ngram_max", [1, 2, 3])
def test_log_probabilities_are_those_of_scikit_learn(ngram_max: int) -> None:
    model, vectorizer, trained = tfidf(TEXTS, ngram_max)
    unseen = [*TEXTS, "Good film, bad fun", "nothing known here at all", "GOOD\ngood\tgood"]
    expected = trained.predict_log_proba(vectorizer.transform(unseen))
    assert np.allclose(model.predict_log_proba(unseen), expected, atol=1e-5)


@given(st.text(max_size=60), st.integers(1, 3))
def test_terms_are_those_of_scikit_learn(text: str, ngram_max: int) -> None:
    analyze = TfidfVectorizer(ngram_range=(1, ngram_max)).build_analyzer()
    assert Analyzer(ngram_max=ngram_max).terms(text) == list(analyze(text))


def test_features_are_those_of_scikit_learn() -> None:
    model, vectorizer, _ = tfidf(TEXTS)
    dense = vectorizer.transform(TEXTS).toarray()
    for row, text in enumerate(TEXTS):
        columns, weights = model.features(text)
        mine = np.zeros(dense.shape[1])
        mine[columns] = weights
        assert np.allclose(mine, dense[row], atol=1e-6)


def test_two_classes_need_one_output() -> None:
    model = LinearModel("embedding", ("no", "yes"), np.array([[1.0], [-2.0]], np.float32), np.array([0.5], np.float32))
    row = model.predict_log_proba(np.array([[1.0, 0.25]], np.float32))[0]
    assert row[1] == pytest.approx(-math.log1p(math.exp(-1.0)))
    assert np.exp(row).sum() == pytest.approx(1)
    assert model.parameters == 3


@pytest.mark.parametrize("kind", ["tfidf", "embedding", "majority"])
def test_a_saved_model_comes_back_the_same_and_its_bytes_never_change(kind: str, tmp_path: Path) -> None:
    model, inputs = _some(kind)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
    first, again = model.save(tmp_path / "a"), model.save(tmp_path / "b")
    assert {name: path.read_bytes() for name, path in first.items()} == {
        name: path.read_bytes() for name, path in again.items()
    }
    back = LinearModel.load(first)
    assert np.array_equal(back.predict_log_proba(inputs), model.predict_log_proba(inputs))
    assert back.parameters == model.parameters
    assert {path.name for path in (tmp_path / "a").iterdir()} == {WEIGHTS_FILE, FACTS_FILE}


def _some(kind: str) -> tuple[LinearModel, list[str] | NDArray[np.float32]]:
    if kind == "tfidf":
        return tfidf(TEXTS)[0].halved(), TEXTS
    if kind == "majority":
        shares = np.log(np.array([0.2, 0.5, 0.3])).astype(np.float32)
        return LinearModel("majority", ("a", "b", "c"), np.zeros((0, 3), np.float32), shares), TEXTS
    weights = np.random.default_rng(0).normal(size=(4, 3)).astype(np.float32)
    return LinearModel("embedding", ("a", "b", "c"), weights, np.zeros(3, np.float32)), np.eye(4, dtype=np.float32)


def test_halving_keeps_what_fp16_cannot_hold() -> None:
    huge = LinearModel("embedding", ("a", "b"), np.array([[1e6]], np.float32), np.zeros(1, np.float32))
    assert huge.halved() is huge


@pytest.mark.parametrize(
    "break_it",
    [
        lambda files: files[WEIGHTS_FILE].write_bytes(files[WEIGHTS_FILE].read_bytes()[:-9]),
        lambda files: files[WEIGHTS_FILE].unlink(),
        lambda files: files[FACTS_FILE].write_text("{"),
        lambda files: files[FACTS_FILE].write_text("[]"),
        lambda files: _edit(files[FACTS_FILE], kind="forest"),
        lambda files: _edit(files[FACTS_FILE], format=99),
        lambda files: _edit(files[FACTS_FILE], vocabulary=["one"]),
        lambda files: _edit(files[FACTS_FILE], classes=["only"]),
        lambda files: _edit(files[FACTS_FILE], analyzer={"token_pattern": "("}),
        lambda files: _edit(files[FACTS_FILE], analyzer={"colour": "red"}),
    ],
)
def test_a_damaged_model_is_refused_in_one_line(break_it, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    files = tfidf(TEXTS)[0].save(tmp_path)
    break_it(files)
    with pytest.raises(BadModel) as caught:
        LinearModel.load(tmp_path)
    assert "\n" not in str(caught.value)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_runner_scores_labels_and_answers_with_the_likeliest(tmp_path: Path) -> None:
    model = tfidf(TEXTS)[0]
    with Linear(stored(model, tmp_path), Options(), no_encoder) as runner:
        assert runner.raw_input
        assert runner.abilities == {"score", "generate", "chat"}
        expected = model.predict_log_proba(TEXTS)
        scores = runner.score([ScoreRequest(text, (" up", "down", " sideways")) for text in TEXTS])
        up, down = model.classes.index("up"), model.classes.index("down")
        for row, (first, second, third) in zip(expected, scores, strict=True):
            assert (first.logprob, second.logprob) == (row[up], row[down])
            assert third.logprob == -math.inf
            assert first.greedy == (row.argmax() == up)
        heard: list[tuple[int, Chunk]] = []
        asked = [GenerateRequest(prompt=TEXTS[0]), GenerateRequest(messages=(Message("user", TEXTS[1]),))]
        replies = runner.generate(asked, lambda index, chunk: heard.append((index, chunk)))
        assert [reply.text for reply in replies] == model.predict(TEXTS[:2])
        assert [chunk.text for _, chunk in heard] == [reply.text for reply in replies]
        with pytest.raises(Unsupported):
            runner.embed(TEXTS)
        with pytest.raises(Unsupported):
            runner.score_texts(TEXTS)


def test_a_model_without_its_encoder_is_refused() -> None:
    with pytest.raises(BadModel):
        encoder_of(Model("m", "linear", "sha256:" + "0" * 64, {}, 1))


def test_the_encoder_keeps_its_own_file_names(tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(b"12345")
    model = Model("m", "linear", "sha256:" + "0" * 64, {"encoder/1_Pooling/config.json": tmp_path / "blob"}, 9)
    encoder = encoder_of(model)
    assert encoder.kind == "encoder"
    assert list(encoder.files) == ["1_Pooling/config.json"]
    assert encoder.size_bytes == 5
