"""Make a model, then say what it cost: the one place where making and measuring meet.

The model is in the store before anything is measured, so that an account that is interrupted loses nothing:
`account_of` fills it in at any time. The figures lie in the model's lineage, under "account".
"""

from collections.abc import Sequence
from pathlib import Path

from sizewise.core.errors import SizewiseError, UsageError
from sizewise.core.events import Listener, silent
from sizewise.core.measurement import Measurement
from sizewise.core.model import Model
from sizewise.core.references import NameRef, parse_reference
from sizewise.load.models import add_figures, find_model, list_models
from sizewise.load.store.store import Store
from sizewise.make.calibration import OWN, read_texts
from sizewise.make.shrink import checkpoint_of
from sizewise.measure.account import CHARACTERS, Amount, account
from sizewise.measure.account_text import Corpus, corpus, speeches

KEY = "account"  # in the lineage's figures


def account_of(
    model: str | Model,
    *,
    amount: Amount = "quick",
    parent: str | None = None,
    store: Store | None = None,
    threads: int | None = None,
    listen: Listener = silent,
) -> tuple[Model, list[Measurement]]:
    """Measure a model against the one that it was made from, and keep the figures in its lineage.

    Args:
        model: a reference, or a model that was found before.
        amount: "quick" or "full": how much text is read and how often the model answers; "none" measures nothing.
        parent: what to compare with; None: what its lineage names.
        store: where names are looked up; None = the user's store.
        threads: of each engine; None = all cores.
        listen: hears progress.

    Returns:
        The model with its new lineage, and what was measured.

    Raises:
        UnknownName: there is no such model or parent.
        UsageError: the model is used in place or behind an address, so that nothing can be kept with it.
    """
    store = store or Store()
    found = find_model(model, store) if isinstance(model, str) else model
    if amount == "none":
        return found, []
    if not isinstance(parse_reference(found.name), NameRef):
        raise UsageError(f"{found.name} is not in the store; `sizewise pull` keeps it under a name")
    base = find_model(parent, store) if parent else parent_of(found, store)
    reference = _readable(base, found, listen)
    measured = account(
        found, base, texts(amount), amount=amount, reference=reference, store=store, threads=threads, listen=listen
    )
    return add_figures(found, {KEY: [one.as_json() for one in measured]}, store), measured


def texts(amount: Amount) -> Sequence[Corpus]:
    """What models are judged on: a text of the kind that methods calibrate on, and one that is not."""
    characters = CHARACTERS[amount]
    return corpus("mixed", read_texts(OWN), characters), speeches(characters)


def parent_of(model: Model, store: Store) -> Model | None:
    """The model that this one was made from, if it is still there and unchanged."""
    name, digest = model.lineage.parent_name, model.lineage.parent_digest
    if not name:
        return None
    try:
        found = find_model(name, store)
    except SizewiseError:  # renamed or removed: the digest finds it under another name
        found = None
    if found and found.digest == digest:
        return found
    return next((one for one in list_models(store) if one.digest == digest), None)


def _readable(parent: Model | None, child: Model, listen: Listener) -> Model | None:
    """The parent for the child's engine, so that what is compared are weights and not engines."""
    if parent is None or (parent.kind, child.kind) != ("gguf", "checkpoint"):
        return parent
    folder, _ = checkpoint_of(parent, Path(), listen)
    return find_model(str(folder))
