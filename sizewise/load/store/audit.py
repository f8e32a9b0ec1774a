"""What is wrong in a store, and what in it nobody needs any more."""

import hashlib
import time
from pathlib import Path

from sizewise.core.errors import SizewiseError
from sizewise.load.store.atomic import TEMPORARY, read_chunks
from sizewise.load.store.layout import check_digest
from sizewise.load.store.manifest import Problem
from sizewise.load.store.store import GRACE_S, Store


def audit(store: Store, *, deep: bool, grace_s: float = GRACE_S) -> list[Problem]:
    """Everything wrong in a store.

    Args:
        store: the store.
        deep: read all data and compare it with its digests.
        grace_s: leftovers younger than this belong to somebody at work and are no problem.

    Returns:
        The problems; none means that every model in the list is whole.
    """
    problems: list[Problem] = []
    broken: set[str] = set()
    for name, path in store.layout.names():
        try:
            manifest = store.get(name)
        except (SizewiseError, OSError) as error:
            remedy = f"`sizewise rm {name}` removes the name"
            problems.append(Problem("manifest", str(name), str(error).split("; ")[0], remedy, (path,)))
            continue
        for layer in manifest.blobs:
            wrong = store.fault_of(layer)
            kind = "link" if store.blob(layer.digest).is_symlink() else "missing" if "missing" in str(wrong) else "size"
            if wrong is None and deep and layer.digest not in broken:
                wrong, kind = _compare(store, layer.digest), "digest"
            if wrong:
                broken.add(layer.digest)
                what = f"{layer.title or layer.digest[:19]}: {wrong}"
                remedy = "`sizewise doctor --repair` clears damaged data, then `sizewise pull` brings it back"
                problems.append(Problem(kind, str(name), what, remedy, (store.blob(layer.digest),)))
    return problems + _orphans(store, grace_s)


def leftovers(store: Store, *, grace_s: float) -> list[Path]:
    """Files that no name needs: blobs, unfinished writes and downloads, notes; all older than `grace_s`.

    Raises:
        BadModel: a manifest cannot be read, so what it needs is unknown.
    """
    layout, used = store.layout, store.used_digests()
    found = []
    for path in _entries(layout.blobs):
        digest = _digest_of_name(path.name)
        if digest is None or digest not in used:
            found.append(path)
    for path in _entries(layout.links):
        digest = _digest_of_name(path.name.removesuffix(".json"))
        if digest is None or digest not in used or not layout.blob(digest).is_symlink():
            found.append(path)
    found += _entries(layout.incoming)
    for folder in (layout.manifests, layout.notes):
        found += [path for path in _entries(folder) if path.name.startswith(TEMPORARY)]
    return [path for path in found if _age_s(path) >= grace_s]


def is_unfinished_download(path: Path, store: Store) -> bool:
    """True for what a broken-off pull left so that the next one can go on from there."""
    return path.name.endswith(".partial") or path.parent == store.layout.incoming


def _orphans(store: Store, grace_s: float) -> list[Problem]:
    try:
        paths = leftovers(store, grace_s=grace_s)
    except SizewiseError:  # a damaged manifest, which the audit has named already
        return []
    remedy = "`sizewise doctor --repair` removes it"
    problems = []
    for path in paths:
        kind, what = "orphan", "no model uses it"
        if is_unfinished_download(path, store):  # nothing is wrong with it: pulling again goes on from there
            continue
        if path.name.startswith(TEMPORARY):
            kind, what = "temporary", "a write that was broken off"
        problems.append(Problem(kind, path.name, what, remedy, (path,)))
    return problems


def _compare(store: Store, digest: str) -> str | None:
    sha = hashlib.sha256()
    try:
        for chunk in read_chunks(store.blob(digest)):
            sha.update(chunk)
    except (OSError, SizewiseError) as error:
        return f"its data cannot be read ({error})"
    return None if "sha256:" + sha.hexdigest() == digest else "its data is not what its digest says"


def _digest_of_name(name: str) -> str | None:
    try:
        return check_digest(name)
    except SizewiseError:
        return None


def _entries(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.name != "lock") if folder.is_dir() else []


def _age_s(path: Path) -> float:
    """Seconds since the entry, or anything in it, was last written."""
    inside = path.rglob("*") if path.is_dir() and not path.is_symlink() else ()
    times: list[float] = []
    for entry in (path, *inside):
        try:
            times.append(entry.lstat().st_mtime)
        except FileNotFoundError:  # finished or removed meanwhile
            times.append(time.time())
    return time.time() - max(times)
