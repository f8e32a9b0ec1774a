"""Where models come from. Each source brings files to this machine and says what they are; `pull` stores them."""

import contextlib
import hashlib
import secrets
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sizewise.core.errors import BadModel
from sizewise.core.model import ModelKind
from sizewise.load.facts import GGUF_FILE, facts_of_folder, license_of_gguf
from sizewise.load.store import atomic
from sizewise.load.store.store import Store


@dataclass(frozen=True, slots=True)
class Found:
    """A model's files as a source delivers them."""

    kind: ModelKind
    files: dict[str, Path]  # file name in the model -> path
    owned: bool = False  # the files were made for us and may be moved into the store
    license: str = ""
    note: str = ""  # what exactly was found: a version, a commit
    digests: dict[str, str] | None = None  # file name -> digest that the source promises


def found_at(path: Path, *, owned: bool = False, note: str = "") -> Found:
    """The model that a GGUF file or checkpoint folder holds, its headers checked.

    Raises:
        BadModel: there is no model, or a damaged one.
        Unsafe: only pickled weights, or code of its own.
    """
    if not path.exists():
        raise BadModel(f"{path}: there is no such file or folder")
    with atomic.storage_errors(path):
        if path.is_dir():
            kind, files, _ = facts_of_folder(path)
            return Found(kind, files, owned, note=note)
        return Found("gguf", {GGUF_FILE: path}, owned, license=license_of_gguf(path), note=note)


@contextlib.contextmanager
def scratch(store: Store, source: str) -> Iterator[Path]:
    """A folder beside the store, on its disk, gone at the end.

    What a killed run left for the same source goes first: one process at a time fetches from a source.
    """
    label = "scratch-" + hashlib.sha256(source.encode()).hexdigest()[:16]
    folder = store.layout.incoming / f"{label}-{secrets.token_hex(6)}"
    with atomic.storage_errors(folder):
        for stale in store.layout.incoming.glob(f"{label}-*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder.mkdir(parents=True)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
