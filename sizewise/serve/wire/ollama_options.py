"""Ollama's `options`: how tokens are drawn, from the request, else stored with the model, else Ollama's defaults."""

from collections.abc import Mapping
from typing import Any

from sizewise.core.errors import UsageError
from sizewise.load.parameters import DEPRECATED, PARAMETERS, check_parameter
from sizewise.serve.body import BadField, Fields
from sizewise.serve.job import Draw

MOST_CONTEXT = 1 << 25  # tokens; no model comes near
_MOST_TOKENS = 2**31 - 1
# What the manager decides for all requests to a model, with the value that asks for nothing.
_DECIDED: dict[str, Any] = {
    "num_batch": None,
    "num_gpu": None,
    "main_gpu": 0,
    "num_thread": 0,
    "use_mmap": True,
    "draft_num_predict": 0,
}


def read_options(fields: Fields, key: str = "options") -> dict[str, Any]:
    """The options that are set, checked. Unknown ones, and known ones without effect here, are named in warnings.

    Raises:
        BadField: a value has the wrong type or lies outside its range.
    """
    inner = Fields(fields.mapping(key, {}), fields.name(key))
    found = {}
    for name in PARAMETERS:
        value = inner.raw(name)
        if value is None:  # clients send all options that they know, most of them null
            continue
        value = _checked(name, value, inner.name(name))
        if name not in _DECIDED:
            found[name] = value
        elif value != _DECIDED[name]:
            inner.warn(f"{inner.name(name)} has no effect here")
    inner.without_effect(sorted(DEPRECATED))
    inner.finish(refuse=False)
    for warning in inner.warnings:
        fields.warn(warning)
    return found


def stored_options(defaults: Mapping[str, Any]) -> dict[str, Any]:
    """The options stored with a model. What cannot be understood there counts as not said: no caller can mend it."""
    found = {}
    for name, value in defaults.items():
        try:
            if name not in _DECIDED and name in PARAMETERS:
                found[name] = _checked(name, value, name)
        except UsageError:
            continue
    return found


def draw_of(options: Mapping[str, Any], defaults: Mapping[str, Any]) -> Draw:
    """How to draw: each value from the request, else from the model, else Ollama's own default (those of `Draw`)."""
    said = {**stored_options(defaults), **options}
    limit, seed, keep = said.pop("num_predict", -1), said.pop("seed", -1), said.pop("num_keep", 0)
    said.pop("num_ctx", None)
    return Draw(
        max_tokens=min(limit, _MOST_TOKENS) if limit > 0 else None,  # -1 and -2: as many as fit
        seed=seed if seed >= 0 else None,
        stop=tuple(said.pop("stop", ())),
        keep=keep if keep >= 0 else _MOST_TOKENS,
        **said,
    )


def _checked(name: str, value: Any, field: str) -> Any:
    try:
        value = check_parameter(name, value)
    except UsageError as error:
        raise BadField(field, str(error).removeprefix(f"{name} ")) from error
    if name == "num_predict" and value == 0:
        raise BadField(field, "is 0; expected at least 1, or -1 for as many as fit")
    if name == "num_ctx" and value > MOST_CONTEXT:
        raise BadField(field, f"is {value}; expected 1 to {MOST_CONTEXT}")
    return value
