"""The decision: its errors counted over known distributions, its branches one by one, its sentences word for word."""

from dataclasses import replace

import numpy as np
import pytest

from sizewise.core.results import Bar, Difference, Interval
from sizewise.measure.stats import rows_to_decide, tango, wilson
from sizewise.pick.decide import (
    Nominee,
    Scale,
    cheapest,
    decide,
    fastest,
    judge,
    shared_confidence,
    smallest,
    to_bar,
)

MARGIN = Bar(margin=0.02)
ACCURACY = Scale("accuracy")
MINUS = "\N{MINUS SIGN}"


def difference(value: float, low: float, high: float, n: int = 2418) -> Difference:
    return Difference(value, low, high, n, 0.95, 0, None, None)


def nominee(name: str, size: int | None, quality: float, gap: Difference, **costs: float) -> Nominee:
    return Nominee(name, name, size, Interval(quality, quality - 0.015, quality + 0.015, gap.n), gap, **costs)


BEST = nominee("big", 270_000_000, 0.869, difference(0, 0, 0))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-0.02, 0.01, "pass"),
        (-0.019, 0.003, "pass"),
        (0.01, 0.02, "pass"),
        (-0.03, -0.021, "fail"),
        (-0.03, -0.02, "undecided"),
        (-0.021, 0.05, "undecided"),
    ],
)
def test_an_interval_passes_fails_or_straddles_the_margin(low: float, high: float, verdict: str) -> None:
    assert judge(difference((low + high) / 2, low, high), 0.02) == verdict


def draws(true_difference: float, n: int, times: int, seed: int) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
    """(times, 2) items that only the first and only the second model has right, of n."""
    lost = 0.1
    cells = [lost + true_difference, lost, 1 - 2 * lost - true_difference]
    return np.random.default_rng(seed).multinomial(n, cells, size=times)[:, :2]


def verdicts(true_difference: float, n: int, times: int, confidence: float, seed: int = 0) -> list[str]:
    cache: dict[tuple[int, int], str] = {}
    found = []
    for gained, lost in draws(true_difference, n, times, seed).tolist():
        if (gained, lost) not in cache:
            low, high = tango(gained, lost, n, confidence)
            cache[gained, lost] = judge(difference((gained - lost) / n, low, high, n), 0.02)
        found.append(cache[gained, lost])
    return found


def test_a_model_that_is_just_not_good_enough_rarely_passes() -> None:
    """True difference on the margin: at 95 % two-sided, 2.5 % pass and 2.5 % fail."""
    found = verdicts(-0.02, 1000, 8000, 0.95)
    assert 0.01 < found.count("pass") / len(found) < 0.04
    assert 0.01 < found.count("fail") / len(found) < 0.04


def test_the_shared_confidence_keeps_the_risk_of_three_nominees_together() -> None:
    alone = verdicts(-0.02, 1000, 6000, shared_confidence(3))
    together = [any(verdict == "pass" for verdict in alone[place : place + 3]) for place in range(0, len(alone), 3)]
    assert sum(together) / len(together) < 0.04
    uncorrected = verdicts(-0.02, 1000, 6000, 0.95)
    assert alone.count("pass") < uncorrected.count("pass")


def test_equal_and_hopeless_models_are_told_apart_given_enough_rows() -> None:
    assert verdicts(0.0, 20_000, 200, 0.95).count("pass") > 195
    assert verdicts(-0.08, 4000, 200, 0.95).count("fail") > 195
    assert verdicts(0.0, 100, 200, 0.95).count("undecided") > 150


def test_the_rows_that_are_said_to_settle_it_do_so_four_times_in_five() -> None:
    n = 400
    gained, lost = 40, 40
    seen = difference(0.0, *tango(gained, lost, n), n)
    assert judge(seen, 0.02) == "undecided"
    needed = rows_to_decide(seen, 0.02)
    assert needed is not None
    settled = verdicts(0.0, needed, 1000, 0.95)
    assert 0.74 < settled.count("pass") / len(settled) < 0.88


def test_a_fixed_bar_is_a_difference_with_margin_zero() -> None:
    quality = Interval(0.9, *wilson(900, 1000), 1000)
    above = to_bar(quality, 0.85, confidence=0.95)
    assert above.value == pytest.approx(0.05)
    assert judge(above, 0.0) == "pass"
    assert judge(to_bar(quality, 0.9, confidence=0.95), 0.0) == "undecided"
    assert judge(to_bar(quality, 0.95, confidence=0.95), 0.0) == "fail"


def test_where_lower_is_better_the_bar_is_reached_from_above() -> None:
    bits = Interval(1.02, 1.00, 1.05, 300)
    assert judge(to_bar(bits, 1.1, confidence=0.95, higher_is_better=False), 0.0) == "pass"
    assert judge(to_bar(bits, 0.9, confidence=0.95, higher_is_better=False), 0.0) == "fail"
    gap = to_bar(bits, 1.1, confidence=0.95, higher_is_better=False)
    assert [gap.low, gap.high] == pytest.approx([0.05, 0.1])


