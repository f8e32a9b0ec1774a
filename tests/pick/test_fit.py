"""The whole search on small data: real heads, a real (random) language model, a real store and ledger."""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from tiny_checkpoint import write_encoder
from tiny_gguf import write_tiny_llama

from sizewise.core.errors import UnknownName, UsageError
from sizewise.core.events import silent
from sizewise.core.model import Model
from sizewise.core.results import Bar, Candidate, Evaluation, FitResult, Interval, Outcome
from sizewise.core.task import Item, Task
from sizewise.load.models import find_model
from sizewise.load.store.store import Store
from sizewise.load.tasks.file import load_task
from sizewise.measure.ledger import Ledger
from sizewise.measure.metric import metric_for
from sizewise.pick.candidates import field_of
from sizewise.pick.decide import Scale
from sizewise.pick.fit import fit
from sizewise.pick.race import Clock, Race, looks_at
from sizewise.pick.splits import ordered, with_dev
from sizewise.pick.trial import Trial, confusion, per_class

GOOD, BAD = ("lovely", "fine", "great", "warm"), ("awful", "cold", "broken", "sad")
FILL = ("the", "room", "was", "and", "it", "we", "came", "back", "again", "then", "with", "food")


def write_task(
    folder: Path, *, train: int = 400, test: int = 300, noise: float = 0.05, seed: int = 0, **keys: Any
) -> Task:
    """A task whose label is told by one word; a share `noise` of the labels is drawn at random."""
    generator = random.Random(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for part, count in (("train", train), ("test", test)):
        lines = []
        for place in range(count):
            good = generator.random() < 0.6
            words = [*generator.choices(FILL, k=6), generator.choice(GOOD if good else BAD), str(place) + part]
            label = ("good", "bad")[generator.random() < 0.5] if generator.random() < noise else ("bad", "good")[good]
            generator.shuffle(words)
            lines.append(json.dumps({"input": " ".join(words), "label": label}))
        (folder / f"{part}.jsonl").write_text("\n".join(lines) + "\n")
    body = {"kind": "classify", "train": "train.jsonl", "test": "test.jsonl", "prompt": "{input}\nMood:"} | keys
    (folder / "mood.toml").write_text("".join(f"{key} = {json.dumps(value)}\n" for key, value in body.items()))
    return load_task(folder / "mood.toml")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_tiny_llama(tmp_path_factory.mktemp("tiny") / "tiny.gguf"))


def by_name(result: FitResult, ending: str, shots: int | None = None) -> Candidate:
    found = [each for each in result.candidates if each.model.endswith(ending) and (not shots or each.shots == shots)]
    assert found, [each.model for each in result.candidates]
    return found[0]


def test_the_smallest_that_passes_is_found_proved_and_kept(tmp_path: Path, tiny: str) -> None:
    task = write_task(tmp_path)
    result = fit(task, models=[tiny])
    assert (result.decision.status, result.decision.model) == ("pass", "mood-tfidf")
    majority, words, prompted = by_name(result, "-majority"), by_name(result, "-tfidf"), by_name(result, "tiny.gguf")
    assert words.test is not None
    assert words.test.n == 300
    assert words.test.low > 0.85
    assert words.dev is not None
    assert words.dev.n == 80
    assert majority.left_because
    assert prompted.dev is not None
    assert prompted.dev.n < 80, "a hopeless model sees a part of the development rows only"
    assert "behind mood-tfidf after 50 development rows" in prompted.left_because
    assert [each.model for each in result.candidates if each.test] == ["mood-tfidf"], "nobody else saw the test rows"
    assert {each.shots for each in result.candidates if each.kind == "prompted"} == {0, 4, 8}
    assert words.latency_p50_s is not None
    assert prompted.latency_p50_s is not None
    assert words.latency_p50_s < prompted.latency_p50_s
    assert set(words.per_class) == {"good", "bad"}
    assert words.memory_bytes is not None
    assert 10_000_000 < words.memory_bytes < 100_000_000, "a process with numpy, not the one that trained the model"
    assert len(words.examples) == 8
    assert words.bytes == find_model("mood-tfidf").size_bytes
    assert json.loads(json.dumps(result.as_json()))["decision"]["status"] == "pass"
    assert "--margin 2" in result.command


def test_the_answer_does_not_depend_on_when_it_is_asked(tmp_path: Path, tiny: str) -> None:
    task = write_task(tmp_path)
    assert same(fit(task, models=[tiny], seed=3)) == same(fit(task, models=[tiny], seed=3))


