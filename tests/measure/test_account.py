"""The account: its figures against a plain computation, identity, intervals, and where nothing can be compared."""

import math
from pathlib import Path

import numpy as np
import pytest
from tiny_checkpoint import as_model, write_causal
from tiny_gguf import write_tiny_llama

from sizewise.core.model import Model
from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.measure import account_logits
from sizewise.measure._account_child import COLUMNS, compare
from sizewise.measure.account import BLOCK, of_reading
from sizewise.measure.account_logits import Reading, readings
from sizewise.measure.account_text import Corpus, corpus, speeches

TEXT = Corpus("plain", "the quick brown fox jumps over a lazy dog. yes no question answer 0 1 2 3. " * 12)


def _slow(mine: np.ndarray, theirs: np.ndarray, tokens: list[int]) -> np.ndarray:
    """The columns by the definitions, one position at a time."""
    rows = []
    for q_logits, p_logits, token in zip(mine.astype(float), theirs.astype(float), tokens, strict=True):
        q = [math.exp(x) / sum(math.exp(y) for y in q_logits) for x in q_logits]
        p = [math.exp(x) / sum(math.exp(y) for y in p_logits) for x in p_logits]
        kl = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
        best, parents = q.index(max(q)), p.index(max(p))
        rows.append([math.log(q[token]), kl, best == parents, best == token, math.log(p[token]), parents == token])
    return np.array(rows, float)


def test_each_column_is_what_its_definition_says() -> None:
    rng = np.random.default_rng(0)
    mine, theirs = (rng.normal(0, 2, (150, 9)).astype(np.float32) for _ in range(2))
    tokens = rng.integers(9, size=150).tolist()
    found = compare(mine, theirs, tokens)
    assert found.shape == (150, len(COLUMNS))
    np.testing.assert_allclose(found, _slow(mine, theirs, tokens), rtol=1e-9)


def test_a_uniform_model_has_the_vocabulary_as_its_perplexity_and_a_model_is_itself() -> None:
    flat = np.zeros((300, 11), np.float32)
    reading = Reading(Corpus("flat", "x" * 300), compare(flat, flat, [3] * 300), (200, 100), "none")
    found = {one.name: one for one in of_reading(reading)}
    assert found["perplexity_flat"].value == pytest.approx(11)
    assert found["bits_per_byte_flat"].value == pytest.approx(math.log2(11))
    assert found["perplexity_ratio_flat"].value == 1
    assert found["kl_flat"].value == 0
    assert (found["same_top_flat"].value, found["same_top_flat"].high) == (1, 1)
    low = found["same_top_flat"].low
    assert low is not None
    assert 0.6 < low < 1  # eleven blocks that agree do not prove that all text does
    assert found["flips_flat"].value == 0
    assert found["flips_flat"].n == 300


def test_intervals_hold_the_value_and_shrink_with_text() -> None:
    rng = np.random.default_rng(1)
    widths = []
    for windows in (8, 128):
        n = 128 * windows
        mine, theirs = (rng.normal(0, 1, (n, 7)).astype(np.float32) for _ in range(2))
        table = compare(mine, theirs, rng.integers(7, size=n).tolist())
        found = {one.name: one for one in of_reading(Reading(TEXT, table, (128,) * windows, "none"))}
        one = found["kl_plain"]
        assert one.low is not None and one.high is not None and one.value is not None  # noqa: PT018 (for the checker)
        assert one.low < one.value < one.high
        assert f"{BLOCK} tokens" in one.spread
        widths.append(one.high - one.low)
    assert widths[1] < widths[0] / 2.5  # sixteen times the text: a quarter of the width


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, Model]:
    folder = tmp_path_factory.mktemp("pair")
    one, other = (write_tiny_llama(folder / f"{seed}.gguf", seed=seed) for seed in (0, 1))
    return find_model(str(one)), find_model(str(other))


def _quiet(*_: object) -> None:
    return None