def test_smallest_fastest_cheapest() -> None:
    gap = difference(0, -0.01, 0.01)
    slow = nominee("slow", 10, 0.9, gap, latency_s=1.0, cpu_s=2.0)
    quick = nominee("quick", 30, 0.9, gap, latency_s=0.1, cpu_s=0.4)
    about_as_quick = nominee("about as quick", 20, 0.9, gap, latency_s=0.12, cpu_s=0.1)
    endpoint = nominee("endpoint", None, 0.9, gap)
    everyone = [slow, quick, about_as_quick, endpoint]
    assert smallest(everyone) is slow
    assert fastest(everyone) is about_as_quick  # within a quarter of the fastest, and smaller
    assert cheapest(everyone) is about_as_quick
    assert smallest([endpoint]) is fastest([endpoint]) is endpoint


def test_the_smallest_that_passes_wins_and_its_sentence_can_be_said_aloud() -> None:
    small = nominee("tuned", 40_000_000, 0.861, difference(-0.008, -0.019, 0.003))
    middle = nominee("middle", 90_000_000, 0.865, difference(-0.004, -0.015, 0.007))
    answer = decide([middle, small], MARGIN, ACCURACY, BEST)
    assert (answer.status, answer.model, answer.smallest) == ("pass", "tuned", "tuned")
    assert answer.sentence == (
        "tuned, 40 MB, gets 86.1 % right and big, 270 MB, 86.9 %; with 2,418 rows the difference is between "
        f"{MINUS}1.9 and +0.3 points, inside the 2 points you allowed."
    )


def test_the_best_passes_against_itself_and_says_who_does_not() -> None:
    small = nominee("small", 1_000_000, 0.81, difference(-0.059, -0.078, -0.04))
    answer = decide([small], MARGIN, ACCURACY, BEST)
    assert (answer.status, answer.model) == ("pass", "big")
    assert "small, 1 MB, is between 4.0 and 7.8 points behind" in answer.sentence
    alone = decide([], MARGIN, ACCURACY, BEST)
    assert (alone.status, alone.model) == ("pass", "big")
    assert "86.9 %" in alone.sentence


def test_a_teacher_from_elsewhere_is_no_answer() -> None:
    small = nominee("small", 1_000_000, 0.81, difference(-0.059, -0.078, -0.04))
    answer = decide([small], MARGIN, ACCURACY, BEST, eligible=False)
    assert (answer.status, answer.model) == ("none_passes", None)
    assert f"between {MINUS}7.8 and {MINUS}4.0 points" in answer.sentence


def test_data_that_cannot_tell_say_how_many_rows_would() -> None:
    small = nominee("small", 1_000_000, 0.85, difference(-0.019, -0.06, 0.021, 200))
    answer = decide([small], MARGIN, ACCURACY, BEST, rows={"small": 1400})
    assert (answer.status, answer.model, answer.rows_needed) == ("undecided", None, 1400)
    assert "about 1,400 test rows would settle it" in answer.sentence
    assert answer.sentence.endswith("Until then big is the safe choice.")


def test_one_that_passes_beats_one_that_cannot_be_told() -> None:
    unclear = nominee("unclear", 1_000, 0.85, difference(-0.019, -0.06, 0.021, 200))
    sure = nominee("sure", 5_000, 0.87, difference(0.0, -0.01, 0.01, 200))
    assert decide([unclear, sure], MARGIN, ACCURACY, BEST).model == "sure"


def test_an_absolute_bar() -> None:
    bar = Bar(at_least=0.84)
    passing = nominee("good", 2_000_000, 0.861, difference(0.021, 0.007, 0.034))
    answer = decide([passing], bar, ACCURACY)
    assert answer.sentence == (
        "good, 2 MB, gets 86.1 % right; with 2,418 rows that is between 84.7 % and 87.4 %, "
        "at or above the 84.0 % that you asked for."
    )
    failing = replace(passing, difference=difference(-0.05, -0.07, -0.03))
    assert decide([failing], bar, ACCURACY).status == "none_passes"
    assert "5.0 points short of the 84.0 %" in decide([failing], bar, ACCURACY).sentence
    unclear = replace(passing, difference=difference(0.001, -0.01, 0.01))
    assert decide([unclear], bar, ACCURACY, rows={"good": None}).status == "undecided"
    assert decide([], bar, ACCURACY).status == "none_passes"


@pytest.mark.parametrize(
    ("scale", "value", "said", "points"),
    [
        (ACCURACY, 0.861, "gets 86.1 % right", "1.9"),
        (Scale("macro-f1", 1.0, share=False), 0.957, "has a macro-f1 of 95.7 %", "1.9"),
        (Scale("chrf", 100.0, share=False), 43.21, "has a chrf of 43.2", "0.0"),
        (Scale("perplexity", None, share=False, higher_is_better=False), 9.0234, "has a perplexity of 9.023", "0.019"),
    ],
)
def test_each_scale_is_said_in_its_own_way(scale: Scale, value: float, said: str, points: str) -> None:
    assert scale.says(value) == said
    assert scale.points(0.019) == points


def test_a_margin_is_a_share_of_the_scale() -> None:
    assert ACCURACY.margin(MARGIN) == pytest.approx(0.02)
    assert Scale("chrf", 100.0, share=False).margin(MARGIN) == pytest.approx(2.0)
    assert ACCURACY.margin(Bar(at_least=0.9)) == 0.0