def same(result: FitResult) -> Any:
    """What no clock may change."""
    rows = [(each.model, each.shots, each.dev, each.test, each.difference, each.digest) for each in result.candidates]
    return result.decision.status, result.decision.model, result.decision.sentence, rows


def test_heads_are_not_made_twice_and_foreign_models_are_left_alone(tmp_path: Path) -> None:
    task, store = write_task(tmp_path), Store()
    fit(task, models=[], store=store)
    first = store.get(find_model_name("mood-tfidf"))
    fit(task, models=[], store=store)
    assert store.get(find_model_name("mood-tfidf")).modified_at == first.modified_at
    store.copy(find_model_name("mood-majority"), find_model_name("mood-tfidf"))
    before = find_model("mood-tfidf", store).digest
    result = fit(task, models=[], store=store)
    assert find_model("mood-tfidf", store).digest == before
    assert result.decision.model == "mood-tfidf-of-fit"


def find_model_name(name: str) -> Any:
    from sizewise.core.references import parse_name

    return parse_name(name)


@pytest.mark.parametrize(
    ("limits", "word"),
    [({"bytes": 1000.0}, "disk"), ({"latency_s": 1e-9}, "latency"), ({"memory_bytes": 10.0}, "memory")],
)
def test_a_candidate_over_a_limit_is_out(limits: dict[str, float], word: str, tmp_path: Path) -> None:
    task = write_task(tmp_path)
    if word == "disk":
        result = fit(task, models=[], limits=limits)
        assert by_name(result, "-tfidf").left_because.startswith("disk")
        assert result.decision.model == "mood-majority"
    else:
        with pytest.raises(UsageError, match=word):
            fit(task, models=[], limits=limits)


def test_a_budget_cuts_what_is_dear_and_says_so(tmp_path: Path, tiny: str) -> None:
    result = fit(write_task(tmp_path), models=[tiny], budget_s=1e-6)
    assert all(each.left_because.startswith("budget") for each in result.candidates if each.kind == "prompted")
    assert result.decision.model == "mood-tfidf"
    assert "The budget left no time to try out" in result.decision.sentence


def test_a_price_by_the_hour_gives_every_candidate_its_money(tmp_path: Path) -> None:
    hourly = 3600.0 * (os.cpu_count() or 1)  # a processor second costs a dollar
    result = fit(write_task(tmp_path), models=[], usd_per_hour=hourly)
    money = [(1000 * (each.cpu_s_per_item or 0), each.usd_per_1000_items) for each in result.candidates]
    assert [told.value for _, told in money if told] == pytest.approx([dollars for dollars, told in money if told])


def test_an_absolute_bar_that_nothing_reaches(tmp_path: Path) -> None:
    result = fit(write_task(tmp_path, noise=0.4), models=[], bar=Bar(at_least=0.99))
    assert (result.decision.status, result.decision.model) == ("none_passes", None)
    assert "short of the 99.0 %" in result.decision.sentence
    assert by_name(result, "-tfidf").test is not None


def test_an_absolute_bar_that_the_majority_reaches(tmp_path: Path) -> None:
    result = fit(write_task(tmp_path), models=[], bar=Bar(at_least=0.5))
    assert (result.decision.status, result.decision.model) == ("pass", "mood-majority")


def test_few_rows_cannot_tell_and_the_answer_says_how_many_would(tmp_path: Path) -> None:
    """Twenty-five test rows, of which about nine in ten are right, cannot tell whether nine in ten are."""
    task = write_task(tmp_path, train=60, test=25, noise=0.1)
    result = fit(task, models=[], bar=Bar(at_least=0.9))
    assert result.decision.status == "undecided"
    assert result.decision.model is None
    assert result.decision.rows_needed is None or result.decision.rows_needed > 25


def test_a_reference_is_measured_whole_and_is_no_candidate(tmp_path: Path, tiny: str) -> None:
    result = fit(write_task(tmp_path), models=[], bar=Bar(margin=0.02, reference=tiny))
    teacher = by_name(result, "tiny.gguf")
    assert teacher.test is not None
    assert teacher.dev is not None
    assert teacher.dev.n == 80
    assert result.decision.status == "pass"
    assert result.decision.model != teacher.model


def test_a_head_can_be_the_reference(tmp_path: Path) -> None:
    result = fit(write_task(tmp_path), models=[], bar=Bar(margin=0.02, reference="mood-tfidf"))
    assert result.decision.model == "mood-tfidf"


def test_a_label_with_one_row_stays_with_the_training_rows(tmp_path: Path) -> None:
    task = write_task(tmp_path)
    with (tmp_path / "train.jsonl").open("a") as file:
        file.write('{"input": "neither nor", "label": "odd"}\n')
    task = load_task(tmp_path / "mood.toml")
    split, _ = with_dev(task, 0)
    assert [item.expected for item in split.splits["train"]].count("odd") == 1
    assert fit(task, models=[]).decision.model == "mood-tfidf"


