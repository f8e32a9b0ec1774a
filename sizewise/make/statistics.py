"""What a block's matrices see: sums over the calibration tokens, taken while the network's own code runs.

Every multiplication by a known matrix is watched (the names of `method.INPUT_STATISTICS`), whether a Linear, a Conv1D
or one slice of many experts does it. Matrices that get one and the same input share their sums; which norm that input
comes from is noted, since a scale of the input can be moved there. Sums of features are float64, a Hessian is a mean in
float32.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sizewise.load.layers import Block
from sizewise.make.stream import matrices

if TYPE_CHECKING:
    from torch import Tensor, nn

SUMS = ("input_norm", "abs_mean", "abs_max", "window_abs")


@dataclass(slots=True)
class Seen:
    """What one input carried. `names` are the matrices that it goes through."""

    names: tuple[str, ...]
    norm: str | None = None  # the module that made this input, if it is a norm of the block
    tokens: int = 0
    windows: int = 0  # how many were whole, which those that a router picked tokens from are not
    sums: "dict[str, Tensor]" = field(default_factory=dict)

    def mean(self, statistic: str) -> "Tensor":
        """A statistic of `method.INPUT_STATISTICS` in float32; zeros where no token came by."""
        total = self.sums[statistic]
        if statistic in ("abs_max", "hessian"):  # a Hessian is large: it was divided where it was summed
            return total.float()
        average = total / max(self.windows if statistic == "window_abs" else self.tokens, 1)
        return (average.sqrt() if statistic in ("input_norm", "window_abs") else average).float()


class Observer:
    """Watches one loaded block."""

    def __init__(self, module: "nn.Module", spec: Block, *, hessian: bool) -> None:
        """Watch nothing yet.

        Args:
            module: the block, with weights.
            spec: what it holds.
            hessian: whether to sum x xT too.
        """
        self.module, self.spec, self.hessian = module, spec, hessian
        self.seen: dict[str, Seen] = {}  # by the first of the names
        self._names: dict[int, tuple[str, ...]] = {}
        self._of: dict[str, str] = {}  # matrix -> the first name of its group
        self._alive: list[Any] = []  # inputs met for the first time, kept so that no address is used twice in a batch
        self._address: dict[tuple[int, int], str] = {}
        self._batch = 1
        for name, weight in matrices(dict(module.named_parameters()), spec).items():
            self._names[weight.data_ptr()] = (name,)
        self._join_experts()

    def groups(self) -> list[Seen]:
        """Everything seen, in the order of the block's matrices; of experts that no token chose, zeros."""
        import torch

        for linear in self.spec.linears:
            if linear.name not in self._of:
                self._of[linear.name] = linear.name
                self.seen[linear.name] = seen = Seen((linear.name,))
                self._prepare(seen, linear.shape[1], torch.device("cpu"))
        for seen in self.seen.values():
            if "hessian" in seen.sums:
                mirror(seen.sums["hessian"])
                seen.sums["hessian"] /= max(seen.tokens, 1)
        order = {linear.name: place for place, linear in enumerate(self.spec.linears)}
        return sorted(self.seen.values(), key=lambda seen: order[seen.names[0]])

    @contextmanager
    def watching(self, windows: int) -> Iterator[None]:
        """Watch what runs within this context, a batch of so many windows."""
        self._batch = windows
        norms = () if self._of else self.spec.norms  # after the first batch it is known who feeds whom
        handles = [self._norm(name).register_forward_hook(self._made_by(name)) for name in norms]
        try:
            with _watch()(self._look):
                yield
        finally:
            for handle in handles:
                handle.remove()
            self._address.clear()
            self._alive.clear()

    def _norm(self, name: str) -> "nn.Module":
        return self.module.get_submodule(name.removeprefix(f"{self.spec.prefix}."))

    def _made_by(self, name: str) -> Any:
        def hook(_: Any, __: Any, output: "Tensor") -> None:
            self._alive.append(output)
            self._address[output.data_ptr(), output.numel()] = name

        return hook

    def _look(self, func: Any, args: tuple[Any, ...]) -> None:
        place = _products().get(func)
        if place is None or len(args) <= place:
            return
        weight, inputs = args[place], args[place - 1]
        names = self._names.get(weight.data_ptr()) if weight.dim() == 2 else None
        if names:
            self._add(names, inputs)

    def _add(self, names: tuple[str, ...], inputs: "Tensor") -> None:
        first = self._group_of(names, inputs)
        if first != names[0]:
            return  # another matrix has counted this input already
        seen = self.seen[first]
        rows = inputs.detach().reshape(-1, inputs.shape[-1]).float()
        if not seen.sums:
            self._prepare(seen, rows.shape[1], rows.device)
        seen.tokens += len(rows)
        whole = len(rows) % self._batch == 0  # windows: not where a router picked tokens
        parts = self._batch if whole else 1
        # float32 within a window, float64 beyond: summing all in float64 took as long as the network itself
        size = rows.abs().reshape(parts, -1, rows.shape[1])
        by_window = size.sum(1).double()
        seen.sums["abs_mean"] += by_window.sum(0)
        if len(rows):
            seen.sums["abs_max"] = seen.sums["abs_max"].maximum(size.amax((0, 1)))
        if whole and len(rows):
            seen.sums["window_abs"] += (by_window / size.shape[1]).square().sum(0)
            seen.windows += self._batch
        seen.sums["input_norm"] += size.square_().sum(1).double().sum(0)
        if self.hessian:
            add_products(seen.sums["hessian"], rows)

    def _group_of(self, names: tuple[str, ...], inputs: "Tensor") -> str:
        """The first matrix that got this very input. Decided once, in the first batch."""
        if names[0] in self._of:
            return self._of[names[0]]
        key = (inputs.data_ptr(), inputs.numel())
        made = self._address.get(key)
        if made is not None and made in self.seen:
            group = self.seen[made]
            group.names += names
            self._of |= dict.fromkeys(names, made)
            return made
        self.seen[names[0]] = Seen(names, norm=made)
        self._of |= dict.fromkeys(names, names[0])
        self._address[key] = names[0]
        self._alive.append(inputs)
        return names[0]

    def _prepare(self, seen: Seen, width: int, device: Any) -> None:
        import torch

        for name in ("input_norm", "abs_mean", "window_abs"):
            seen.sums[name] = torch.zeros(width, dtype=torch.float64, device=device)
        seen.sums["abs_max"] = torch.zeros(width, device=device)
        if self.hessian:
            seen.sums["hessian"] = torch.zeros(width, width, device=device)

    def _join_experts(self) -> None:
        """Gate and up of one expert are multiplied in one go: the call is seen at the gate's address."""
        ups = {linear.expert: linear.name for linear in self.spec.of("up") if linear.expert is not None}
        gates = {linear.name: linear.expert for linear in self.spec.of("gate") if linear.expert is not None}
        for address, names in self._names.items():
            if names[0] in gates:
                self._names[address] = (names[0], ups[gates[names[0]]])


