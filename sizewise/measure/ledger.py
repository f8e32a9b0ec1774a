"""The ledger: every item that was ever measured, in one SQLite file, so that nothing is asked twice or lost.

Beside the items it keeps what evaluations came to, and votes (see `votes.py`).

An answer belongs to a run, and a run is (model digest, task digest, digest of the parameters, seed). Change one of
them and it is another run: an answer is never reused for a question that was not asked. Rows are committed in batches,
each flushed to the disk before `put` returns (WAL, synchronous=FULL), so that a killed evaluation loses at most the
batch in hand. Several processes may write at once; each waits up to half a minute for the others.
"""

import json
import math
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from sizewise.core.digests import digest_of_json
from sizewise.core.errors import DiskFull, Locked, NewerVersion, StorageError
from sizewise.core.results import Evaluation, Interval, Outcome
from sizewise.core.units import format_bytes
from sizewise.load.home import ledger_file

_WAIT_S = 30.0
_ITEMS = """
CREATE TABLE run (
    id INTEGER PRIMARY KEY,
    model_digest TEXT NOT NULL,
    task_digest TEXT NOT NULL,
    parameters_digest TEXT NOT NULL,
    seed INTEGER NOT NULL,
    model TEXT NOT NULL,
    task TEXT NOT NULL,
    parameters TEXT NOT NULL,
    started_at REAL NOT NULL,
    UNIQUE (model_digest, task_digest, parameters_digest, seed)
) STRICT;
CREATE TABLE answer (
    run INTEGER NOT NULL REFERENCES run (id),
    item TEXT NOT NULL,
    prompt TEXT NOT NULL,
    expected TEXT,
    output TEXT NOT NULL,
    answer TEXT,
    score REAL,
    tokens INTEGER,
    seconds REAL NOT NULL,
    cpu_s REAL,
    statistics TEXT NOT NULL,
    PRIMARY KEY (run, item)
) STRICT, WITHOUT ROWID;
"""
_RESULTS = """
CREATE TABLE evaluation (
    run INTEGER NOT NULL REFERENCES run (id),
    split TEXT NOT NULL,
    metric TEXT NOT NULL,
    higher_is_better INTEGER NOT NULL,
    value REAL NOT NULL,
    low REAL NOT NULL,
    high REAL NOT NULL,
    n INTEGER NOT NULL,
    unanswered INTEGER NOT NULL,
    cpu_s_per_item REAL,
    finished_at REAL NOT NULL,
    PRIMARY KEY (run, split)
) STRICT, WITHOUT ROWID;
CREATE TABLE vote (
    id INTEGER PRIMARY KEY,
    voted_at REAL NOT NULL,
    prompt_digest TEXT NOT NULL
) STRICT;
CREATE TABLE ballot (
    vote INTEGER NOT NULL REFERENCES vote (id),
    model_digest TEXT NOT NULL,
    model TEXT NOT NULL,
    share REAL NOT NULL,
    PRIMARY KEY (vote, model_digest)
) STRICT, WITHOUT ROWID;
"""
_STEPS = (_ITEMS, _RESULTS)  # each takes a ledger from one format to the next
VERSION = len(_STEPS)


@dataclass(frozen=True, slots=True)
class Key:
    """What an answer depends on, its item apart. `parameters` is any JSON: engine, split, shots, format, sampling."""

    model_digest: str
    task_digest: str
    parameters: dict[str, Any]
    seed: int
    model: str = ""  # names for people; not part of the identity
    task: str = ""

    @property
    def parameters_digest(self) -> str:
        """Content address of the parameters."""
        return digest_of_json(self.parameters)


@dataclass(frozen=True, slots=True)
class Entry:
    """One item's outcome and the CPU time that it took in the model's processes; None where it cannot be seen."""

    outcome: Outcome
    cpu_s: float | None


@dataclass(frozen=True, slots=True)
class Finished:
    """What one evaluation came to; `at` in seconds since 1970."""

    key: Key
    split: str
    metric: str
    higher_is_better: bool
    quality: Interval
    unanswered: int
    cpu_s_per_item: float | None
    at: float


