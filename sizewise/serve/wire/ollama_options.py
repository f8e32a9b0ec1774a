"""Ollama's `options`: how tokens are drawn, from the request, else stored with the model, else Ollama's defaults."""

from collections.abc import Callable, Mapping
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Draw
from sizewise.serve.wire import limits

MOST_CONTEXT = 1 << 25  # tokens; no model comes near
_MOST_TOKENS = 2**31 - 1
_Read = Callable[[Fields, str], Any]


def _integer(low: int, high: int = _MOST_TOKENS) -> _Read:
    return lambda fields, key: fields.integer(key, None, low=low, high=high)


def _number(low: float, high: float, *, above: bool = False) -> _Read:
    return lambda fields, key: fields.number(key, None, low=low, high=high, above=above)


def _boolean(fields: Fields, key: str) -> Any:
    return fields.boolean(key, None)


def _limit(fields: Fields, key: str) -> int | None:
    """`num_predict`: -1 and -2 mean "as many as fit", and so does a number beyond all contexts."""
    value: int | None = fields.integer(key, None, low=-2)
    if value == 0:
        raise BadField(fields.name(key), "is 0; expected at least 1, or -1 for as many as fit")
    return None if value is None else min(value, _MOST_TOKENS)


_EFFECTIVE: dict[str, _Read] = {
    "num_ctx": _integer(1, MOST_CONTEXT),
    "num_keep": _integer(0),
    "num_predict": _limit,
    "seed": _integer(-1, 2**63 - 1),
    "temperature": _number(0, 100),
    "top_k": _integer(0),
    "top_p": _number(0, 1, above=True),
    "min_p": _number(0, 1),
    "typical_p": _number(0, 1, above=True),
    "repeat_last_n": _integer(-1),
    "repeat_penalty": _number(0, 100, above=True),
    "presence_penalty": _number(-100, 100),
    "frequency_penalty": _number(-100, 100),
    "stop": limits.stops,
}
# Known to Ollama, without effect here. The value that asks for nothing passes silently.
_IDLE: dict[str, tuple[_Read, Any]] = {
    "num_batch": (_integer(1), None),
    "num_gpu": (_integer(-1), None),
    "main_gpu": (_integer(0), 0),
    "num_thread": (_integer(0), 0),
    "draft_num_predict": (_integer(-1), 0),
    "use_mmap": (_boolean, True),
    "use_mlock": (_boolean, False),
    "numa": (_boolean, False),
    "low_vram": (_boolean, False),
    "f16_kv": (_boolean, True),
    "logits_all": (_boolean, False),
    "vocab_only": (_boolean, False),
    "embedding_only": (_boolean, False),
    "penalize_newline": (_boolean, False),
    "tfs_z": (_number(0, 1e6), 1.0),
    "mirostat": (_integer(0, 2), 0),
    "mirostat_tau": (_number(0, 1e6), None),
    "mirostat_eta": (_number(0, 1e6), None),
}


def read_options(fields: Fields, key: str = "options") -> dict[str, Any]:
    """The options that are set, checked. Unknown ones, and known ones without effect here, are named in warnings.

    Raises:
        BadField: a value has the wrong type or lies outside its range.
    """
    inner = Fields(fields.mapping(key, {}), fields.name(key))
    found = {name: read(inner, name) for name, read in _EFFECTIVE.items()}
    for name, (read, silent) in _IDLE.items():
        value = read(inner, name)
        if value is not None and value != silent:
            inner.warn(f"{inner.name(name)} has no effect here")
    inner.finish(refuse=False)
    for warning in inner.warnings:
        fields.warn(warning)
    return {name: value for name, value in found.items() if value is not None}


def stored_options(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options stored with a model. What cannot be understood there counts as not said: no caller can mend it."""
    found = {}
    for name in _EFFECTIVE:
        try:
            value = _EFFECTIVE[name](Fields(dict(defaults)), name)
        except UsageError:
            continue
        if value is not None:
            found[name] = value
    return found


def draw_of(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Draw:
    """How to draw: each value from the request, else from the model, else Ollama's own default (those of `Draw`)."""
    said = {**stored_options(defaults), **options}
    limit, seed = said.pop("num_predict", -1), said.pop("seed", -1)
    said.pop("num_ctx", None)
    return Draw(
        max_tokens=limit if limit > 0 else None,
        seed=seed if seed >= 0 else None,
        stop=tuple(said.pop("stop", ())),
        keep=said.pop("num_keep", 0),
        **said,
    )