@functools.cache
def _watch() -> Any:
    """A context that shows each call of a torch function to a listener.

    The class is made once: one made in each context would be a cycle that keeps its observer, sums and all, alive until
    the garbage collector comes by.
    """
    from torch.overrides import TorchFunctionMode

    class Watch(TorchFunctionMode):
        def __init__(self, listen: Callable[[Any, tuple[Any, ...]], None]) -> None:
            super().__init__()
            self.listen = listen

        def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            self.listen(func, args)
            return func(*args, **(kwargs or {}))

    return Watch


def _products() -> "Mapping[Any, int]":
    """Functions that multiply by a matrix -> place of the matrix among their arguments; the input precedes it."""
    import torch

    return {torch.nn.functional.linear: 1, torch.addmm: 2, torch.Tensor.matmul: 1, torch.matmul: 1}


def _strips(width: int) -> list[slice]:
    """Cuts of the rows of a symmetric matrix; the upper half of each strip is worked on."""
    step = max(256, -(-width // 8))
    return [slice(start, min(start + step, width)) for start in range(0, width, step)]


def add_products(total: "Tensor", rows: "Tensor") -> None:
    """Add x xT of each row to the upper half of `total`: little more than half the work of the whole product."""
    for strip in _strips(rows.shape[1]):
        total[strip, strip.start :].addmm_(rows[:, strip].T, rows[:, strip.start :])


def mirror(total: "Tensor") -> None:
    """Fill the lower half from the upper."""
    for strip in _strips(len(total)):
        total[strip.stop :, strip] = total[strip, strip.stop :].T
