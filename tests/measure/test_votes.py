"""Votes: every one kept, counted once, shared out fairly."""

import sqlite3
from pathlib import Path

import pytest

from sizewise.core.errors import UsageError
from sizewise.measure.ledger import Ledger
from sizewise.measure.votes import Shown, Tally, put_vote, tallies

A, B, C = Shown("sha256:a", "a"), Shown("sha256:b", "b"), Shown("sha256:c", "c")


@pytest.fixture
def ledger(tmp_path: Path) -> Ledger:
    return Ledger(tmp_path / "ledger.db")


def test_wins_ties_and_rejections_are_counted_apart(ledger: Ledger) -> None:
    for _ in range(3):
        put_vote(ledger, [A, B], "best", A.digest, "x")
    put_vote(ledger, [A, B, C], "best", B.digest, "y")
    put_vote(ledger, [A, B], "tie", None, "z")
    put_vote(ledger, [A, C], "none", None, "z")
    standing = tallies(ledger)
    assert {name: (one.wins, one.decided, one.undecided) for name, one in standing.items()} == {
        "sha256:a": (3, 4, 2), "sha256:b": (1, 4, 1), "sha256:c": (0, 1, 1),
    }  # fmt: skip
    rate = standing["sha256:a"].rate
    assert rate is not None
    assert (rate.value, rate.n) == (0.75, 4)
    assert rate.low == pytest.approx(0.3006, abs=1e-3)  # Wilson's interval for 3 of 4
    assert rate.high == pytest.approx(0.9544, abs=1e-3)


def test_without_a_decided_vote_there_is_no_rate(ledger: Ledger) -> None:
    put_vote(ledger, [A, B], "tie", None, "z")
    assert tallies(ledger)["sha256:a"] == Tally(0, 0, 1, None)


@pytest.mark.parametrize(
    ("shown", "verdict", "winner"),
    [
        ([A], "best", A.digest),
        ([A, B, C, Shown("d", "d"), Shown("e", "e")], "best", A.digest),
        ([A, Shown(A.digest, "other name")], "best", A.digest),
        ([A, B], "best", None),
        ([A, B], "best", C.digest),
        ([A, B], "tie", A.digest),
    ],
)
def test_a_vote_that_says_nothing_is_refused(ledger: Ledger, shown: list[Shown], verdict: str, winner: str) -> None:
    with pytest.raises(UsageError):
        put_vote(ledger, shown, verdict, winner, "x")  # type: ignore[arg-type]
    assert tallies(ledger) == {}


def test_the_prompt_is_not_kept(ledger: Ledger) -> None:
    put_vote(ledger, [A, B], "best", A.digest, "canary-of-a-prompt")
    ledger.close()
    assert all(b"canary-of" not in file.read_bytes() for file in ledger.path.parent.glob("ledger.db*"))
    rows = sqlite3.connect(ledger.path).execute("SELECT prompt_digest FROM vote").fetchall()
    assert rows[0][0].startswith("sha256:")
