"""Results of fits and comparisons, kept by time and digest so that the web page can show them again."""

import calendar
import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sizewise.core.digests import digest_of_json
from sizewise.core.errors import SizewiseError, StorageError, UnknownName
from sizewise.core.results import Comparison, FitResult
from sizewise.load.home import reports_folder
from sizewise.load.store.atomic import write_atomic
from sizewise.pick.report.read import read_results

MOST_BYTES = 50_000_000  # a larger file is nothing that we wrote
_NAME = re.compile(r"(\d{8}-\d{6})-(fit|comparison)-[0-9a-f]{12}")
_TIME = "%Y%m%d-%H%M%S"


@dataclass(frozen=True, slots=True)
class Kept:
    """One kept result. `at` in seconds since 1970."""

    id: str
    kind: str
    at: float
    path: Path


def keep(result: FitResult | Comparison, folder: Path | None = None) -> Kept:
    """Write a result down, in the user's own folder unless told otherwise.

    Raises:
        StorageError: there is no room, or the folder cannot be written; the result itself is unharmed.
    """
    body = result.as_json()
    stamp = time.strftime(_TIME, time.gmtime())
    identity = f"{stamp}-{body['kind']}-{digest_of_json(body)[7:19]}"
    path = (folder or reports_folder()) / f"{identity}.json"
    write_atomic(path, [(json.dumps(body, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")])
    return Kept(identity, str(body["kind"]), _seconds(stamp), path)


def kept() -> list[Kept]:
    """All kept results, the latest first."""
    try:
        names = sorted((path for path in reports_folder().iterdir() if path.suffix == ".json"), reverse=True)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise StorageError(f"{reports_folder()}: cannot be read: {error.strerror}") from error
    found = []
    for path in names:
        match = _NAME.fullmatch(path.stem)
        if match and path.is_file() and not path.is_symlink() and path.stat().st_size <= MOST_BYTES:
            found.append(Kept(path.stem, match.group(2), _seconds(match.group(1)), path))
    return found


def read_kept(identity: str) -> FitResult | Comparison:
    """The result of that identity. It is looked up among those that are there, never made into a path.

    Raises:
        UnknownName: there is none.
        UsageError: the file is not what we write.
    """
    for each in kept():
        if each.id == identity:
            return read_results(each.path)[0]
    raise UnknownName("report", identity[:80])


def readable(describe: Callable[[FitResult | Comparison], dict[str, Any]]) -> list[tuple[Kept, dict[str, Any]]]:
    """Each kept result with what `describe` says of it; one that cannot be read has its `error` instead."""
    found = []
    for each in kept():
        try:
            found.append((each, describe(read_results(each.path)[0])))
        except SizewiseError as error:
            found.append((each, {"error": str(error).replace(str(each.path), each.path.name)}))
    return found


def _seconds(stamp: str) -> float:
    return float(calendar.timegm(time.strptime(stamp, _TIME)))
