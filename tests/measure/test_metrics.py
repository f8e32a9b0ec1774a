"""Metrics against the libraries and closed forms that define them."""

import math
import random
from decimal import Decimal
from pathlib import Path

import numpy as np
import pytest

from sizewise.core.errors import UnknownName, Unsupported, UsageError
from sizewise.core.requests import TextScore
from sizewise.core.results import Outcome
from sizewise.core.task import Item, Kind, Task
from sizewise.measure.extract import find_choice, find_label, find_number, normalise
from sizewise.measure.metric import Metric, Scored, answered, metric_for, metrics, unanswered

LABELS = ("ham", "spam", "unsure")


def make_task(kind: Kind = "classify", metric: str = "accuracy", labels: tuple[str, ...] = LABELS) -> Task:
    return Task(
        name="t", kind=kind, metric=metric, prompt="{input}", labels=labels, shots=0, format="text", max_tokens=8,
        stop=(), system="", separator="\n\n", answer_prefix=" ", seed=0, splits={}, source="t.toml", digest="",
    )  # fmt: skip


def outcome(item: Item, output: str, scored: Scored) -> Outcome:
    return Outcome(item.id, item.expected, scored.answer, output, scored.score, 0.0, statistics=scored.statistics)


def outcomes_of(name: str, pairs: list[tuple[str, str]], kind: Kind) -> tuple[Metric, list[Outcome]]:
    """The outcomes of (expected, output) pairs."""
    task = make_task(kind, name)
    metric = metric_for(task)
    items = [Item(f"test:{i + 1}", "?", expected) for i, (expected, _) in enumerate(pairs)]
    made = [metric.score(item, output, task) for item, (_, output) in zip(items, pairs, strict=True)]
    return metric, [outcome(item, output, scored) for item, (_, output), scored in zip(items, pairs, made, strict=True)]


TEXT = "the cat sat on a mat while it rained in Paris, and nobody's dog barked at 3.5 cars caf\u00e9 na\u00efve !"
WORDS = TEXT.split()


def text_pairs(n: int, seed: int = 0) -> list[tuple[str, str]]:
    """Expected texts and answers that share some of their words."""
    rng = random.Random(seed)
    pairs = []
    for _ in range(n):
        expected = rng.choices(WORDS, k=rng.randint(1, 14))
        answer = [rng.choice(WORDS) if rng.random() < 0.4 else word for word in expected]
        pairs.append((" ".join(expected), " ".join(answer[: rng.randint(1, len(answer))])))
    return pairs


def label_pairs(n: int, seed: int = 0) -> list[tuple[str, str]]:
    rng = random.Random(seed)
    return [(rng.choice(LABELS), rng.choice([*LABELS, "ham"])) for _ in range(n)]


def text_outcomes(name: str, n: int) -> tuple[Metric, list[Outcome]]:
    rng = random.Random(5)
    metric: Metric = metrics().get(name)
    made = []
    for i in range(n):
        scored = metric.score_text(TextScore(-rng.uniform(5, 60), rng.randint(2, 20), rng.randint(10, 90)))
        made.append(outcome(Item(f"test:{i + 1}", "?", None), "", scored))
    return metric, made


def every_metric(n: int) -> list[tuple[Metric, list[Outcome]]]:
    """Each metric that needs no sandbox, with n outcomes of its kind."""
    numbers = [(str(i % 7), f"so it is {i % 5}") for i in range(n)]
    return [
        *(outcomes_of(name, label_pairs(n), "classify") for name in ("accuracy", "macro-f1")),
        *(outcomes_of(name, text_pairs(n), "generate") for name in ("exact-match", "bleu", "chrf", "rouge-l")),
        outcomes_of("number-match", numbers, "number"),
        *(text_outcomes(name, n) for name in ("perplexity", "bits-per-byte")),
    ]


def test_the_list_is_complete() -> None:
    tried = {metric.name for metric, _ in every_metric(2)} | {"pass-at-1"}
    assert tried == set(metrics().names())


