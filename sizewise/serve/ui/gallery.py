"""What the page shows of models: size, quality with its interval, votes, and what was made of what."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sizewise.core.model import Model
from sizewise.core.recipe import Lineage
from sizewise.core.references import parse_name
from sizewise.core.results import Interval
from sizewise.load.models import list_models
from sizewise.load.store.store import Store
from sizewise.measure.ledger import Finished, Ledger
from sizewise.measure.votes import Tally, tallies
from sizewise.pick.report.answers import clean
from sizewise.pick.report.figures import measurement_text
from sizewise.pick.report.numbers import quantity_text, scale_of

_LONGEST = 200
_CHATS = ("gguf", "checkpoint", "linear")
_ENCODERS = ("bert", "nomic-bert", "jina-bert", "roberta", "xlm-roberta", "modernbert", "t5encoder")


def gallery(store: Store, ledger_file: Path) -> dict[str, Any]:
    """All models of the store with what was measured of them, and all evaluations."""
    models = list_models(store)
    finished, votes = _measured(ledger_file)
    by_model: dict[str, list[Finished]] = {}
    for each in finished:
        by_model.setdefault(each.key.model_digest, []).append(each)
    return {
        "models": [_model(model, store, by_model.get(model.digest, ()), votes.get(model.digest)) for model in models],
        "evaluations": evaluations(finished),
    }


def _measured(path: Path) -> tuple[list[Finished], dict[str, Tally]]:
    if not path.exists():  # looking at the page does not make a ledger
        return [], {}
    with Ledger(path) as ledger:
        return ledger.finished(), tallies(ledger)


def _model(model: Model, store: Store, finished: Sequence[Finished], votes: Tally | None) -> dict[str, Any]:
    return {
        "name": model.name,
        "kind": model.kind,
        "digest": model.digest,
        "bytes": model.size_bytes,
        "size": quantity_text(model.size_bytes, "bytes", 3),
        "parameters": model.parameters,
        "weights": measurement_text("parameters", "", model.parameters) if model.parameters else None,
        "bits_per_weight": model.bits_per_weight,
        "architecture": clean(model.architecture, _LONGEST),
        "quantization": clean(model.quantization, _LONGEST),
        "context_length": model.context_length,
        "license": clean(model.license.strip().partition("\n")[0], _LONGEST),
        "modified_at": _modified(model, store),
        "chats": model.kind in _CHATS and model.architecture not in _ENCODERS,
        "lineage": _lineage(model.lineage),
        "evaluations": evaluations(finished),
        "votes": votes_json(votes) if votes else None,
    }


def _modified(model: Model, store: Store) -> float | None:
    with contextlib.suppress(OSError, IndexError):
        return store.layout.entries(parse_name(model.name))[0].stat().st_mtime
    return None


def _lineage(lineage: Lineage) -> dict[str, Any]:
    steps = lineage.recipe.steps if lineage.recipe else ()
    return {
        "parent": lineage.parent_name,
        "parent_digest": lineage.parent_digest,
        "data": clean(lineage.data_name, _LONGEST) if lineage.data_name else None,
        "source": clean(lineage.source, _LONGEST) if lineage.source else None,
        "note": clean(lineage.note, _LONGEST),
        "made_by": clean(lineage.made_by, _LONGEST),
        "steps": [{"method": clean(step.method, 60), "options": _options(step.options)} for step in steps],
    }


def _options(options: dict[str, Any]) -> str:
    """What was asked of a method, in a line."""
    said = [
        f"{key.replace('_', ' ')} {value}" for key, value in options.items() if value not in (None, "", False, [], {})
    ]
    return clean(", ".join(said), 120)


def evaluations(finished: Sequence[Finished]) -> list[dict[str, Any]]:
    """Evaluations with their numbers as people read them; of one model, task and split that over the most items."""
    best: dict[tuple[str, ...], Finished] = {}
    for each in finished:
        identity = (each.key.model_digest, each.key.task_digest, each.split)
        if identity not in best or each.quality.n > best[identity].quality.n:
            best[identity] = each
    return [_evaluation(each) for each in best.values()]


def _evaluation(each: Finished) -> dict[str, Any]:
    scale = scale_of(each.metric)
    return {
        "model": clean(each.key.model, _LONGEST),
        "model_digest": each.key.model_digest,
        "task": clean(each.key.task, _LONGEST),
        "task_digest": each.key.task_digest,
        "split": each.split,
        "metric": each.metric,
        "higher_is_better": each.higher_is_better,
        "most": scale.best if each.higher_is_better else None,
        **_interval(each.quality),
        "text": scale.text(each.quality),
        "range": scale.range(each.quality) + scale.suffix,
        "unanswered": each.unanswered,
        "at": each.at,
    }


def votes_json(tally: Tally) -> dict[str, Any]:
    """How a model stands in votes, with its share in words."""
    counts = {"wins": tally.wins, "decided": tally.decided, "undecided": tally.undecided}
    if tally.rate is None:
        return counts
    scale = scale_of("share")
    text = f"{scale.value(tally.rate.value, 0)}{scale.suffix}"
    low, high = scale.value(tally.rate.low, 0), scale.value(tally.rate.high, 0)
    return counts | _interval(tally.rate) | {"text": text, "range": f"{low} to {high}{scale.suffix}"}


def _interval(interval: Interval) -> dict[str, Any]:
    return {"value": interval.value, "low": interval.low, "high": interval.high, "n": interval.n}
