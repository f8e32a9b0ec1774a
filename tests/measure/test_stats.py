"""Statistics against scipy, closed forms and simulations whose truth is known."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
from numpy.typing import NDArray

from sizewise.core.errors import UsageError
from sizewise.core.results import Difference, Evaluation, Interval, Outcome
from sizewise.measure import stats
from sizewise.measure.stats import Share, interval, paired_difference, rows_to_decide, rows_to_separate


class Mean:
    """The mean of `statistics[0]`, a metric without bounds."""

    def aggregate(self, outcomes: Sequence[Outcome]) -> float:
        return float(np.mean([outcome.statistics[0] for outcome in outcomes]))

    def resample(self, outcomes: Sequence[Outcome], counts: NDArray[np.int64]) -> NDArray[np.float64]:
        values: NDArray[np.float64] = counts @ np.array([o.statistics[0] for o in outcomes]) / counts.sum(axis=1)
        return values


def outcomes_of(scores: Sequence[float | None], answers: Sequence[str] | None = None) -> tuple[Outcome, ...]:
    texts = answers or [str(score) for score in scores]
    return tuple(
        Outcome(str(i), "x", None if score is None else texts[i], texts[i], score, 0.0)
        for i, score in enumerate(scores)
    )


def numbers_of(values: Sequence[float]) -> tuple[Outcome, ...]:
    return tuple(Outcome(str(i), None, None, "", None, 0.0, statistics=(v,)) for i, v in enumerate(values))


def evaluation(outcomes: tuple[Outcome, ...], **changes: Any) -> Evaluation:
    fields: dict[str, Any] = {
        "model": "m",
        "model_digest": "d",
        "task": "t",
        "task_digest": "td",
        "split": "test",
        "metric": "accuracy",
        "quality": Interval(0, 0, 0, len(outcomes)),
        "unanswered": 0,
        "seconds": 0.0,
        "cpu_s_per_item": None,
        "outcomes": outcomes,
    }
    return Evaluation(**fields | changes)


def difference(first: Sequence[float | None], second: Sequence[float | None], **options: Any) -> Difference:
    pair = evaluation(outcomes_of(first)), evaluation(outcomes_of(second))
    return paired_difference(*pair, metric=Share(), **options)


@pytest.mark.parametrize(("right", "n"), [(0, 5), (5, 5), (1, 7), (70, 100), (999, 1000)])
def test_wilson_is_scipys(right: int, n: int) -> None:
    known = scipy.stats.binomtest(right, n).proportion_ci(0.95, method="wilson")
    assert stats.wilson(right, n) == pytest.approx((known.low, known.high), abs=1e-12)


def test_all_right_is_not_certain() -> None:
    found = interval(Share(), outcomes_of([1.0] * 20))
    assert (found.value, found.high, found.n) == (1.0, 1.0, 20)
    assert found.low == pytest.approx(20 / (20 + 1.959964**2), abs=1e-6)


def test_unanswered_counts_as_not_right() -> None:
    assert interval(Share(), outcomes_of([1.0, None, 1.0, 0.0])) == interval(Share(), outcomes_of([1.0, 0.0, 1.0, 0.0]))


def test_equal_scores_of_a_bounded_metric_still_have_a_width() -> None:
    found = interval(Share(), outcomes_of([0.5] * 10))
    assert found.low < 0.5 < found.high


def test_no_items_is_an_error_with_a_remedy() -> None:
    with pytest.raises(UsageError, match="no items"):
        interval(Share(), ())


def test_bca_is_scipys() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=60)
    found = interval(Mean(), numbers_of(values.tolist()), resamples=20_000)
    known = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, rng=np.random.default_rng(4)
    ).confidence_interval
    width = known.high - known.low
    assert found.low == pytest.approx(known.low, abs=0.04 * width)
    assert found.high == pytest.approx(known.high, abs=0.04 * width)


def test_percentile_is_scipys_and_differs_from_bca() -> None:
    values = np.random.default_rng(3).gamma(2.0, size=60)
    outcomes = numbers_of(values.tolist())

    def ends(corrected: bool) -> tuple[float, float]:
        return stats.bootstrap(
            lambda counts: Mean().resample(outcomes, counts), 60, values.mean(), resamples=20_000, corrected=corrected
        )

    known = scipy.stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    ).confidence_interval
    width = known.high - known.low
    assert ends(False) == pytest.approx((known.low, known.high), abs=0.04 * width)
    assert ends(True)[1] > ends(False)[1] + 0.03 * width  # skewed to the right: the correction moves the upper end up


def test_resamples_are_the_same_however_they_are_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.concatenate(list(stats._draws(7, 50, seed=5)))
    monkeypatch.setattr(stats, "_CELLS", 20)
    cut = np.concatenate(list(stats._draws(7, 50, seed=5)))
    assert whole.shape == (50, 7)
    assert (whole.sum(axis=1) == 7).all()
    assert np.array_equal(whole, cut)


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (0, 6), (1, 0), (3, 9), (12, 12), (25, 2), (100, 0)])
def test_mcnemar_is_scipys_binomial_test(gained: int, lost: int) -> None:
    first = [True] * gained + [False] * lost + [True] * 10
    second = [False] * gained + [True] * lost + [True] * 10
    known = scipy.stats.binomtest(gained, gained + lost).pvalue if gained + lost else 1.0
    assert stats.mcnemar(first, second) == pytest.approx(known, rel=1e-9)


def test_tango_without_discordant_items_is_the_closed_form() -> None:
    z2 = 1.959963984540054**2
    assert stats.tango(0, 0, 100) == pytest.approx((-z2 / (100 + z2), z2 / (100 + z2)), abs=1e-9)


@pytest.mark.parametrize(("gained", "lost", "n"), [(5, 2, 40), (0, 9, 30), (40, 0, 40), (1, 1, 3)])
def test_tango_ends_are_where_the_likelihood_score_reaches_z(gained: int, lost: int, n: int) -> None:
    """The nuisance share by numerical maximum likelihood in place of the closed form."""

    def score(delta: float) -> float:
        def loss(share: float) -> float:
            cells = ((gained, share + delta), (lost, share), (n - gained - lost, 1 - 2 * share - delta))
            return -sum(count * math.log(max(p, 1e-300)) for count, p in cells if count)

        bounds = (max(0.0, -delta), (1 - delta) / 2)
        best = scipy.optimize.minimize_scalar(loss, bounds=bounds, method="bounded", options={"xatol": 1e-12}).x
        return float((gained - lost - n * delta) / math.sqrt(n * (2 * best + delta - delta * delta)))

    low, high = stats.tango(gained, lost, n)
    assert score(low) == pytest.approx(1.96, abs=1e-3)
    if high < 1:
        assert score(high) == pytest.approx(-1.96, abs=1e-3)


def test_swapping_the_models_mirrors_the_difference() -> None:
    generator = np.random.default_rng(0)
    first, second = (generator.integers(2, size=200).astype(float).tolist() for _ in range(2))
    there, back = difference(first, second), difference(second, first)
    assert (there.value, there.low, there.high) == pytest.approx((-back.value, -back.high, -back.low), abs=1e-9)
    assert (there.flips, there.mcnemar_p, there.rows_to_separate) == (back.flips, back.mcnemar_p, back.rows_to_separate)


def test_a_model_against_itself_differs_by_nothing_but_not_with_certainty() -> None:
    same = difference([1.0, 0.0, 1.0] * 20, [1.0, 0.0, 1.0] * 20)
    assert (same.value, same.flips, same.mcnemar_p, same.rows_to_separate) == (0.0, 0, 1.0, None)
    assert same.low < -0.02  # sixty items alike do not show that two models are within two points


def test_items_are_joined_by_id_not_by_place() -> None:
    first = evaluation(outcomes_of([1.0, 0.0, 1.0, 1.0]))
    second = evaluation(tuple(reversed(outcomes_of([1.0, 0.0, 1.0, 1.0])[:3])))
    found = paired_difference(first, second, metric=Share())
    assert (found.n, found.value, found.flips) == (3, 0.0, 0)
    assert stats.flips(first, second) == 0


def test_lower_is_better_turns_the_sign() -> None:
    ours, theirs = numbers_of([1.0, 2.0, 3.0] * 10), numbers_of([2.0, 3.0, 4.5] * 10)
    pair = (evaluation(outcomes, metric="perplexity", higher_is_better=False) for outcomes in (ours, theirs))
    found = paired_difference(*pair, metric=Mean())
    assert found.value == pytest.approx(3.5 / 3)
    assert 1 <= found.low < found.value < found.high
    assert found.mcnemar_p is None


@pytest.mark.parametrize("change", [{"task_digest": "other"}, {"split": "dev"}, {"metric": "macro-f1"}])
def test_only_like_is_compared_with_like(change: dict[str, Any]) -> None:
    one, other = evaluation(outcomes_of([1.0])), evaluation(outcomes_of([1.0]), **change)
    with pytest.raises(UsageError, match=r"different (task|split|metric)"):
        paired_difference(one, other, metric=Share())


def test_no_common_item_is_an_error() -> None:
    with pytest.raises(UsageError, match="share no item"):
        paired_difference(evaluation(outcomes_of([1.0])), evaluation(outcomes_of([1.0, 0.0])[1:]), metric=Share())


def test_paired_bootstrap_agrees_with_tango_where_both_hold() -> None:
    generator = np.random.default_rng(1)
    first = (generator.random(2000) < 0.8).astype(float)
    second = np.where(generator.random(2000) < 0.1, 1 - first, first)
    counts = int((first > second).sum()), int((second > first).sum())
    low, high = stats.tango(*counts, 2000)
    ends = stats.bootstrap(
        lambda c: c @ (first - second) / 2000, 2000, float((first - second).mean()), resamples=8000, corrected=False
    )
    assert ends == pytest.approx((low, high), abs=0.05 * (high - low))


def covered(make: Any, truth: float, simulations: int = 400) -> float:
    generator = np.random.default_rng(12)
    hits = 0
    for _ in range(simulations):
        low, high = make(generator)
        hits += low <= truth <= high
    return hits / simulations


def test_coverage_of_accuracy() -> None:
    def once(generator: np.random.Generator) -> tuple[float, float]:
        found = interval(Share(), outcomes_of((generator.random(150) < 0.85).astype(float).tolist()))
        return found.low, found.high

    assert 0.93 <= covered(once, 0.85) <= 0.97


def test_coverage_of_a_resampled_metric() -> None:
    def once(generator: np.random.Generator) -> tuple[float, float]:
        found = interval(Mean(), numbers_of(generator.gamma(3.0, size=200).tolist()), resamples=600)
        return found.low, found.high

    assert 0.93 <= covered(once, 3.0) <= 0.97


def test_coverage_of_a_paired_difference() -> None:
    def once(generator: np.random.Generator) -> tuple[float, float]:
        kinds = generator.choice(4, p=[0.7, 0.06, 0.04, 0.2], size=200)  # both right, only first, only second, neither
        found = difference(np.isin(kinds, (0, 1)).astype(float).tolist(), np.isin(kinds, (0, 2)).astype(float).tolist())
        return found.low, found.high

    assert 0.93 <= covered(once, 0.02) <= 0.97


def test_few_rows_and_hardly_a_flip_is_where_tango_covers_and_a_bootstrap_does_not() -> None:
    generator = np.random.default_rng(0)
    hits = np.zeros(2)
    for _ in range(400):
        _, gained, lost, _ = generator.multinomial(30, [0.8, 0.06, 0.04, 0.1])
        steps = np.repeat([1.0, -1.0, 0.0], [gained, lost, 30 - gained - lost])
        ends = stats.bootstrap(lambda c, d=steps: c @ d / 30, 30, steps.mean(), resamples=400, corrected=False)  # type: ignore[misc]
        for which, (low, high) in enumerate((stats.tango(gained, lost, 30), ends)):
            hits[which] += low - 1e-9 <= 0.02 <= high + 1e-9
    assert hits[0] / 400 > 0.93
    assert hits[1] / 400 < 0.9


def test_that_many_rows_do_decide_on_a_margin() -> None:
    """Two models that are equally good, a margin of 3 points: simulated power is the 80 % that is promised."""
    generator = np.random.default_rng(6)
    seen = difference([1.0, 0.0] * 10 + [1.0] * 180, [0.0, 1.0] * 10 + [1.0] * 180)
    needed = rows_to_decide(seen, 0.03)
    assert needed is not None
    wins = 0
    for _ in range(300):
        _, gained, lost = generator.multinomial(needed, [0.9, 0.05, 0.05])
        wins += stats.tango(gained, lost, needed)[0] > -0.03
    assert 0.72 <= wins / 300 <= 0.88


def test_that_many_rows_do_separate() -> None:
    """Simulated power at the number asked for is the 80 % that it promises."""
    generator = np.random.default_rng(5)
    shares = [0.6, 0.15, 0.07, 0.18]
    counts = [int(share * 300) for share in shares]
    first = [1.0] * (counts[0] + counts[1]) + [0.0] * (300 - counts[0] - counts[1])
    second = [1.0] * counts[0] + [0.0] * counts[1] + [1.0] * counts[2] + [0.0] * (300 - sum(counts[:3]))
    needed = difference(first, second).rows_to_separate
    assert needed is not None
    wins = 0
    for _ in range(300):
        _, gained, lost, _ = generator.multinomial(needed, shares)
        low, high = stats.tango(gained, lost, needed)
        wins += low > 0 or high < 0
    assert 0.73 <= wins / 300 <= 0.87


def test_rows_to_decide_asks_for_more_the_nearer_the_line() -> None:
    seen = difference([1.0] * 80 + [0.0] * 20, [1.0] * 79 + [0.0, 1.0] + [0.0] * 19)
    assert seen.value == 0
    assert rows_to_separate(seen) is None
    near, far = rows_to_decide(seen, 0.02), rows_to_decide(seen, 0.1)
    assert near is not None
    assert far is not None
    assert near == pytest.approx(25 * far, rel=0.05)


def test_holm_and_bonferroni() -> None:
    p_values = [0.01, 0.04, 0.03, 0.005]
    assert stats.bonferroni(p_values) == pytest.approx([0.04, 0.16, 0.12, 0.02])
    assert stats.holm(p_values) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert stats.holm([0.9, 0.8]) == [1.0, 1.0]
