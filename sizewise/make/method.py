"""What a method is: a function that makes a model. The decorators only mark it; the signature says the rest.

    @weight_method                                one matrix and what was seen of its inputs, a new matrix comes back
    def wanda(weight: Tensor, input_norm: Tensor, *, sparsity: ... = 0.5) -> Tensor

    @structure_method                             the layout and all tensors, a new shape of the network comes back
    def depth(layout: Layout, config: dict, tensors: Tensors, block_influence: Tensor, *, drop: ... = 1) -> Reshaped

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

MethodKind = Literal["weight", "structure", "model", "head"]

P = ParamSpec("P")
R = TypeVar("R")

# What a matrix saw during calibration; `in` counts its input features.
INPUT_STATISTICS = {
    "input_norm": "(in,), root of the mean square of each input feature over the calibration tokens",
    "abs_mean": "(in,), mean |x| of each input feature",
    "abs_max": "(in,), largest |x| of each input feature",
    "hessian": "(in, in), mean of x xT over the calibration tokens",
    "gradient": "(out, in), root of the mean square of the loss's gradient over the calibration windows",
}
# What the network as a whole did during calibration. n blocks, b boundaries between blocks (b = n + 1).
NETWORK_STATISTICS = {
    "block_influence": "(n,), 1 - mean cosine of what enters and what leaves each block (ShortGPT)",
    "angular": "(b, b), mean angle / pi between two boundaries' hidden states, last token of each window (Gromov)",
    "head_activation": "(n, heads), norm of each head's output before the output projection (Minitron)",
    "channel_activation": "(n, ffn), norm of each feed-forward channel (Minitron)",
    "hidden_activation": "(hidden,), norm of each hidden channel after the norms, over all blocks (Minitron)",
    "attention_gram": "(n, hidden, hidden), mean of x xT of the residual stream before each attention",
    "ffn_gram": "(n, hidden, hidden), mean of x xT of the residual stream before each feed-forward",
    "final_gram": "(hidden, hidden), mean of x xT of the residual stream after the last block",
}

# What can be asked for. weight: one matrix in float32 as (out, in), or `weights`, all that share one input, their roles
# ("q", "up", ...), and whether something before them can absorb a scale of that input.
# structure: the layout, config.json as a dict, a mapping from names to tensors that reads when asked, the calibration
# texts, their tokens, the tokenizer's folder.
# model: the base model, a folder to write in, the seed, who listens to progress; the base unpacked into a checkpoint
# folder and calibration text in tokens, which only methods that want `calibration` get.
# head: the training texts, their labels, the base encoder's (n, width) embeddings of them, the seed.
WANTED: dict[MethodKind, frozenset[str]] = {
    "weight": frozenset({"weight", "weights", "roles", "scalable", "seed", *INPUT_STATISTICS}),
    "structure": frozenset({"layout", "config", "tensors", "texts", "tokens", "folder", "seed", *NETWORK_STATISTICS}),
    "model": frozenset({"base", "out", "seed", "listen", "checkpoint", "calibration"}),
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


def weight_method(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that turns one matrix (or the matrices that share one input) into a smaller form of it."""
    return _mark(function, "weight")


def structure_method(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function that turns the tensors of a network into those of a network of another shape."""
    return _mark(function, "structure")


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


def statistics_of(function: Callable[..., Any]) -> tuple[str, ...]:
    """Those of a method's wants that are gathered from calibration text, in order."""
    return tuple(name for name in wants(function) if name in INPUT_STATISTICS or name in NETWORK_STATISTICS)


def needs_calibration(function: Callable[..., Any]) -> bool:
    """True where the method cannot work without calibration text."""
    return bool(statistics_of(function) or {"texts", "tokens", "calibration"} & set(wants(function))) and (
        kind_of(function) != "head"
    )


def purpose_of(function: Callable[..., Any]) -> str:
    """What a weight method is for, the first word of its help: "Prune", "Quantize" or "Factorize"."""
    return (inspect.getdoc(function) or "").partition(":")[0]


def methods() -> Registry:
    """All methods, one for each file of `make/methods`."""
    return Registry("method", "sizewise.make.methods", Path(__file__).parent / "methods")


def _mark(function: Callable[P, R], kind: MethodKind) -> Callable[P, R]:
    unknown = set(wants(function)) - WANTED[kind]
    if unknown:
        raise TypeError(f"{function.__name__}: {sorted(unknown)} cannot be given; known: {sorted(WANTED[kind])}")
    function.method_kind = kind  # type: ignore[attr-defined]
    return function