class Ledger:
    """An open ledger. A context manager; one per thread, any number of processes.

    Raises:
        NewerVersion: a newer sizewise wrote the file; it is left untouched.
        Locked: other processes held it for half a minute.
        StorageError: the file is no ledger, or cannot be read or written.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or ledger_file()
        with self._reported():
            self._make_file()
            self._connection = sqlite3.connect(self.path, timeout=_WAIT_S, isolation_level=None)
            try:
                self._prepare()
            except BaseException:
                self._connection.close()
                raise

    def get(self, key: Key) -> dict[str, Entry]:
        """All answers of a run, by item id; empty if it was never begun."""
        query = """
            SELECT item, prompt, expected, output, answer, score, tokens, seconds, cpu_s, statistics
            FROM answer JOIN run ON run.id = answer.run
            WHERE model_digest = ? AND task_digest = ? AND parameters_digest = ? AND seed = ?
        """
        identity = (key.model_digest, key.task_digest, key.parameters_digest, key.seed)
        with self._reported():
            rows = self._connection.execute(query, identity).fetchall()
        return {row[0]: _entry(row) for row in rows}

    def put(self, key: Key, entries: Sequence[Entry]) -> None:
        """Write a batch, all of it or nothing. Of two answers to one item the later stands."""
        with self._reported(), self._writing():
            run = self._run(key)
            self._connection.executemany(
                "INSERT OR REPLACE INTO answer VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                ((run, *_row(entry)) for entry in entries),
            )

    def runs(self) -> Iterator[tuple[Key, int]]:
        """Every run with the number of its answers, oldest first."""
        query = """
            SELECT model_digest, task_digest, parameters, seed, model, task, count(item)
            FROM run LEFT JOIN answer ON run.id = answer.run GROUP BY run.id ORDER BY run.id
        """
        with self._reported():
            rows = self._connection.execute(query).fetchall()
        for model_digest, task_digest, parameters, seed, model, task, count in rows:
            yield Key(model_digest, task_digest, json.loads(parameters), seed, model, task), count

    def finish(self, key: Key, result: Evaluation) -> None:
        """Keep what an evaluation came to. One over fewer items does not replace one over more."""
        quality = result.quality
        if not all(map(math.isfinite, (quality.value, quality.low, quality.high))):
            return  # no number, nothing to show
        numbers = (quality.value, quality.low, quality.high, quality.n, result.unanswered, result.cpu_s_per_item)
        with self.write() as connection:
            connection.execute(
                "INSERT INTO evaluation VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
                " metric = excluded.metric, higher_is_better = excluded.higher_is_better, value = excluded.value,"
                " low = excluded.low, high = excluded.high, n = excluded.n, unanswered = excluded.unanswered,"
                " cpu_s_per_item = excluded.cpu_s_per_item, finished_at = excluded.finished_at"
                " WHERE excluded.n >= evaluation.n",
                (self._run(key), result.split, result.metric, int(result.higher_is_better), *numbers, time.time()),
            )

    def finished(self) -> list[Finished]:
        """What all evaluations came to, the latest first."""
        rows = self.read("""
            SELECT model_digest, task_digest, parameters, seed, model, task, split, metric, higher_is_better, value,
                low, high, n, unanswered, cpu_s_per_item, finished_at
            FROM evaluation JOIN run ON run.id = evaluation.run ORDER BY finished_at DESC
        """)
        return [_finished(row) for row in rows]

    def read(self, query: str, values: Sequence[Any] = ()) -> list[Any]:
        """The rows of a query."""
        with self._reported():
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def write(self) -> Iterator[sqlite3.Connection]:
        """A transaction: all that is written in the `with` block is kept, or nothing of it."""
        with self._reported(), self._writing():
            yield self._connection

    def problems(self) -> list[str]:
        """What SQLite's own check finds wrong with the file; empty when it is whole."""
        with self._reported():
            found = [str(row[0]) for row in self._connection.execute("PRAGMA integrity_check")]
        return [line for line in found if line != "ok"]

    def close(self) -> None:
        """Close the file. Safe to call twice."""
        self._connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _make_file(self) -> None:
        """An empty file for its owner alone: prompts are private. SQLite gives its side files the same mode."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        os.close(os.open(self.path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600))

    def _prepare(self) -> None:
        self._refuse_newer()
        self._enter_wal()
        self._connection.execute("PRAGMA synchronous = FULL")
        with self._writing():
            # Asked again with the write lock held: another process may have made the tables meanwhile.
            for step in _STEPS[self._refuse_newer() :]:
                for statement in step.split(";\n"):
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA user_version = {VERSION}")

    def _refuse_newer(self) -> int:
        version = int(self._connection.execute("PRAGMA user_version").fetchone()[0])
        if version > VERSION:
            raise NewerVersion(
                f"{self.path} was written by a newer sizewise (format {version}, this one reads {VERSION}): "
                "upgrade sizewise, or set SIZEWISE_HOME to another folder"
            )
        return version

    def _enter_wal(self) -> None:
        """Switch to write-ahead logging. SQLite does not wait for other processes here, so we do."""
        give_up = time.monotonic() + _WAIT_S
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        """One transaction that takes the write lock at once, so that it never has to give up half-way."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # On some errors (a full disk) SQLite has already rolled back by itself.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _run(self, key: Key) -> int:
        identity = (key.model_digest, key.task_digest, key.parameters_digest, key.seed)
        names = (key.model, key.task, json.dumps(key.parameters, sort_keys=True), time.time())
        self._connection.execute(
            "INSERT OR IGNORE INTO run (model_digest, task_digest, parameters_digest, seed, model, task, parameters,"
            " started_at) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
            identity + names,
        )
        query = "SELECT id FROM run WHERE (model_digest, task_digest, parameters_digest, seed) = (?, ?, ?, ?)"
        return int(self._connection.execute(query, identity).fetchone()[0])

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise self._explained(str(error)) from error
        except OSError as error:
            raise StorageError(
                f"{self.path}: {error.strerror or error}; set SIZEWISE_HOME to a folder that can be written"
            ) from error

    def _explained(self, problem: str) -> Exception:
        if "locked" in problem or "busy" in problem:
            return Locked(f"{self.path} is held by another process for over {_WAIT_S:.0f} s; try again when it is done")
        if "full" in problem:
            return DiskFull(f"{self.path}: no room for another batch ({self._room()} free); free some and run it again")
        if "not a database" in problem or "malformed" in problem:
            return StorageError(f"{self.path} is damaged or no ledger ({problem}): move it away, a new one is made")
        return StorageError(f"{self.path}: {problem}; set SIZEWISE_HOME to a folder that can be written")

    def _room(self) -> str:
        room = os.statvfs(self.path.parent)
        return format_bytes(room.f_bavail * room.f_frsize)


def _text(text: str | None) -> str | None:
    """Text that SQLite can hold: half of a surrogate pair, which a model may emit, becomes a question mark."""
    return text if text is None else text.encode("utf-8", "replace").decode()


def _row(entry: Entry) -> Iterable[Any]:
    outcome = entry.outcome
    return (
        outcome.id,
        _text(outcome.prompt),
        _text(outcome.expected),
        _text(outcome.output),
        _text(outcome.answer),
        outcome.score,
        outcome.tokens,
        outcome.seconds,
        entry.cpu_s,
        json.dumps(outcome.statistics),
    )


def _entry(row: Sequence[Any]) -> Entry:
    item, prompt, expected, output, answer, score, tokens, seconds, cpu_s, statistics = row
    numbers = tuple(json.loads(statistics))
    return Entry(Outcome(item, expected, answer, output, score, seconds, tokens, prompt, numbers), cpu_s)


def _finished(row: Sequence[Any]) -> Finished:
    model_digest, task_digest, parameters, seed, model, task, split, metric, higher, value, low, high, n, *rest = row
    key = Key(model_digest, task_digest, json.loads(parameters), seed, model, task)
    return Finished(key, split, metric, bool(higher), Interval(value, low, high, n), *rest)