@pytest.mark.parametrize("name", metrics().names())
def test_every_metric_bears_the_name_of_its_file(name: str) -> None:
    metric = metrics().get(name)
    assert isinstance(metric, Metric)
    assert (metric.name, bool(metric.unit), bool(metric.kinds)) == (name, True, True)
    assert (metric.of_answer is None) != (metric.of_text is None)


def test_a_draw_is_worth_what_its_items_are_worth_when_written_out() -> None:
    rng = np.random.default_rng(0)
    n = 40
    counts = np.stack([np.bincount(rng.integers(n, size=n), minlength=n) for _ in range(20)])
    for metric, outcomes in every_metric(n):
        drawn = metric.resample(outcomes, counts)
        assert drawn.shape == (20,)
        for value, row in zip(drawn, counts, strict=True):
            written_out = [outcome for outcome, times in zip(outcomes, row, strict=True) for _ in range(times)]
            assert value == pytest.approx(metric.aggregate(written_out), rel=1e-9), metric.name
        assert len(set(drawn.round(9))) > 5, metric.name  # the draws do differ


def test_accuracy_and_macro_f1_are_those_of_scikit_learn() -> None:
    from sklearn.metrics import accuracy_score, f1_score

    pairs = label_pairs(300)
    true, said = [expected for expected, _ in pairs], [answer for _, answer in pairs]
    metric, outcomes = outcomes_of("accuracy", pairs, "classify")
    assert metric.aggregate(outcomes) == pytest.approx(accuracy_score(true, said), abs=1e-12)
    metric, outcomes = outcomes_of("macro-f1", pairs, "classify")
    assert metric.aggregate(outcomes) == pytest.approx(f1_score(true, said, average="macro"), abs=1e-12)


def test_macro_f1_counts_an_unanswered_item_as_a_miss_of_its_class_only() -> None:
    from sklearn.metrics import f1_score

    pairs = [*label_pairs(50), ("spam", "I cannot say"), ("ham", "ham or spam")]
    metric, outcomes = outcomes_of("macro-f1", pairs, "classify")
    said = [outcome.answer or "nothing" for outcome in outcomes]
    expected = f1_score([expected for expected, _ in pairs], said, labels=list(LABELS), average="macro")
    assert metric.aggregate(outcomes) == pytest.approx(expected, abs=1e-12)
    assert unanswered(outcomes) == 2


@pytest.mark.parametrize("seed", range(5))
def test_bleu_and_chrf_are_those_of_sacrebleu(seed: int) -> None:
    import sacrebleu

    for n in (1, 2, 60):
        pairs = text_pairs(n, seed)
        expected, answers = [first for first, _ in pairs], [second for _, second in pairs]
        metric, outcomes = outcomes_of("bleu", pairs, "generate")
        assert metric.aggregate(outcomes) == pytest.approx(sacrebleu.corpus_bleu(answers, [expected]).score, abs=1e-9)
        metric, outcomes = outcomes_of("chrf", pairs, "generate")
        assert metric.aggregate(outcomes) == pytest.approx(sacrebleu.corpus_chrf(answers, [expected]).score, abs=1e-9)
        for made, (truth, answer) in zip(outcomes, pairs, strict=True):
            assert made.score == pytest.approx(sacrebleu.sentence_chrf(answer, [truth]).score, abs=1e-9)


@pytest.mark.parametrize("answers", [["xyz qqq"], ["", ""], ["the"], ["the cat sat on", "entirely other words here"]])
def test_bleu_and_chrf_at_their_edges_are_those_of_sacrebleu(answers: list[str]) -> None:
    import sacrebleu

    expected = ["the cat sat on a mat", "it rained in Paris"][: len(answers)]
    pairs = list(zip(expected, answers, strict=True))
    metric, outcomes = outcomes_of("bleu", pairs, "generate")
    assert metric.aggregate(outcomes) == pytest.approx(sacrebleu.corpus_bleu(answers, [expected]).score, abs=1e-9)
    metric, outcomes = outcomes_of("chrf", pairs, "generate")
    assert metric.aggregate(outcomes) == pytest.approx(sacrebleu.corpus_chrf(answers, [expected]).score, abs=1e-9)


