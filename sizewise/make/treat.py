"""A weight method applied to all matrices of one block.

Values are an exception. Attention adds up the values of many tokens, half of it often that of the first token alone,
whose input is like no other. In a mean over tokens that one counts for next to nothing, and errors that are repaired on
average are then not repaired there. So methods that repair errors see only how loud each input of a value matrix is, or
of the rows for values of a matrix that q and k share with them.
"""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sizewise.core.allocator import returning_at_once
from sizewise.core.errors import BadModel, SizewiseError, UsageError
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import Block, Layout, Linear
from sizewise.make.fold import divide, outlet_of
from sizewise.make.method import INPUT_STATISTICS, purpose_of, wants
from sizewise.make.packed import Packed, Scaled, joined
from sizewise.make.statistics import Seen

if TYPE_CHECKING:
    from torch import Tensor

VALUES = ("v", "qkv")
PARTS = ("q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down")


@dataclass(frozen=True, slots=True)
class Treatment:
    """A method with its options, and what it applies to."""

    method: str
    function: Callable[..., Any]
    options: dict[str, Any]
    roles: frozenset[str] = frozenset(PARTS)
    per_matrix: Mapping[str, dict[str, Any]] = field(default_factory=dict)  # options that differ, by matrix

    def options_of(self, name: str) -> dict[str, Any]:
        """The options for one matrix."""
        return self.options | self.per_matrix.get(name, {})


@dataclass(slots=True)
class Treated:
    """A block after the method: tensors by their names in the files (matrices as (out, in)), small forms by module."""

    tensors: "dict[str, Tensor]"
    packed: dict[str, Packed] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    error: float = 0.0  # what the changes do to the matrices' outputs, inputs taken as unrelated
    energy: float = 0.0  # the same measure of the outputs themselves


def treat(
    treatment: Treatment,
    source: TensorSource,
    layout: Layout,
    block: Block,
    seen: list[Seen],
    gradients: "Mapping[str, Tensor] | None" = None,
    activation: str = "",
) -> Treated:
    """Apply a method to a block's matrices.

    Args:
        treatment: the method.
        source: the model's tensors.
        layout: the model's parts.
        block: which of its blocks.
        seen: what the matrices saw; empty for methods that want no statistics.
        gradients: (out, in) by matrix, for methods that want them.
        activation: config's name of the feed-forward's activation.

    Raises:
        BadModel: weights are not finite numbers.
        UsageError: the method refuses a matrix; the message names it.
    """
    import torch

    with torch.no_grad(), returning_at_once(), warnings.catch_warnings(record=True) as caught:
        job = _Job(treatment, layout, block, gradients or {}, activation, Treated(read_block(source, block)))
        warnings.simplefilter("always")
        if "weights" in wants(treatment.function):
            for group in reversed(seen):  # so that a scale moves into matrices that are not rounded yet
                job.together(group)
        else:
            by_name = {name: group for group in seen for name in group.names}
            for linear in block.linears:
                job.alone(linear, by_name.get(linear.name))
    prefix = f"block {block.index}: " if block.norms else f"{block.prefix}: "
    job.made.warnings += [prefix + str(one.message) for one in caught if issubclass(one.category, UserWarning)]
    return job.made


