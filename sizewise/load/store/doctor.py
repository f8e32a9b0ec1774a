"""Is everything whole: the models, the ledger; and what is on this machine to run them with."""

import importlib.metadata
import os
import platform
import shutil
import sqlite3
import sys
from pathlib import Path
from typing import Any

from sizewise import __version__
from sizewise.core.errors import SizewiseError
from sizewise.load.store.audit import audit
from sizewise.load.store.manifest import Problem
from sizewise.load.store.store import GRACE_S, Store

_ENGINES = ("xllamacpp", "torch", "transformers", "gguf", "tokenizers", "safetensors", "huggingface-hub", "ray")


def check(
    store: Store | None = None,
    *,
    deep: bool = True,
    ledger: Path | None = None,
    repair: bool = False,
    grace_s: float = GRACE_S,
) -> list[Problem]:
    """Everything wrong with the store and the ledger, each with what to do.

    Args:
        store: None = the user's store.
        deep: compare all data with its digests, which reads every byte.
        ledger: the ledger's file; None or a file that is not there = not checked.
        repair: first remove leftovers and damaged data, so that pulling again brings it back.
        grace_s: leftovers younger than this may belong to a command at work and are let be.

    Returns:
        The problems that are left; none means clean.

    Raises:
        Locked: `repair` while another process is writing.
    """
    store = store or Store()
    if repair:
        _repair(store, deep, grace_s)
    problems = audit(store, deep=deep, grace_s=grace_s)
    if ledger is not None and ledger.exists():
        problems += _check_ledger(ledger)
    return problems


def environment(store: Store | None = None) -> dict[str, Any]:
    """Versions, memory and disk, without importing any engine."""
    import psutil

    store = store or Store()
    place = next(path for path in (store.root, *store.root.parents) if path.exists())
    memory = psutil.virtual_memory()
    facts: dict[str, Any] = {
        "sizewise": __version__,
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_bytes": memory.total,
        "memory_free_bytes": memory.available,
        "store": str(store.root),
        "store_free_bytes": shutil.disk_usage(place).free,
        "models": len(store.list()),
        "unfinished_downloads_bytes": _unfinished_bytes(store),
    }
    return facts | {engine: _version(engine) for engine in _ENGINES}


def _unfinished_bytes(store: Store) -> int:
    places = [*store.layout.blobs.glob("*.partial"), *store.layout.incoming.rglob("*")]
    return sum(path.stat().st_size for path in places if path.is_file())


def _repair(store: Store, deep: bool, grace_s: float) -> None:
    for problem in audit(store, deep=deep, grace_s=grace_s):
        if problem.kind in ("digest", "size", "link"):
            for path in problem.paths:
                store.drop(path.name)
    try:
        store.collect_garbage(grace_s=grace_s)
    except SizewiseError as error:
        if error.exit_code == 3:  # another process is writing
            raise
        # A damaged manifest: what it needs is unknown, so nothing is removed; the audit that follows names it.


def _check_ledger(path: Path) -> list[Problem]:
    try:
        connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=30.0)
        try:
            lines = [str(row[0]) for row in connection.execute("PRAGMA integrity_check(3)")]
        finally:
            connection.close()
    except sqlite3.Error as error:
        lines = [str(error)]
    if lines == ["ok"]:
        return []
    remedy = f"move {path} away; what it held is measured again"
    return [Problem("ledger", str(path), "the ledger is damaged: " + "; ".join(lines)[:200], remedy)]


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return f"not installed in {sys.prefix}"