def test_other_kinds_of_task_get_language_models_only(tmp_path: Path, tiny: str) -> None:
    (tmp_path / "sums.jsonl").write_text("\n".join(json.dumps({"input": f"{n}+1", "label": n + 1}) for n in range(12)))
    (tmp_path / "sums.toml").write_text('kind = "number"\ntest = "sums.jsonl"\nformat = "text"\nmax_tokens = 4\n')
    result = fit(load_task(tmp_path / "sums.toml"), models=[tiny])
    assert {each.kind for each in result.candidates} == {"prompted"}
    assert any("the rest judges" in note for note in result.notes)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        ({"bar": Bar(at_least=0.9, margin=0.02)}, UsageError),
        ({"bar": Bar()}, UsageError),
        ({"bar": Bar(margin=1.5)}, UsageError),
        ({"bar": Bar(margin=0.02, reference="nobody")}, UnknownName),
        ({"models": ["nobody"]}, UnknownName),
        ({"limits": {"bites": 1.0}}, UnknownName),
        ({"budget_s": 0.0}, UsageError),
    ],
)
def test_what_makes_no_sense_is_refused(changes: dict[str, Any], error: type[Exception], tmp_path: Path) -> None:
    with pytest.raises(error):
        fit(write_task(tmp_path, train=40, test=20), **({"models": []} | changes))


def test_a_model_that_cannot_run_leaves_and_the_rest_goes_on(tmp_path: Path, tiny: str) -> None:
    other = tmp_path / "other.gguf"
    data = Path(tiny).read_bytes()
    other.write_bytes(data)
    field = field_of(with_dev(write_task(tmp_path), 0)[0], [str(other)], Store())
    assert [trial.shots for trial in field.ready] == [0, 4, 8]
    result = fit(write_task(tmp_path, prompt="{input} " * 400), models=[str(other)])
    assert all("context" in each.left_because for each in result.candidates if each.kind == "prompted")
    assert result.decision.model == "mood-tfidf"


def test_splits_are_disjoint_stratified_and_fixed() -> None:
    rows = tuple(Item(str(n), f"text {n}", "ab"[n % 4 == 0]) for n in range(400))
    task = Task(
        name="t",
        kind="classify",
        metric="accuracy",
        prompt="{input}",
        labels=("a", "b"),
        shots=0,
        format="text",
        max_tokens=4,
        stop=(),
        system="",
        separator="\n",
        answer_prefix=" ",
        seed=0,
        splits={"train": rows, "test": rows[:9]},
        source="t",
        digest="",
    )
    split, note = with_dev(task, 5)
    train, dev = ({item.id for item in split.splits[part]} for part in ("train", "dev"))
    assert train | dev == {item.id for item in rows}
    assert not train & dev
    assert len(dev) == 80
    assert sum(item.expected == "b" for item in split.splits["dev"]) == 20
    assert with_dev(task, 5)[0].digest == split.digest != task.digest
    assert {item.id for item in with_dev(task, 6)[0].splits["dev"]} != dev
    assert "80 of the 400 train rows" in note
    assert with_dev(split, 9) == (split, "")
    assert [item.id for item in ordered(rows, 1)] != [item.id for item in ordered(rows, 2)]


def test_looks_double_until_all_rows_are_seen() -> None:
    assert looks_at(1000) == [50, 100, 200, 400, 800, 1000]
    assert looks_at(50) == [50]
    assert looks_at(7) == [7]


def test_per_class_figures_are_those_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

    generator = random.Random(0)
    expected = generator.choices("abc", k=200)
    given = [each if generator.random() < 0.7 else generator.choice("abc") for each in expected]
    pairs = enumerate(zip(expected, given, strict=True))
    outcomes = [Outcome(str(place), want, got, got, float(want == got), 0.0) for place, (want, got) in pairs]
    oracle = precision_recall_fscore_support(expected, given, labels=list("abc"))
    for place, label in enumerate("abc"):
        mine = per_class(outcomes)[label]
        assert [mine[key] for key in ("precision", "recall", "f1", "n")] == pytest.approx(
            [part[place] for part in oracle]
        )
    table = confusion_matrix(expected, given, labels=list("abc"))
    mine_too = [[confusion(outcomes)[row].get(column, 0) for column in "abc"] for row in "abc"]
    assert mine_too == table.tolist()


