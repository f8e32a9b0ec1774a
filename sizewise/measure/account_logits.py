"""Next-token distributions of a model, position by position, beside those of the model that it was made from.

The parent's logits are computed once and kept, exactly as the engine gave them, one file for each window of text:

    <home>/cache/logits/<digest of model, engine and text>/<number>.f32     (tokens, vocabulary) float32
                                                           windows.json     the windows and the size of the vocabulary

so that the tenth model made of one parent costs one pass and not two. Only one model is in memory at a time: where the
files of all windows would take more than `CACHE_BYTES`, parent and child take turns, some windows each.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sizewise.core.digests import canonical, digest_of_json
from sizewise.core.errors import Unsupported
from sizewise.core.events import Listener, Progress
from sizewise.core.model import Model
from sizewise.load.child import Child
from sizewise.load.home import home
from sizewise.load.store.atomic import locked, write_atomic
from sizewise.load.store.manifest import read_json
from sizewise.measure.account_text import Corpus

WINDOW = 256
CACHE_BYTES = 1 << 30  # what the logits of all parents together may take on disk
_QUIET = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
_QUIET |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}


@dataclass(frozen=True, slots=True)
class Reading:
    """What a model makes of a text. `table` is (tokens, 6), see `_account_child.COLUMNS`."""

    text: Corpus
    table: NDArray[np.float64]
    lengths: tuple[int, ...]  # tokens of each window, in the order of the table
    engine: str
    unlike: str = ""  # why nothing can be said of the parent


@dataclass(frozen=True, slots=True)
class _View:
    """A text as one model reads it."""

    windows: list[list[int]]
    vocabulary: int


def readings(
    model: Model, parent: Model | None, texts: Sequence[Corpus], *, threads: int | None, listen: Listener
) -> list[Reading]:
    """Run a model on some texts, and its parent as far as what it makes of them is not known.

    Args:
        model: a causal language model, GGUF or checkpoint.
        parent: what it was made from; None: the model is looked at alone.
        texts: what they read.
        threads: of each engine.
        listen: hears the windows done.

    Raises:
        Unsupported: a model that predicts no next token.
        EngineFailed, DoesNotFit, DiskFull: it could not be run.
    """
    for one in (model, parent):
        if one is not None and one.kind not in ("gguf", "checkpoint"):
            raise Unsupported(f"{one.name} is of kind {one.kind!r}, which predicts no next token")
    if parent is None:
        with _opened(model, threads) as child:
            none = "there is no parent to compare with"
            return [_alone(model, child, text, _view(child, text), none, listen) for text in texts]
    root = home() / "cache" / "logits"
    with locked(root / "lock", exclusive=True, wait_s=3600):
        try:
            return _beside(model, parent, [_Kept(root, parent, text) for text in texts], threads, listen)
        finally:
            _trim(root)


def engine_of(model: Model) -> str:
    """The engine that computes the logits, and its version."""
    library = "xllamacpp" if model.kind == "gguf" else "torch"
    return f"{library} {version(library)}"


class _Kept:
    """What is on disk of one model's logits of one text."""

    def __init__(self, root: Path, model: Model, text: Corpus) -> None:
        key = digest_of_json([model.digest, engine_of(model), text.digest, WINDOW])
        self.folder, self.text = root / key.removeprefix("sha256:")[:32], text

    def view(self) -> _View | None:
        """The text as the model reads it, where that is known."""
        known = read_json(self.folder / "windows.json")
        return _View(known["windows"], known["vocabulary"]) if known else None

    def remember(self, view: _View) -> None:
        """Keep the text as the model reads it."""
        note = {"windows": view.windows, "vocabulary": view.vocabulary}
        write_atomic(self.folder / "windows.json", [canonical(note)])

    def path(self, place: int) -> Path:
        """Where the logits of a window are or will be."""
        return self.folder / f"{place}.f32"


def _beside(model: Model, parent: Model, kept: list[_Kept], threads: int | None, listen: Listener) -> list[Reading]:
    found: dict[int, Reading] = {}
    parts: dict[int, list[NDArray[np.float64]]] = {place: [] for place in range(len(kept))}
    theirs: list[_View] = []
    for batch in _batches_of(parent, kept, theirs, threads, listen):
        with _opened(model, threads) as child:
            if not any(parts.values()):
                found = _unlike_ones(model, child, kept, theirs, listen)
            for place, group in groupby(batch, key=lambda pair: pair[0]):
                if place in found:
                    continue
                chosen = [window for _, window in group]
                rows = [theirs[place].windows[window] for window in chosen]
                paths = [str(kept[place].path(window)) for window in chosen]
                parts[place].append(_table(child, model, rows, paths, listen))
        if len(found) == len(kept):
            break
    for place, tables in parts.items():
        if tables:
            lengths = tuple(len(row) - 1 for row in theirs[place].windows)
            found[place] = Reading(kept[place].text, np.concatenate(tables), lengths, engine_of(model))
    return [found[place] for place in range(len(kept))]