def test_a_model_against_itself_and_another_one(pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(account_logits, "CACHE_BYTES", 200_000)  # a window or two: parent and child take turns
    (same,) = readings(pair[0], pair[0], [TEXT], threads=1, listen=_quiet)
    assert same.unlike == ""
    assert np.all(same.table[:, COLUMNS.index("kl")] == 0)
    assert np.all(same.table[:, COLUMNS.index("same_top")] == 1)
    assert np.array_equal(same.table[:, 0], same.table[:, 4])
    (other,) = readings(pair[1], pair[0], [TEXT], threads=1, listen=_quiet)
    assert other.table[:, COLUMNS.index("kl")].mean() > 0.01
    np.testing.assert_array_equal(other.table[:, 4], same.table[:, 0])  # the parent is what it was


@pytest.mark.parametrize("parts", ["", "q,up", "all"])
def test_a_checkpoint_against_itself(tmp_path: Path, parts: str) -> None:
    same = as_model(write_causal(tmp_path / "base", "llama"))
    if parts:
        options, store = {"group": 16, "parts": parts}, Store(tmp_path / "home")
        same = make("rtn", str(tmp_path / "base"), name="small", options=options, store=store)
    (found,) = readings(same, same, [TEXT], threads=1, listen=_quiet)
    assert found.unlike == ""
    figures = {one.name: one.value for one in of_reading(found)}
    assert figures["kl_plain"] == figures["flips_plain"] == 0
    assert figures["same_top_plain"] == figures["perplexity_ratio_plain"] == 1


def test_the_parent_is_run_once_for_many_children(pair: tuple[Model, Model], monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []
    real = account_logits._Lazy.child

    def noted(self: account_logits._Lazy) -> object:
        opened.append(self.model.name)
        return real(self)

    monkeypatch.setattr(account_logits._Lazy, "child", noted)
    first = readings(pair[1], pair[0], [TEXT], threads=1, listen=_quiet)
    assert pair[0].name in opened
    opened.clear()
    again = readings(pair[1], pair[0], [TEXT], threads=1, listen=_quiet)
    assert pair[0].name not in opened
    np.testing.assert_array_equal(first[0].table, again[0].table)


def test_the_log_probabilities_are_those_of_the_runner(tmp_path: Path) -> None:
    """A GGUF, alone: the sum over a text is what `score_texts` of its runner says, window for window."""
    from sizewise.load.open import open_runner
    from sizewise.load.runner import Options

    model = find_model(str(write_tiny_llama(tmp_path / "tiny.gguf")))
    text = Corpus("short", "a lazy dog and a quick fox")
    (found,) = readings(model, None, [text], threads=1, listen=_quiet)
    assert found.unlike == "there is no parent to compare with"
    assert np.isnan(found.table[:, 1]).all()
    with open_runner(model, options=Options(threads=1)) as runner:
        (score,) = runner.score_texts([text.text], 256)
    assert len(found.table) == score.tokens
    assert found.table[:, 0].sum() == pytest.approx(score.logprob, rel=1e-5)


def test_models_that_read_a_text_differently_are_not_compared(pair: tuple[Model, Model], tmp_path: Path) -> None:
    other = as_model(write_causal(tmp_path / "other", "llama"))
    (found,) = readings(other, pair[0], [TEXT], threads=1, listen=_quiet)
    assert found.unlike == "the parent has a vocabulary of 286 tokens, this model of 334"
    figures = {one.name: one for one in of_reading(found)}
    assert figures["kl_plain"].value is None
    assert "vocabulary" in figures["kl_plain"].why
    assert figures["perplexity_plain"].value is not None
    assert figures["bits_per_byte_plain"].value is not None


def test_the_texts_are_apart_from_what_is_calibrated_on() -> None:
    """No run of eight words of the judging text is in the calibration text."""
    import json

    from sizewise.make.calibration import OWN, read_texts
    from sizewise.measure.account_text import OWN as JUDGING

    def runs(text: str) -> set[tuple[str, ...]]:
        words = text.lower().split()
        return {tuple(words[at : at + 8]) for at in range(len(words) - 7)}

    learned = set().union(*(runs(text) for text in read_texts(OWN)))
    for line in JUDGING.read_text(encoding="utf-8").splitlines():
        assert not runs(json.loads(line)["input"]) & learned


def test_a_corpus_is_of_many_documents_and_never_longer_than_asked() -> None:
    text = corpus("many", ["word " * 4000, *(f"short {place}" for place in range(900))], 2000).text
    assert len(text) <= 2000
    assert text.count("\n\n") >= 7
    assert corpus("many", ["a", "b"], 100).digest == corpus("many", ["a", "b"], 100).digest
    assert len(speeches(4000).text) > 3500
