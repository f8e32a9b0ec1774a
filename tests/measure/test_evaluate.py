"""Evaluation end to end with a small real model: every kind, the ledger, killed processes, prompts that do not fit."""

import json
import math
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ngram import COLOURS, NgramRunner, colour_items, make_task

from sizewise.core.errors import EngineFailed, Unsupported, UsageError
from sizewise.core.events import Progress
from sizewise.core.requests import Score
from sizewise.core.results import Evaluation
from sizewise.core.task import Item, Task, changed
from sizewise.measure.ask import pick_likeliest
from sizewise.measure.evaluate import evaluate
from sizewise.measure.ledger import Ledger


def bare(evaluation: Evaluation) -> Evaluation:
    """Without what differs from run to run: times."""
    outcomes = tuple(replace(outcome, seconds=0.0) for outcome in evaluation.outcomes)
    return replace(evaluation, outcomes=outcomes, seconds=0.0, cpu_s_per_item=None, measurements=())


def colours(count: int = 40, **changes: Any) -> Task:
    return make_task("classify", colour_items(count), colour_items(20, "train"), **changes)


def test_classify_takes_the_likeliest_label() -> None:
    runner = NgramRunner(COLOURS)
    found = evaluate(runner, colours())
    for outcome, item in zip(found.outcomes, colour_items(40), strict=True):
        sums = {}
        for label in ("blue", "green"):
            text, total = item.input + "\nAnswer:", 0.0
            for letter in " " + label:
                total += float(np.log(runner._probability(text.encode(), ord(letter))))
                text += letter
            sums[label] = total
        assert outcome.answer == max(sums, key=lambda label: sums[label])
        assert json.loads(outcome.output) == pytest.approx(sums, abs=1e-4)
    right = [outcome.answer == outcome.expected for outcome in found.outcomes]
    assert found.quality.value == pytest.approx(np.mean(right))
    assert found.quality.low < found.quality.value < found.quality.high
    assert (found.quality.n, found.unanswered, found.engine) == (40, 0, "ngram 1")
    assert found.cpu_s_per_item is not None
    assert found.cpu_s_per_item > 0


def test_worked_examples_come_first_and_are_the_same_for_all() -> None:
    runner = NgramRunner(COLOURS)
    evaluate(runner, colours(), shots=4)
    prompts = [request.prompt for request in runner.requests]
    shared = prompts[0][: next(i for i, letters in enumerate(zip(*prompts, strict=False)) if len(set(letters)) > 1)]
    assert shared.count("\nAnswer: ") == 4
    assert shared.count("Answer: blue\n\n") == shared.count("Answer: green\n\n") == 2


def test_without_scores_the_label_is_read_from_the_text() -> None:
    runner = NgramRunner(COLOURS, abilities=frozenset({"generate"}))
    found = evaluate(runner, colours())
    written = [outcome for outcome in found.outcomes if outcome.answer]
    assert written
    assert all(outcome.answer in outcome.output for outcome in written if outcome.answer)


def test_an_answer_that_cannot_be_read_is_unanswered_and_not_right() -> None:
    runner = NgramRunner("zzzz", abilities=frozenset({"generate"}))
    found = evaluate(runner, colours())
    assert (found.unanswered, found.quality.value) == (40, 0.0)
    assert found.quality.high > 0
    assert {outcome.score for outcome in found.outcomes} == {None}


def test_in_a_conversation_the_labels_are_told() -> None:
    runner = NgramRunner(COLOURS, abilities=frozenset({"chat"}))
    evaluate(runner, colours(4), shots=2)
    turns = runner.requests[0].messages
    assert [turn.role for turn in turns] == ["system", "user", "assistant", "user", "assistant", "user"]
    assert turns[0].content.endswith("blue, green")


def test_an_engine_that_only_writes_is_asked_in_conversation_where_it_can() -> None:
    runner = NgramRunner(COLOURS, abilities=frozenset({"generate", "chat"}))
    evaluate(runner, colours(4))
    assert "Answer with exactly one of" in runner.requests[0].messages[0].content
    runner.requests.clear()
    evaluate(runner, make_task("choose", [Item("test:1", "The sky:", "blue", ("blue", "mauve"))]))
    assert "the letter" in runner.requests[0].messages[0].content
    assert "A. blue\nB. mauve" in runner.requests[0].messages[1].content


def test_choose_scores_the_text_of_each_choice() -> None:
    items = [Item("test:1", "The sky:", "blue", ("blue", "mauve")), Item("test:2", "Grass:", "green", ("red", "green"))]
    task = make_task("choose", items, prompt="{input}")
    found = evaluate(NgramRunner(COLOURS), task)
    assert [outcome.answer for outcome in found.outcomes] == ["blue", "green"]
    assert found.quality.value == 1.0
    assert found.quality.low < 1.0