PROGRAM = """
import json, sys
from sizewise.load.tasks.file import load_task
from sizewise.pick.fit import fit
result = fit(load_task(sys.argv[1]), models=[sys.argv[2]])
body = result.as_json()
rows = [(c["model"], c["shots"], c["dev"], c["test"], c["difference"]) for c in body["candidates"]]
print(json.dumps([body["decision"]["status"], body["decision"]["sentence"], rows]))
"""


def test_a_killed_search_goes_on_and_ends_as_if_it_had_not_been(tmp_path: Path, tiny: str) -> None:
    write_task(tmp_path)

    def start(home: str) -> subprocess.Popen[str]:
        environment = os.environ | {"SIZEWISE_HOME": str(tmp_path / home)}
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "mood.toml"), tiny]
        return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    clean, _ = start("clean").communicate(timeout=250)
    for answered in (1, 100):  # killed in the heads, killed in the language model
        process = start("home")
        ledger = tmp_path / "home" / "ledger.db"
        give_up = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < give_up and _answers(ledger) < answered:
            time.sleep(0.02)
        process.kill()
        process.communicate()
    again, errors = start("home").communicate(timeout=250)
    assert json.loads(again) == json.loads(clean), errors


def _answers(path: Path) -> int:
    if not path.exists():
        return 0
    with Ledger(path) as ledger:
        return sum(count for _, count in ledger.runs())


def test_what_is_dearer_and_no_better_need_not_see_all_rows(tmp_path: Path, tiny: str) -> None:
    """On pure noise nothing is hopeless; but a larger model that cannot be 50 points better would not be chosen."""
    result = fit(write_task(tmp_path, noise=1.0), models=[tiny], bar=Bar(margin=0.5))
    prompted = [each for each in result.candidates if each.shots == 0]
    assert all("which is smaller, faster and cheaper" in each.left_because for each in prompted)
    assert all(each.dev is not None and each.dev.n == 50 for each in prompted)
    fixed = fit(write_task(tmp_path, noise=0.0), models=[tiny], bar=Bar(at_least=0.05))
    assert fixed.decision.model == "mood-majority"
    prompted = [each for each in fixed.candidates if each.shots == 0]
    assert all("needless beside mood-majority" in each.left_because for each in prompted)


def measured(name: str, right: int, size: int) -> Trial:
    """A candidate that has seen 1,000 development rows."""
    outcomes = tuple(Outcome(str(n), "a", "a" if n < right else "b", "", float(n < right), 0.0) for n in range(1000))
    quality = Interval(right / 1000, 0.0, 1.0, 1000)
    seen = Evaluation(name, "sha256:0", "t", "sha256:1", "dev", "accuracy", quality, 0, 0.0, 0.0, outcomes)
    trial = Trial(Model(name, "linear", "sha256:0", {}, size), "prompted", 0)
    trial.dev, trial.complete = seen, True
    return trial


def test_who_was_sent_home_for_a_rival_that_then_lost_is_called_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, waived, kept = measured("first", 800, 10), measured("waived", 810, 20), measured("kept", 790, 15)
    for trial in (waived, kept):
        trial.complete, trial.left_because, trial.waived_for = False, "at most +1.0 points to first", first
    asked: list[str] = []
    monkeypatch.setattr(Race, "_run_group", lambda self, group, size: asked.extend(trial.model.name for trial in group))
    task = write_task(tmp_path, train=40, test=20)
    with Ledger(tmp_path / "ledger.db") as ledger:
        race = Race(
            task=task,
            metric=metric_for(task),
            bar=Bar(margin=0.02),
            scale=Scale("accuracy"),
            limits={},
            clock=Clock(None),
            seed=0,
            store=Store(tmp_path / "store"),
            ledger=ledger,
            listen=silent,
            rows=(),
            trials=[first, waived, kept],
        )
        race.run((), ())
        assert asked == [], "its rival is still the best"
        race.trials.append(measured("new best", 850, 90))
        race.run((), ())
    assert asked == ["waived", "kept"]
    assert waived.left_because == ""


@pytest.mark.slow
def test_an_encoder_becomes_a_head_that_carries_it(tmp_path: Path) -> None:
    encoder = write_encoder(tmp_path / "encoder")
    result = fit(write_task(tmp_path, train=120, test=60), models=[str(encoder)])
    head = by_name(result, "-embedding")
    assert head.kind == "embedding"
    assert head.dev is not None
    assert head.memory_bytes is not None
    kept = find_model("mood-embedding")
    assert kept.lineage.parent_digest == find_model(str(encoder)).digest
    assert "encoder/config.json" in kept.files
    assert head.bytes == kept.size_bytes
