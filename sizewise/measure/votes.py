"""Votes: which of several answers to one prompt a person preferred, without knowing whose they were.

A vote is kept in the ledger with the models' digests and a digest of the prompt, never the prompt itself. Each model
that was shown gets a share of it: the winner all, the others nothing; a tie gives each the same.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from sizewise.core.digests import digest_of_bytes
from sizewise.core.errors import UsageError
from sizewise.core.results import Interval
from sizewise.measure.ledger import Ledger
from sizewise.measure.stats import wilson

Verdict = Literal["best", "tie", "none"]
FEWEST, MOST = 2, 4


@dataclass(frozen=True, slots=True)
class Shown:
    """A model whose answer was shown."""

    digest: str
    name: str


@dataclass(frozen=True, slots=True)
class Tally:
    """How a model stands: `rate` over the votes that named a best answer; None where there was none."""

    wins: int
    decided: int
    undecided: int  # ties, and votes that no answer was good
    rate: Interval | None


def put_vote(ledger: Ledger, shown: Sequence[Shown], verdict: Verdict, winner: str | None, prompt: str) -> None:
    """Keep one vote.

    Args:
        ledger: where it is kept.
        shown: the models whose answers were compared, each once.
        verdict: one was best, all are alike, or none is good.
        winner: the digest of the best one; None unless the verdict is "best".
        prompt: what was asked; only its digest is kept.

    Raises:
        UsageError: too few or too many models, one of them twice, or the winner is not among them.
    """
    digests = [each.digest for each in shown]
    if not FEWEST <= len(shown) <= MOST:
        raise UsageError(f"a vote is between {FEWEST} to {MOST} models, not {len(shown)}")
    if len(set(digests)) < len(digests):
        raise UsageError("two of the models are the same one under two names; a vote between them says nothing")
    if (verdict == "best") != (winner is not None) or (winner is not None and winner not in digests):
        raise UsageError("the winner must be one of the models shown where one is best, and absent otherwise")
    tied = 1 / len(shown) if verdict == "tie" else 0.0
    with ledger.write() as connection:
        vote = connection.execute(
            "INSERT INTO vote (voted_at, prompt_digest) VALUES (?, ?)", (time.time(), digest_of_bytes(prompt.encode()))
        ).lastrowid
        connection.executemany(
            "INSERT INTO ballot VALUES (?, ?, ?, ?)",
            ((vote, each.digest, each.name, 1.0 if each.digest == winner else tied) for each in shown),
        )


def tallies(ledger: Ledger) -> dict[str, Tally]:
    """How each model stands, by digest."""
    rows = ledger.read("""
        SELECT model_digest, sum(share = 1), sum(best = 1), sum(best < 1)
        FROM ballot JOIN (SELECT vote, max(share) AS best FROM ballot GROUP BY vote) USING (vote)
        GROUP BY model_digest
    """)
    return {digest: Tally(wins, decided, undecided, _rate(wins, decided)) for digest, wins, decided, undecided in rows}


def _rate(wins: int, decided: int) -> Interval | None:
    return Interval(wins / decided, *wilson(wins, decided), decided) if decided else None