def test_rouge_l_is_that_of_the_longest_common_subsequence() -> None:
    metric, outcomes = outcomes_of("rouge-l", [("the cat sat on the mat", "the cat lay on a mat")], "generate")
    shared, made, expected = 4, 6, 6  # the cat on mat
    precision, recall = shared / made, shared / expected
    assert metric.aggregate(outcomes) == pytest.approx(2 * precision * recall / (precision + recall))
    _, nothing = outcomes_of("rouge-l", [("the cat", "  ")], "generate")
    assert nothing[0].score is None


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary() -> None:
    vocabulary = 49152
    texts = [TextScore(-tokens * math.log(vocabulary), tokens, 4 * tokens) for tokens in (3, 50, 7)]
    for name, value in (("perplexity", vocabulary), ("bits-per-byte", math.log2(vocabulary) / 4)):
        metric: Metric = metrics().get(name)
        outcomes = [outcome(Item(f"test:{i}", "?", None), "", metric.score_text(text)) for i, text in enumerate(texts)]
        assert metric.aggregate(outcomes) == pytest.approx(value, rel=1e-12)
        assert [made.score for made in outcomes] == pytest.approx([value] * 3, rel=1e-12)
        assert not metric.higher_is_better


def test_perplexity_weighs_tokens_not_items() -> None:
    metric: Metric = metrics().get("perplexity")
    texts = [TextScore(-10 * math.log(2), 10, 40), TextScore(-90 * math.log(8), 90, 400)]
    outcomes = [outcome(Item(f"test:{i}", "?", None), "", metric.score_text(text)) for i, text in enumerate(texts)]
    assert metric.aggregate(outcomes) == pytest.approx(2**0.1 * 8**0.9)


def test_a_text_of_one_token_has_no_score_and_changes_nothing() -> None:
    metric, outcomes = text_outcomes("perplexity", 3)
    lone = outcome(Item("test:9", "?", None), "", metric.score_text(TextScore(0.0, 0, 3)))
    assert lone.score is None
    assert metric.aggregate([*outcomes, lone]) == pytest.approx(metric.aggregate(outcomes))


def test_unanswered_is_counted_and_reported_but_no_gain() -> None:
    pairs = [("ham", "ham"), ("spam", "ham"), ("spam", "no idea"), ("ham", "")]
    metric, outcomes = outcomes_of("accuracy", pairs, "classify")
    assert [made.score for made in outcomes] == [1.0, 0.0, None, None]
    assert unanswered(outcomes) == 2
    assert metric.aggregate(outcomes) == 0.25
    assert metric.aggregate(answered(outcomes)) == 0.5


def test_a_metric_that_cannot_score_the_task_is_refused() -> None:
    with pytest.raises(UnknownName, match="did you mean 'accuracy'"):
        metric_for(make_task(metric="acuracy"))
    with pytest.raises(UsageError, match="choose one of accuracy, macro-f1"):
        metric_for(make_task(metric="bleu"))
    with pytest.raises(Unsupported):
        metrics().get("perplexity").score(Item("test:1", "?", "a"), "a", make_task())
    with pytest.raises(Unsupported):
        metrics().get("accuracy").score_text(TextScore(-1.0, 1, 1))


def test_ten_thousand_resamples_share_one_look_at_the_texts() -> None:
    """The texts are not looked at again: outcomes without them give the same values."""
    metric, outcomes = outcomes_of("bleu", text_pairs(30), "generate")
    bare = [Outcome(made.id, None, None, "", made.score, 0.0, statistics=made.statistics) for made in outcomes]
    counts = np.random.default_rng(0).multinomial(30, [1 / 30] * 30, size=10_000)
    assert np.array_equal(metric.resample(outcomes, counts), metric.resample(bare, counts))


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("The answer is 5-3 = 2.", "2"),
        ("#### -1,234.50", "-1234.5"),
        ("#### 24 apples, 3 of them red", "24"),
        ("12 * 2 = 24\n#### 24\nI hope that 1 of us is right", "24"),
        ("so $18", "18"),
        ("-$5", "-5"),
        ("\u22124", "-4"),
        ("10 - 3", "3"),
        (r"thus \boxed{7}, from 8 and 9", "7"),
        ("25%", "25"),
        ("at 1, 2, 3", "3"),
        ("1,234,567", "1234567"),
        ("10km", "10"),
        ("007", "7"),
        (".5", "0.5"),
        ("1.5e3", "1500"),
    ],
)
def test_the_final_number_is_found(text: str, number: str) -> None:
    assert find_number(text) == Decimal(number)


