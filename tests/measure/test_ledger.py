"""The ledger: nothing is lost, nothing is mixed up, several may write."""

import os
import signal
import sqlite3
import stat
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from sizewise.core.errors import DiskFull, NewerVersion, StorageError
from sizewise.core.results import Evaluation, Interval, Outcome
from sizewise.core.task import Split
from sizewise.load.home import ledger_file
from sizewise.measure.ledger import VERSION, Entry, Key, Ledger

KEY = Key("sha256:m", "sha256:t", {"engine": "e 1", "shots": []}, 0, "model", "task")


def entry(item: str, answer: str | None = "yes") -> Entry:
    outcome = Outcome(item, "yes", answer, "Yes, I think", 1.0 if answer else None, 0.25, 3, "Really?", (1.0, -2.5))
    return Entry(outcome, 0.125)


def test_what_is_put_is_got_back_whole(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.put(KEY, [entry("1"), entry("2", None)])
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger.get(KEY) == {"1": entry("1"), "2": entry("2", None)}
        assert list(ledger.runs()) == [(KEY, 2)]
        assert ledger.problems() == []


@pytest.mark.parametrize(
    "change",
    [
        {"model_digest": "sha256:n"},
        {"task_digest": "sha256:u"},
        {"parameters": {"engine": "e 2", "shots": []}},
        {"parameters": {"engine": "e 1", "shots": ["train:1"]}},
        {"seed": 1},
    ],
)
def test_another_key_finds_nothing(tmp_path: Path, change: dict[str, object]) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.put(KEY, [entry("1")])
        assert ledger.get(replace(KEY, **change)) == {}  # type: ignore[arg-type]


def test_names_are_no_part_of_the_key(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.put(KEY, [entry("1")])
        assert set(ledger.get(replace(KEY, model="renamed"))) == {"1"}


def test_a_later_answer_replaces_and_a_batch_is_whole(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.put(KEY, [entry("1")])
        ledger.put(KEY, [entry("1", "no")])
        broken = Entry(replace(entry("3").outcome, seconds="soon"), None)  # type: ignore[arg-type]
        with pytest.raises(StorageError):
            ledger.put(KEY, [entry("2"), broken])
        assert {item: kept.outcome.answer for item, kept in ledger.get(KEY).items()} == {"1": "no"}


def test_text_that_no_file_can_hold_is_kept_readable(tmp_path: Path) -> None:
    odd = Entry(replace(entry("1").outcome, output="half \ud83d and nul \0."), None)
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.put(KEY, [odd])
        assert ledger.get(KEY)["1"].outcome.output == "half ? and nul \0."


def test_it_is_in_the_home_folder_and_for_its_owner_alone() -> None:
    with Ledger() as ledger:
        ledger.put(KEY, [entry("1")])
        assert ledger.path == ledger_file()
        for file in ledger.path.parent.glob("ledger.db*"):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_every_commit_reaches_the_disk(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        assert ledger._connection.execute("PRAGMA synchronous").fetchone() == (2,)
        assert ledger._connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert ledger._connection.execute("PRAGMA busy_timeout").fetchone() == (30_000,)


def test_a_newer_ledger_is_left_untouched(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    connection = sqlite3.connect(path)
    connection.execute(f"PRAGMA user_version = {VERSION + 1}")
    connection.execute("CREATE TABLE future (x)")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(NewerVersion, match="upgrade"):
        Ledger(path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_that_is_no_ledger_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    path.write_bytes(b"not a database, but longer than a header" * 99)
    with pytest.raises(StorageError, match="move it away"):
        Ledger(path)
    assert path.read_bytes().startswith(b"not a database")


def test_a_place_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="SIZEWISE_HOME"):
        Ledger(tmp_path / "file" / "ledger.db")


def test_a_full_disk_loses_nothing_and_the_next_try_works(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.put(KEY, [entry("1")])
        pages = ledger._connection.execute("PRAGMA page_count").fetchone()[0]
        ledger._connection.execute(f"PRAGMA max_page_count = {pages}")
        large = [entry(str(i)) for i in range(2, 4000)]
        with pytest.raises(DiskFull, match="free"):
            ledger.put(KEY, large)
        assert set(ledger.get(KEY)) == {"1"}
        ledger._connection.execute("PRAGMA max_page_count = 1000000")
        ledger.put(KEY, large)
        assert len(ledger.get(KEY)) == 3999


_WRITER = """
import sys
from pathlib import Path
from sizewise.core.results import Evaluation, Interval, Outcome
from sizewise.core.task import Split
from sizewise.measure.ledger import Entry, Key, Ledger
name, path = sys.argv[1:]
key = Key("sha256:m", "sha256:t", {"writer": name}, 0)
with Ledger(Path(path)) as ledger:
    for row in range(50):
        ledger.put(key, [Entry(Outcome(f"{row}", "x", "x", "x", 1.0, 0.0), None)])
        print(row, flush=True)
"""


def writers(path: Path, count: int) -> list["subprocess.Popen[str]"]:
    return [
        subprocess.Popen([sys.executable, "-c", _WRITER, str(i), str(path)], stdout=subprocess.PIPE, text=True)
        for i in range(count)
    ]


def test_four_processes_write_at_once_into_a_file_that_none_has_made(tmp_path: Path) -> None:
    path = tmp_path / "new" / "ledger.db"
    children = writers(path, 4)
    assert [child.wait(120) for child in children] == [0, 0, 0, 0]
    for child in children:
        child.communicate()
    with Ledger(path) as ledger:
        assert sorted(count for _, count in ledger.runs()) == [50, 50, 50, 50]
        assert ledger.problems() == []


def test_what_was_acknowledged_survives_kill_nine(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    children = writers(path, 4)
    heard = {}
    for index, child in enumerate(children):
        assert child.stdout is not None
        lines = [child.stdout.readline() for _ in range(5 + 10 * index)]
        os.kill(child.pid, signal.SIGKILL)
        lines += child.stdout.readlines()
        child.wait()
        child.stdout.close()
        heard[str(index)] = sum(line.endswith("\n") for line in lines)
    with Ledger(path) as ledger:
        assert ledger.problems() == []
        kept = {str(key.parameters["writer"]): count for key, count in ledger.runs()}
        assert all(kept[name] >= count >= 5 for name, count in heard.items())
        ledger.put(KEY, [entry("1")])


def evaluation(value: float, n: int, split: Split = "test") -> Evaluation:
    quality = Interval(value, value - 0.1, value + 0.1, n)
    return Evaluation("model", "sha256:m", "task", "sha256:t", split, "accuracy", quality, 1, 2.0, 0.5, ())


def test_what_evaluations_came_to_is_kept(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.db") as ledger:
        ledger.finish(KEY, evaluation(0.8, 100))
        ledger.finish(KEY, evaluation(0.5, 10))  # over fewer items: says less than what is there
        ledger.finish(KEY, evaluation(0.7, 50, "dev"))
        ledger.finish(KEY, evaluation(float("nan"), 200))
    with Ledger(tmp_path / "ledger.db") as ledger:
        found = {each.split: each for each in ledger.finished()}
    assert {split: (each.quality.value, each.quality.n) for split, each in found.items()} == {
        "test": (0.8, 100), "dev": (0.7, 50),
    }  # fmt: skip
    assert found["test"].key == KEY
    assert found["test"].higher_is_better


def test_a_ledger_of_the_first_format_gets_what_it_lacks(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    with Ledger(path) as ledger:
        ledger.put(KEY, [entry("1")])
    with sqlite3.connect(path) as connection:
        for table in ("ballot", "vote", "evaluation"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 1")
    connection.close()
    with Ledger(path) as ledger:
        assert set(ledger.get(KEY)) == {"1"}
        assert ledger.finished() == []
        ledger.finish(KEY, evaluation(0.8, 100))
        assert len(ledger.finished()) == 1
