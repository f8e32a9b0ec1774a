"""What to try, in the order of the cost of trying it.

For a classification: the majority class, words (TF-IDF) and an encoder's embeddings, each under a logistic regression
that is trained here and kept in the store; then language models, smallest first, without and with worked examples. For
other kinds of task only language models: a linear model has no words of its own.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from sizewise.core.digests import digest_of_json
from sizewise.core.errors import SizewiseError, StorageError, UnknownName, UsageError
from sizewise.core.events import Listener, silent
from sizewise.core.model import Model
from sizewise.core.task import Task
from sizewise.load.linear_model import LinearModel
from sizewise.load.models import find_model, list_models
from sizewise.load.pull import pull
from sizewise.load.store.store import Store
from sizewise.make.apply import make
from sizewise.pick.trial import CandidateKind, Trial

ENCODER = "minilm"  # the encoder that is pulled where the store has none
SHOTS = (0, 4, 8)
_FEW_ROWS = 500  # below it a word that occurs once is kept


@dataclass(frozen=True, slots=True)
class Order:
    """A model to be made: a head."""

    method: str
    kind: CandidateKind
    base: Model | None
    options: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Field:
    """Everything that will be tried: heads to make, models to prompt, and notes on what is missing."""

    orders: tuple[Order, ...]
    ready: tuple[Trial, ...]
    notes: tuple[str, ...]


def field_of(task: Task, models: Sequence[str] | None, store: Store, listen: Listener = silent) -> Field:
    """What there is to try.

    Args:
        task: with its train and development splits.
        models: references to models; None: every language model in the store, and an encoder, pulled if need be.
        store: where names are looked up and heads are kept.
        listen: hears the pull of an encoder.

    Raises:
        UnknownName: one of `models` is not there.
    """
    given = [find_model(name, store) for name in models] if models is not None else list_models(store)
    own = {head_name(task, kind) for kind in ("majority", "tfidf", "embedding")}
    notes: list[str] = []
    orders: list[Order] = []
    if task.kind == "classify" and task.splits.get("train"):
        encoders = [model for model in given if model.kind == "encoder"]
        if not encoders:
            encoders, note = _encoder(store, fetch=models is None, listen=listen)
            notes += [note] if note else []
        orders = _orders(task, encoders)
    elif task.kind == "classify":
        notes.append("no train rows: no linear model could be trained")
    prompted = sorted(
        (model for model in given if model.kind in ("gguf", "checkpoint", "endpoint")), key=_cost_of_trying
    )
    linear = [model for model in given if model.kind == "linear" and models is not None and model.name not in own]
    ready = [Trial(model, kind_of(model)) for model in linear if task.kind == "classify"]
    ready += [Trial(model, "prompted", shots) for model in prompted for shots in shots_for(task)]
    return Field(tuple(orders), tuple(ready), tuple(notes))


def shots_for(task: Task) -> tuple[int, ...]:
    """How many worked examples to try. Long answers gain little from them and cost much context."""
    few = SHOTS if task.kind in ("classify", "choose") else (0,)
    rows = len(task.splits.get("train", ()))
    return tuple(sorted(shots for shots in {*few, task.shots} if shots <= rows))


def kind_of(model: Model) -> CandidateKind:
    """The kind of a stored linear model."""
    return cast(CandidateKind, LinearModel.load(model.files).kind)


def head_name(task: Task, kind: str) -> str:
    """Under which name a head is kept: `sentiment-tfidf`."""
    bare = re.sub(r"[^a-z0-9_.-]+", "-", task.name.lower()).strip("-.") or "task"
    return f"{bare[:60]}-{kind}"


def made(order: Order, task: Task, seed: int, store: Store, listen: Listener = silent) -> Model:
    """Make a head, unless the store has this very one.

    Raises:
        SizewiseError: it cannot be made: no word is common, the encoder does not run, there is no room.
    """
    name = _free_name(order, task, store)
    kept = _kept(name, order, task, seed, store)
    if kept:
        return kept
    base = order.base.name if order.base else None
    return make(order.method, base, name=name, options=order.options, task=task, seed=seed, store=store, listen=listen)


def _orders(task: Task, encoders: Sequence[Model]) -> list[Order]:
    rows = len(task.splits["train"])
    orders = [
        Order("head-majority", "majority", None, {}),
        Order("head-tfidf", "tfidf", None, {"min_df": 1 if rows < _FEW_ROWS else 2}),
    ]
    return orders + [Order("head-embedding", "embedding", encoder, {}) for encoder in encoders[:1]]


def _encoder(store: Store, *, fetch: bool, listen: Listener) -> tuple[list[Model], str]:
    """The store's smallest encoder; where it has none, one that is pulled."""
    found = sorted(
        (model for model in list_models(store) if model.kind == "encoder"), key=lambda model: model.size_bytes
    )
    if found or not fetch:
        return found[:1], ""
    try:
        return [pull(ENCODER, store=store, listen=listen)], ""
    except StorageError:
        raise
    except SizewiseError as error:
        return [], f"no encoder was tried: {error}"


def _cost_of_trying(model: Model) -> tuple[bool, int, str]:
    return model.kind == "endpoint", model.size_bytes, model.name


def _free_name(order: Order, task: Task, store: Store) -> str:
    """A name that holds nothing, or an earlier head of this kind; what somebody else made is left alone."""
    name = head_name(task, order.kind)
    try:
        recipe = find_model(name, store).lineage.recipe
    except UnknownName:
        return name
    except (UsageError, StorageError):  # damaged: making it again mends it
        return name
    return name if recipe and recipe.steps[-1].method == order.method else f"{name}-of-fit"


def _kept(name: str, order: Order, task: Task, seed: int, store: Store) -> Model | None:
    """The model of that name, if it was made by this order from these rows."""
    try:
        model = find_model(name, store)
    except SizewiseError:
        return None
    lineage = model.lineage
    rows = [[item.input, item.expected] for item in task.splits["train"]]
    step = lineage.recipe.steps[-1] if lineage.recipe else None
    same = (
        step is not None
        and lineage.recipe is not None
        and step.method == order.method
        and all(step.options.get(key) == value for key, value in _all_options(order).items())
        and lineage.recipe.seed == seed
        and lineage.data_digest == digest_of_json(rows)
        and lineage.parent_digest == (order.base.digest if order.base else None)
    )
    return model if same else None


def _all_options(order: Order) -> dict[str, Any]:
    from sizewise.core.params import validate
    from sizewise.make.method import methods

    return validate(methods().get(order.method), order.options, order.method)
