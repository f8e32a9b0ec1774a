"""What a method is: a function that makes a model. The decorators only mark it; the signature says the rest.

    @model_method                                 base and out are given, a whole model comes back
    def quantize_gguf(base: Model, out: Path, *, type: ... = "Q4_K_M") -> Made

    @head_method                                  texts, labels, embeddings: what the names ask for is gathered
    def head_tfidf(texts: Sequence[str], labels: Sequence[str], *, c: ... = 1.0) -> LinearModel

Positional parameters name what a method wants, keyword-only parameters are its options (see `core.params`). Whatever
else a method needs, it does not get: neither store nor printing, so that it can be tested as a plain function.
"""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, ParamSpec, TypeVar

from sizewise.core.model import ModelKind
from sizewise.core.registry import Registry

MethodKind = Literal["model", "head"]

P = ParamSpec("P")
R = TypeVar("R")

# What can be asked for. model: the base model, a folder to write in, the seed, who listens to progress.
# head: the training texts, their labels, the base encoder's (n, width) embeddings of them, the seed.
WANTED: dict[MethodKind, frozenset[str]] = {
    "model": frozenset({"base", "out", "seed", "listen"}),
    "head": frozenset({"texts", "labels", "embeddings", "seed"}),
}


@dataclass(frozen=True, slots=True)
class Made:
    """What a model method leaves: files in its folder and what is known of them; `make` gives them a name."""

    kind: ModelKind
    files: dict[str, Path]  # name in the model -> path, as in `Model.files`
    quantization: str = ""
    parameters: int | None = None
    figures: dict[str, Any] = field(default_factory=dict)  # numbers about the making, for the lineage
    note: str = ""  # what a reader must know to judge the result, for the lineage
    architecture: str = ""  # "" = that of the base


def model_method(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that turns one model into another."""
    return _mark(function, "model")


def head_method(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that fits a linear model to labelled texts."""
    return _mark(function, "head")


def kind_of(function: Callable[..., Any]) -> MethodKind:
    """The kind that a method was marked with."""
    kind: MethodKind | None = getattr(function, "method_kind", None)
    if kind is None:
        raise TypeError(f"{function!r} is no method: mark it with a decorator of make.method")
    return kind


def wants(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a method's positional parameters, in order."""
    parameters = inspect.signature(function).parameters.values()
    return tuple(item.name for item in parameters if item.kind is not inspect.Parameter.KEYWORD_ONLY)


def methods() -> Registry:
    """All methods, one for each file of `make/methods`."""
    return Registry("method", "sizewise.make.methods", Path(__file__).parent / "methods")


def _mark(function: Callable[P, R], kind: MethodKind) -> Callable[P, R]:
    unknown = set(wants(function)) - WANTED[kind]
    if unknown:
        raise TypeError(f"{function.__name__}: {sorted(unknown)} cannot be given; known: {sorted(WANTED[kind])}")
    function.method_kind = kind  # type: ignore[attr-defined]
    return function
