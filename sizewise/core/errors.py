"""Everything that can go wrong, as one tree. Each leaf says when it is raised; each message says what to do.

    SizewiseError                     exit
    ├── EngineFailed                    1   a model's process died or answered nonsense
    │   └── Crashing                    1   it died several times in a row (says when it will be tried again)
    ├── UsageError                      2   the command, a task file or a row is wrong
    │   ├── UnknownName                 2   no such model, method, metric or key (names the nearest)
    │   ├── BadRow                      2   file:line and what was expected there
    │   ├── BadModel                    2   a file that should hold a model does not (cut short, unknown architecture)
    │   ├── Unsupported                 2   this model or engine cannot do what was asked
    │   ├── TooLong                     2   a prompt does not fit the context (says both numbers)
    │   └── MissingExtra                2   an optional dependency is not installed (says which)
    ├── StateError                      3
    │   ├── Locked                      3   another process holds it
    │   ├── Busy                        3   as many requests wait as may (says when to ask again)
    │   ├── NewerVersion                3   written by a newer sizewise
    │   └── Unreachable                 3   a hub, registry or endpoint does not answer
    ├── DoesNotFit                      4   needs more memory than there is (says need and have)
    ├── StorageError                    5   permission denied, an unreadable file
    │   ├── DiskFull                    5   says need and have
    │   └── DigestMismatch              5   the bytes are not those that were named
    └── Unsafe                          6   refused on purpose: pickle, remote code, a path from a caller

An interrupted command leaves with 130 (Ctrl-C) or 143 (SIGTERM).
"""

import difflib
from collections.abc import Iterable
from pathlib import Path


class SizewiseError(Exception):
    """Root of the tree. The command line prints it in one line and leaves with `exit_code`."""

    exit_code = 1


class EngineFailed(SizewiseError):
    """The process that runs a model died, timed out or sent something that is no answer."""


class Crashing(EngineFailed):
    """A model's process keeps dying, so that for a while none is started. `retry_after_s` says how long."""

    def __init__(self, what: str, crashes: int, retry_after_s: int = 1) -> None:
        super().__init__(
            f"{what}: its process died {crashes} times within a minute; it is tried again in {retry_after_s} s"
        )
        self.retry_after_s = retry_after_s


class UsageError(SizewiseError):
    """The user's input can be corrected by the user."""

    exit_code = 2


class UnknownName(UsageError):
    """`name` is no `kind` that we know; the nearest of the `known` ones is offered."""

    def __init__(self, kind: str, name: str, known: Iterable[str] = (), *, remedy: str = "") -> None:
        choices = sorted(known)
        close = difflib.get_close_matches(name, choices, n=1, cutoff=0.5)
        if close:
            hint = f"did you mean {close[0]!r}?"
        elif choices and len(choices) <= 12:
            hint = "known: " + ", ".join(choices)
        else:
            hint = ""
        hints = "; ".join(part for part in (hint, remedy) if part)
        super().__init__(f"no {kind} named {name!r}" + (f": {hints}" if hints else ""))
        self.kind, self.name, self.nearest = kind, name, close[0] if close else None


class BadRow(UsageError):
    """A line of a data file is not what the task says it should be."""

    def __init__(self, path: Path | str, line: int | None, problem: str) -> None:
        where = f"{path}:{line}" if line else f"{path}"
        super().__init__(f"{where}: {problem}")
        self.path, self.line = str(path), line


class BadModel(UsageError):
    """A file or folder that should hold a model does not."""


class Unsupported(UsageError):
    """The model, or the engine that runs it, cannot do what was asked of it."""


class TooLong(UsageError):
    """A prompt has more tokens than the context leaves room for. The message holds both numbers."""

    def __init__(self, what: str, tokens: int, context: int, *, at_least: bool = False) -> None:
        counted = f"at least {tokens}" if at_least else str(tokens)
        super().__init__(
            f"{what}: the prompt has {counted} tokens, which exceeds the context of {context}: shorten it, ask for a "
            "larger context, or ask to truncate"
        )
        self.tokens, self.context = tokens, context


class MissingExtra(UsageError):
    """An optional dependency is needed: `extra` is the name to put in `pip install 'sizewise[extra]'`."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(f"{what} needs an optional part: pip install 'sizewise[{extra}]'")


class StateError(SizewiseError):
    """Nothing is wrong with the command, but not now: see the leaves."""

    exit_code = 3


class Locked(StateError):
    """Another process is at work on the same thing."""


class Busy(StateError):
    """All places, working and waiting, are taken. `retry_after_s` says when to ask again."""

    def __init__(self, what: str, retry_after_s: int = 1) -> None:
        super().__init__(f"{what} is busy: as many requests wait as may; try again in {retry_after_s} s")
        self.retry_after_s = retry_after_s


class NewerVersion(StateError):
    """A database or file was written by a newer sizewise; it is left untouched."""


class Unreachable(StateError):
    """A hub, registry or endpoint does not answer, or not with what its protocol promises."""


class DoesNotFit(SizewiseError):
    """More memory is needed than the machine has free. The message holds both numbers."""

    exit_code = 4


class StorageError(SizewiseError):
    """A file cannot be read or written."""

    exit_code = 5


class DiskFull(StorageError):
    """There is no room. The message holds need and have."""


class DigestMismatch(StorageError):
    """Bytes whose sha256 is not the one in their name."""


class Unsafe(SizewiseError):
    """Refused on purpose: pickle, remote code, a path that leaves its folder."""

    exit_code = 6


class UnsafeModel(Unsafe):
    """Refused on purpose, for what a model's files hold."""