@pytest.mark.parametrize("text", ["", "none", "x2y", "####", "Infinity", "nan"])
def test_where_there_is_no_number_none_is_found(text: str) -> None:
    assert find_number(text) is None


def test_numbers_match_as_numbers() -> None:
    pairs = [("1000", "1,000.0"), ("0.5", ".50"), ("3", "4"), ("3", "three"), ("1,000", "#### 1000")]
    _, outcomes = outcomes_of("number-match", pairs, "number")
    assert [made.score for made in outcomes] == [1.0, 1.0, 0.0, None, 1.0]


@pytest.mark.parametrize(
    ("text", "label"),
    [
        ("spam", "spam"),
        (" Spam.\n", "spam"),
        ("**HAM**", "ham"),
        ("This is spam.", "spam"),
        ("Label: ham\nBecause it is not spam.", "ham"),
        ("I think\nspam", "spam"),
        ("spam, yes, spam", "spam"),
        ("spam or ham", None),
        ("It is not spam", None),
        ("It isn't really spam", None),
        ("spammy hams", None),
        ("", None),
        ("I cannot say", None),
    ],
)
def test_a_label_is_found_only_where_a_reader_would_be_sure(text: str, label: str | None) -> None:
    assert find_label(text, LABELS) == label


def test_the_longer_of_two_labels_is_meant() -> None:
    labels = ("spam", "not spam", "C++", "C")
    assert find_label("Clearly not  spam!", labels) == "not spam"
    assert find_label("It is C++, surely", labels) == "C++"
    assert find_label("C++", labels) == "C++"
    assert find_label("c", labels) == "C"
    assert find_label("C.", labels) == "C"
    assert find_choice("x = 1.", ("x = 1", "x = -1")) == "x = 1"
    assert find_choice("!", ("!", "?")) == "!"


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("dragon", "dragon"),
        ("B", "rabbit"),
        ("(b)", "rabbit"),
        ("B. rabbit", "rabbit"),
        ("The answer is C.", "a tiger"),
        ("Answer: B", "rabbit"),
        ("A dragon is what it is", "dragon"),
        ("I think rabbit", "rabbit"),
        ("A tiger", "a tiger"),
        ("E", None),
        ("dragon and rabbit", None),
        ("", None),
    ],
)
def test_a_choice_is_found_by_text_or_letter(text: str, choice: str | None) -> None:
    assert find_choice(text, ("dragon", "rabbit", "a tiger")) == choice


def test_a_choice_is_right_by_text_or_by_the_letter_that_is_expected() -> None:
    metric: Metric = metrics().get("accuracy")
    task = make_task("choose", labels=())
    for expected in ("rabbit", "B"):
        item = Item("test:1", "?", expected, ("dragon", "rabbit"))
        scores = [metric.score(item, output, task).score for output in ("rabbit", "B", "A", "dragon", "neither")]
        assert scores == [1.0, 1.0, 0.0, 0.0, None]


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("Paris", " paris. ", True),
        ("cafe\u0301", "caf\u00e9", True),
        ("STRASSE", "stra\u00dfe", True),
        ("two  words\n", "two words", True),
        ("\u201cquoted\u201d", "quoted", True),
        ("the cat", "cat", False),
        ("a-b", "ab", False),
    ],
)
def test_exact_match_compares_what_people_call_the_same(one: str, other: str, same: bool) -> None:
    assert (normalise(one) == normalise(other)) is same
    _, outcomes = outcomes_of("exact-match", [(one, other)], "generate")
    assert outcomes[0].score == float(same)


def test_metrics_are_found_without_importing_their_libraries() -> None:
    folder = Path(str(metrics().folder))
    for path in folder.glob("*.py"):
        head = [line for line in path.read_text().splitlines() if line.startswith(("import ", "from "))]
        assert not [line for line in head if any(name in line for name in ("sacrebleu", "rouge_score", "sklearn"))]
