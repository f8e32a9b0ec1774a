"""The parameters that a model can carry and a request can set, by Ollama's names: their types and bounds."""

import difflib
import math
from dataclasses import dataclass
from typing import Any

from sizewise.core.errors import UsageError


@dataclass(frozen=True, slots=True)
class Parameter:
    """What a parameter holds. `above`: the lower bound itself is excluded."""

    type: type
    low: float = -math.inf
    high: float = math.inf
    above: bool = False


_COUNT = Parameter(int, 0, 2**31 - 1)
PARAMETERS = {
    "num_ctx": Parameter(int, 1, 2**31 - 1),
    "num_batch": Parameter(int, 1, 2**31 - 1),
    "num_gpu": Parameter(int, -1, 2**31 - 1),
    "main_gpu": _COUNT,
    "use_mmap": Parameter(bool),
    "num_thread": _COUNT,
    "num_keep": Parameter(int, -1, 2**31 - 1),
    "seed": Parameter(int, -1, 2**63 - 1),
    "num_predict": Parameter(int, -2, 2**53),
    "top_k": _COUNT,
    "top_p": Parameter(float, 0, 1, above=True),
    "min_p": Parameter(float, 0, 1),
    "typical_p": Parameter(float, 0, 1, above=True),
    "repeat_last_n": Parameter(int, -1, 2**31 - 1),
    "repeat_penalty": Parameter(float, 0, 1000, above=True),
    "temperature": Parameter(float, 0, 1000),
    "presence_penalty": Parameter(float, -2, 2),
    "frequency_penalty": Parameter(float, -2, 2),
    "stop": Parameter(str),
    "draft_num_predict": _COUNT,
}
# Clients and old Modelfiles still set these; no engine of today reads them.
DEPRECATED = frozenset(
    {
        *("numa", "low_vram", "f16_kv", "logits_all", "vocab_only", "use_mlock", "embedding_only", "tfs_z"),
        *("mirostat", "mirostat_tau", "mirostat_eta", "penalize_newline"),
    }
)
_STOPS, _STOP_LENGTH = 16, 256


def unknown_parameter(name: str) -> str:
    """What to say of a parameter that does not exist."""
    close = difflib.get_close_matches(name, PARAMETERS, n=1, cutoff=0.5)
    return f"unknown parameter {name[:80]!r}" + (f"; did you mean {close[0]!r}?" if close else "")


def parameter_from_text(name: str, text: str) -> Any:
    """The value that a text says.

    Raises:
        UsageError: there is no such parameter, or the text is no such value.
    """
    if name not in PARAMETERS:
        raise UsageError(unknown_parameter(name))
    kind = PARAMETERS[name].type
    value: Any = text
    if kind is bool:
        value = {"true": True, "1": True, "false": False, "0": False}.get(text.lower(), text)
    elif kind is not str:
        try:
            value = int(text) if kind is int else float(text)
        except ValueError:
            value = text
    return check_parameter(name, [value] if name == "stop" else value)


def check_parameter(name: str, value: Any) -> Any:
    """The value, if the parameter can have it; whole numbers may come as 5.0.

    Raises:
        UsageError: there is no such parameter, or the value has another type or lies out of bounds.
    """
    if name not in PARAMETERS:
        raise UsageError(unknown_parameter(name))
    if name == "stop":
        return _stops(value)
    rule = PARAMETERS[name]
    if rule.type is bool:
        if not isinstance(value, bool):
            raise UsageError(f"{name} must be true or false, not {value!r:.60}")
        return value
    whole = not isinstance(value, bool) and isinstance(value, int | float) and math.isfinite(value)
    if rule.type is int and not (whole and value == int(value)):
        raise UsageError(f"{name} must be a whole number, not {value!r:.60}")
    if not whole:
        raise UsageError(f"{name} must be a number, not {value!r:.60}")
    if not rule.low <= value <= rule.high or (rule.above and value == rule.low):
        start = f"more than {rule.low:g}" if rule.above else f"{rule.low:g}"
        raise UsageError(f"{name} is {value:g}; expected {start} to {rule.high:g}")
    return rule.type(value)


def _stops(value: Any) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f"stop must be a text or a list of texts, not {value!r:.60}")
    if len(texts) > _STOPS or any(not 0 < len(text.encode()) <= _STOP_LENGTH for text in texts):
        raise UsageError(f"stop takes at most {_STOPS} texts of 1 to {_STOP_LENGTH} bytes each")
    return list(texts)


def check_parameters(values: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Parameters as they are stored, and a warning for each that has no effect any more. A null says nothing.

    Raises:
        UsageError: one is unknown, or holds what it cannot.
    """
    told = {name: value for name, value in values.items() if value is not None}
    warnings = [f"parameter {name} has no effect any more" for name in told if name in DEPRECATED]
    return {name: check_parameter(name, value) for name, value in told.items() if name not in DEPRECATED}, warnings