def _unlike_ones(
    model: Model, child: Child, kept: list[_Kept], theirs: list[_View], listen: Listener
) -> dict[int, Reading]:
    """The texts that model and parent read differently, read by the model alone."""
    found = {}
    for place, one in enumerate(kept):
        mine = _view(child, one.text)
        if why := _unlike(theirs[place], mine):
            found[place] = _alone(model, child, one.text, mine, why, listen)
    return found


def _batches_of(
    parent: Model, kept: list[_Kept], views: list[_View], threads: int | None, listen: Listener
) -> Iterator[list[tuple[int, int]]]:
    """Windows whose logits by the parent are on disk, as many at a time as may be; `views` gets the texts as it reads.

    The parent is in memory between two batches only, and only if there is something to compute.
    """
    lazy = _Lazy(parent, threads)
    try:
        for one in kept:
            view = one.view()
            if view is None:
                view = _view(lazy.child(), one.text)
                one.remember(view)
            views.append(view)
        for batch in _batches(views):
            _fill(lazy, kept, views, batch, listen)
            lazy.close()
            yield batch
    finally:
        lazy.close()


def _batches(views: list[_View]) -> Iterator[list[tuple[int, int]]]:
    """(text, window) pairs in order, as many at a time as the cache holds."""
    batch: list[tuple[int, int]] = []
    size = 0
    for place, view in enumerate(views):
        for window, row in enumerate(view.windows):
            need = 4 * (len(row) - 1) * view.vocabulary
            if batch and size + need > CACHE_BYTES:
                yield batch
                batch, size = [], 0
            batch.append((place, window))
            size += need
    if batch:
        yield batch


def _fill(
    parent: "_Lazy", kept: list[_Kept], views: list[_View], batch: list[tuple[int, int]], listen: Listener
) -> None:
    """Have the parent's logits of these windows on disk, and others as far as there is room for them."""
    missing = [(place, window) for place, window in batch if not kept[place].path(window).exists()]
    if not missing:
        return
    need = sum(4 * (len(views[place].windows[window]) - 1) * views[place].vocabulary for place, window in missing)
    _trim(kept[0].folder.parent, need, {kept[place].path(window) for place, window in batch})
    rows = [views[place].windows[window] for place, window in missing]
    paths = [str(kept[place].path(window)) for place, window in missing]
    parent.child().call("write", _hear(f"{parent.model.name}: reading", listen), rows=rows, paths=paths)


def _trim(root: Path, need: int = 0, wanted: AbstractSet[Path] = frozenset()) -> None:
    """Remove what was longest not used, except what is wanted, until there is room for `need` more bytes."""
    files = sorted((path.stat().st_mtime, path.stat().st_size, path) for path in root.glob("*/*.f32"))
    total = sum(size for _, size, _ in files) + need
    for _, size, path in files:
        if total > CACHE_BYTES and path not in wanted:
            path.unlink(missing_ok=True)
            total -= size


class _Lazy:
    """A model in a process of its own, loaded when it is first needed."""

    def __init__(self, model: Model, threads: int | None) -> None:
        self.model, self._threads = model, threads
        self._child: Child | None = None

    def child(self) -> Child:
        """The process; started and loaded if it is not there."""
        if self._child is None:
            self._child = Child("sizewise.measure._account_child", self.model.name, _QUIET)
            files = {title: str(path) for title, path in self.model.files.items()}
            self._child.call("open", what=self.model.name, kind=self.model.kind, files=files, threads=self._threads)
        return self._child

    def close(self) -> None:
        """End the process, if there is one."""
        if self._child is not None:
            self._child.close()
            self._child = None


@contextmanager
def _opened(model: Model, threads: int | None) -> Iterator[Child]:
    lazy = _Lazy(model, threads)
    try:
        yield lazy.child()
    finally:
        lazy.close()


def _view(child: Child, text: Corpus) -> _View:
    windows, vocabulary = child.call("windows", text=text.text, window=WINDOW)[0]
    return _View(windows, vocabulary)


def _unlike(theirs: _View, mine: _View) -> str:
    """Why two models cannot be compared position by position."""
    if theirs.vocabulary != mine.vocabulary:
        return f"the parent has a vocabulary of {theirs.vocabulary} tokens, this model of {mine.vocabulary}"
    if theirs.windows != mine.windows:
        return "the parent reads the text as other tokens, so that positions do not correspond"
    return ""


def _alone(model: Model, child: Child, text: Corpus, view: _View, why: str, listen: Listener) -> Reading:
    table = _table(child, model, view.windows, [], listen)
    return Reading(text, table, tuple(len(row) - 1 for row in view.windows), engine_of(model), why)


def _table(
    child: Child, model: Model, rows: list[list[int]], paths: list[str], listen: Listener
) -> NDArray[np.float64]:
    for path in paths:
        os.utime(path)  # just used: the last to be removed
    shape, data = child.call("read", _hear(f"{model.name}: reading", listen), rows=rows, paths=paths)
    return np.frombuffer(data, np.float64).reshape(shape)


def _hear(what: str, listen: Listener) -> Callable[[dict[str, Any]], None]:
    return lambda event: listen(Progress(what, event["done"], event["total"], "windows"))