def test_choices_that_differ_in_punctuation_alone_are_two() -> None:
    items = [Item("test:1", "5 - 10 =", "-5", ("5", "-5"))]
    found = evaluate(NgramRunner("5 - 10 = -5\n" * 9), make_task("choose", items, prompt="{input}"))
    assert (found.outcomes[0].answer, found.outcomes[0].score) == ("-5", 1.0)


def test_choose_by_letter_where_nothing_can_be_scored() -> None:
    items = [Item("test:1", "The sky:", "blue", ("mauve", "blue"))]
    runner = NgramRunner("A. mauve\nB. blue\nAnswer: B\n" * 9, abilities=frozenset({"generate"}))
    found = evaluate(runner, make_task("choose", items))
    assert "\nA. mauve\nB. blue\n" in found.outcomes[0].prompt
    assert (found.outcomes[0].output, found.outcomes[0].answer, found.quality.value) == (" B", "blue", 1.0)


def test_normalised_scores_do_not_punish_length() -> None:
    scores = [Score(-3.0, 1, False), Score(-5.0, 6, False)]
    assert pick_likeliest(("no", "certainly"), scores).picked == "no"
    assert pick_likeliest(("no", "certainly"), scores, normalised=True).picked == "certainly"


@pytest.mark.parametrize(
    ("logprobs", "picked"),
    [((math.nan, -1.0), None), ((-math.inf, -math.inf), None), ((-math.inf, -9.0), "b"), ((-1.0, -1.0), "a")],
)
def test_an_answer_is_picked_only_where_there_is_one(logprobs: tuple[float, ...], picked: str | None) -> None:
    found = pick_likeliest(("a", "b"), [Score(value, 1, False) for value in logprobs])
    assert found.picked == picked
    assert set(json.loads(found.output)) == {"a", "b"}


def test_perplexity_is_made_of_whole_texts() -> None:
    items = [Item("test:1", "blue green " * 90, None), Item("test:2", "the sky is blue", None)]
    runner = NgramRunner(COLOURS)
    found = evaluate(runner, make_task("perplexity", items, metric="bits-per-byte", prompt="{input}"))
    scores = runner.score_texts([item.input for item in items])
    bits = -sum(score.logprob for score in scores) / np.log(2) / sum(score.bytes for score in scores)
    assert found.quality.value == pytest.approx(bits)
    assert not found.higher_is_better


@pytest.mark.parametrize(
    ("kind", "abilities", "said"),
    [("perplexity", {"generate"}, "how likely"), ("generate", {"score"}, "write"), ("classify", {"embed"}, "write")],
)
def test_what_an_engine_cannot_do_is_said(kind: Any, abilities: Any, said: str) -> None:
    metric = {"perplexity": "bits-per-byte", "generate": "exact-match", "classify": "accuracy"}[kind]
    task = make_task(kind, colour_items(2), metric=metric)
    with pytest.raises(Unsupported, match=said):
        evaluate(NgramRunner(COLOURS, abilities=frozenset(abilities)), task)