@dataclass(slots=True)
class _Job:
    treatment: Treatment
    layout: Layout
    block: Block
    gradients: "Mapping[str, Tensor]"
    activation: str
    made: Treated

    def alone(self, linear: Linear, seen: Seen | None) -> None:
        """Change one matrix."""
        if linear.role not in self.treatment.roles:
            return
        weight = self.made.tensors[linear.weight]
        function = self.treatment.function
        repairs = "hessian" in wants(function) and purpose_of(function) != "Factorize"
        results = []
        places = _values_apart(linear) if repairs else [(slice(None), False)]
        for rows, values in places:
            given = [self._wanted(name, linear, weight[rows], seen, values) for name in wants(function)]
            results.append(self._call(linear.name, function, given))
        self._keep(linear, weight, joined(results, [rows for rows, _ in places]), seen)

    def together(self, seen: Seen) -> None:
        """Change the matrices that share an input, and scale that input."""
        members = [linear for linear in self.block.linears if linear.name in seen.names]
        chosen = [linear for linear in members if linear.role in self.treatment.roles]
        if not chosen:
            return
        outlet = outlet_of(self.layout, self.block, seen.names, seen.norm, self.activation)
        scalable = outlet is not None and len(chosen) == len(members)
        weights = [self.made.tensors[linear.weight] for linear in chosen]
        special = {
            "weights": weights,
            "roles": tuple(linear.role for linear in chosen),
            "scalable": scalable,
        }
        function = self.treatment.function
        given = [
            special[name] if name in special else self._statistic(name, chosen[0], seen) for name in wants(function)
        ]
        result: Scaled = self._call(chosen[0].name, function, given)
        for linear, weight, part in zip(chosen, weights, result.parts, strict=True):
            self._keep(linear, weight, part, seen, result.scale)
        if scalable and outlet is not None and bool((result.scale != 1).any()):
            divide(self.made.tensors, outlet, result.scale, self.layout.norm_offset)

    def _wanted(self, name: str, linear: Linear, weight: "Tensor", seen: Seen | None, values: bool) -> Any:
        if name == "weight":
            return weight
        if name == "gradient":
            return self.gradients[linear.name]
        found = self._statistic(name, linear, seen)
        return found.diagonal().diag() if name == "hessian" and values else found

    def _statistic(self, name: str, linear: Linear, seen: Seen | None) -> "Tensor":
        if name not in INPUT_STATISTICS or seen is None:
            raise TypeError(f"{self.treatment.method} wants {name}, which was not gathered for {linear.name}")
        if not seen.tokens:
            warnings.warn(f"no calibration token came through {linear.name}: it was treated without data", stacklevel=2)
        return seen.mean(name)

    def _call(self, name: str, function: Callable[..., Any], given: list[Any]) -> Any:
        try:
            return function(*given, **self.treatment.options_of(name))
        except UsageError as error:
            raise UsageError(f"{name}: {error}") from error
        except SizewiseError as error:
            raise type(error)(f"{name}: {error}") from error

    def _keep(
        self, linear: Linear, old: "Tensor", result: Any, seen: Seen | None, scale: "Tensor | None" = None
    ) -> None:
        import torch

        result = result if isinstance(result, torch.Tensor) else result.stored()
        dense = result if isinstance(result, torch.Tensor) else result.dense()
        if not bool(torch.isfinite(dense).all()):
            raise BadModel(f"{linear.name}: {self.treatment.method} made numbers that are not finite")
        if not isinstance(result, torch.Tensor):
            self.made.packed[linear.name] = result
        self.made.tensors[linear.weight] = dense.to(old.dtype)
        loud = seen.mean("input_norm").square() if seen else torch.ones(old.shape[1])
        change = old - (dense if scale is None else dense / scale)
        self.made.error += float((change.square() * loud).sum(dtype=torch.float64))
        self.made.energy += float((old.square() * loud).sum(dtype=torch.float64))


def _values_apart(linear: Linear) -> "list[tuple[Any, bool]]":
    """The rows of a matrix that are treated together, and whether they make values."""
    import torch

    if linear.role != "qkv":
        return [(slice(None), linear.role == "v")]
    values = torch.cat([torch.full((count,), part == "v") for part, count in linear.rows])
    return [(~values, False), (values, True)]


def read_block(source: TensorSource, block: Block) -> "dict[str, Tensor]":
    """All tensors of a block by their names in the files, numbers in float32, matrices as (out, in).

    Raises:
        BadModel: one holds values that are not finite numbers.
    """
    import torch

    transposed = {linear.weight for linear in block.linears if linear.transposed}
    tensors = {}
    for name in source:
        if name.startswith(f"{block.prefix}."):
            tensor = source.get(name)
            if tensor.is_floating_point():
                tensor = tensor.to(torch.float32)
                if not bool(torch.isfinite(tensor).all()):
                    raise BadModel(f"tensor {name} holds values that are not finite numbers; get the model again")
            tensors[name] = tensor.T.contiguous() if name in transposed else tensor
    return tensors