def test_the_second_time_nothing_is_asked(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        first = evaluate(NgramRunner(COLOURS), colours(), ledger=ledger)
        runner = NgramRunner(COLOURS)
        second = evaluate(runner, colours(), ledger=ledger)
    assert runner.requests == []
    assert second == first


@pytest.mark.parametrize("change", ["model", "prompt", "shots", "engine", "train row", "seed"])
def test_what_changes_an_answer_asks_anew(tmp_path: Path, change: str) -> None:
    task, runner, shots = colours(), NgramRunner(COLOURS), 2
    with Ledger(tmp_path / "ledger.db") as ledger:
        evaluate(runner, task, ledger=ledger, shots=shots)
        asked = len(runner.requests)
        if change == "model":
            runner = NgramRunner(COLOURS + "!")
        elif change == "prompt":
            task = changed(task, prompt="Q: {input}\nAnswer:")
        elif change == "shots":
            shots = 3
        elif change == "engine":
            runner = NgramRunner(COLOURS)
            runner.engine = "ngram 2"
        elif change == "train row":
            rows = [replace(item, input=item.input + "?") for item in colour_items(20, "train")]
            task = make_task("classify", colour_items(40), rows)
        else:
            task = changed(task, seed=5)
        runner.requests.clear()
        evaluate(runner, task, ledger=ledger, shots=shots)
    assert len(runner.requests) == asked == 40


def test_limit_is_a_draw_that_grows(tmp_path: Path) -> None:
    task, runner = colours(100), NgramRunner(COLOURS)
    with Ledger(tmp_path / "ledger.db") as ledger:
        ten = evaluate(runner, task, limit=10, ledger=ledger)
        twenty = evaluate(runner, task, limit=20, ledger=ledger)
    ids = [outcome.id for outcome in twenty.outcomes]
    assert {outcome.id for outcome in ten.outcomes} <= set(ids)
    assert ids == sorted(ids, key=lambda identity: int(identity.split(":")[1]))
    assert len(runner.requests) == 20


def test_items_of_ones_own_choice() -> None:
    found = evaluate(NgramRunner(COLOURS), colours(), items=colour_items(20, "train")[:3], split="train")
    assert [outcome.id for outcome in found.outcomes] == ["train:0", "train:1", "train:2"]


def test_progress_reaches_the_end() -> None:
    heard: list[Progress] = []
    evaluate(NgramRunner(COLOURS), colours(100), listen=heard.append)
    assert [(each.done, each.total) for each in heard] == [(0, 100), (64, 100), (100, 100)]


def test_a_prompt_that_does_not_fit_is_not_asked_and_not_cut() -> None:
    items = [*colour_items(5), Item("test:9", "long " * 100, "blue")]
    runner = NgramRunner(COLOURS, context=200)
    found = evaluate(runner, make_task("classify", items))
    assert len(runner.requests) == 5
    assert found.unanswered == 1
    assert found.outcomes[-1].output.startswith("(not asked: needs 5")
    assert found.warnings[0].startswith("1 of 6 rows were not asked")


def test_what_did_not_fit_is_asked_when_there_is_more_room(tmp_path: Path) -> None:
    task = make_task("classify", [*colour_items(5), Item("test:9", "long " * 100, "blue")])
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert evaluate(NgramRunner(COLOURS, context=200), task, ledger=ledger).unanswered == 1
        assert evaluate(NgramRunner(COLOURS, context=600), task, ledger=ledger).unanswered == 0


def test_all_prompts_too_long_is_an_error_with_both_numbers() -> None:
    with pytest.raises(UsageError, match=r"every row .* needs \d+ tokens, the context of ngram is 10"):
        evaluate(NgramRunner(COLOURS, context=10), colours())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"split": "dev"}, "no dev split"),
        ({"limit": 0}, "at least 1"),
        ({"items": []}, "no items"),
        ({"shots": 99}, "99"),
    ],
)
def test_what_the_caller_got_wrong(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        evaluate(NgramRunner(COLOURS), colours(), **options)


def test_answers_before_a_crash_are_kept(tmp_path: Path) -> None:
    class Crashing(NgramRunner):
        def score(self, requests: Any, listen: Any = None) -> Any:
            if self.requests:
                raise EngineFailed("the process that runs ngram died")
            return super().score(requests)

    with Ledger(tmp_path / "ledger.db") as ledger:
        with pytest.raises(EngineFailed):
            evaluate(Crashing(COLOURS), colours(100), ledger=ledger)
        runner = NgramRunner(COLOURS)
        resumed = evaluate(runner, colours(100), ledger=ledger)
    assert len(runner.requests) == 36
    assert bare(resumed) == bare(evaluate(NgramRunner(COLOURS), colours(100)))


_PROGRAM = """
import sys
sys.path.insert(0, {folder!r})
from pathlib import Path
from ngram import COLOURS, NgramRunner, colour_items, make_task
from sizewise.measure.evaluate import evaluate
from sizewise.measure.ledger import Ledger
task = make_task("classify", colour_items(320), colour_items(20, "train"))
print("ready", flush=True)
with Ledger(Path({ledger!r})) as ledger:
    evaluate(NgramRunner(COLOURS, pause_s=0.002), task, ledger=ledger, listen=lambda p: print(p.done, flush=True))
"""


def test_kill_nine_again_and_again_ends_like_one_clean_run(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    program = _PROGRAM.format(folder=str(Path(__file__).parent), ledger=str(path))
    kept = 0
    for wait_s in (0.0, 0.05, 0.15, 0.2, 0.03):
        child = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        time.sleep(wait_s)
        child.send_signal(signal.SIGKILL)
        rest = child.communicate()[0].split()
        acknowledged = int(rest[-1]) if rest else 0
        with Ledger(path) as ledger:
            assert ledger.problems() == []
            kept = max(kept, sum(count for _, count in ledger.runs()))
            assert kept >= acknowledged
    task = make_task("classify", colour_items(320), colour_items(20, "train"))
    runner = NgramRunner(COLOURS)
    with Ledger(path) as ledger:
        resumed = evaluate(runner, task, ledger=ledger)
    assert len(runner.requests) == 320 - kept
    assert bare(resumed) == bare(evaluate(NgramRunner(COLOURS), task))
