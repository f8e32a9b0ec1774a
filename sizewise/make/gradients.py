"""How strongly the loss pulls at each weight: one backward pass, block by block, over stored hidden states.

Forward, the hidden states that enter every block are put on disk. Backward, from the last block to the first, each is
loaded, run again on its stored input with the gradient that came from above, and the squares of its matrices'
gradients are summed, window by window. Memory holds one block and its gradients.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from sizewise.core.events import Listener, Progress, silent
from sizewise.load.layers import Layout
from sizewise.load.store.atomic import publish, require_space, storage_errors, temporary
from sizewise.make.stream import Stream, matrices

if TYPE_CHECKING:
    from torch import Tensor

MOST_WINDOWS = 32  # gradients need few: the sum of squares over so many windows ranks weights as more would
_GRADIENT, _ENTERING = "gradient-{:05d}.safetensors", "entering-{:05d}.safetensors"
_OUTER = "gradient-outer.safetensors"


@dataclass(frozen=True, slots=True)
class Outer:
    """What the backward pass saw outside the blocks."""

    head: float  # mean over the tokens of sum p (1 - p), p being the model's probabilities of the next token
    embedding: "Tensor"  # (hidden,), mean square gradient of a window's summed loss at a token's embedding
    tokens: int  # of a window that have a loss


class Gradients:
    """Gradients of a model on calibration windows, kept in a folder."""

    def __init__(self, folder: Path, layout: Layout) -> None:
        self.folder, self.layout = folder, layout

    def block(self, index: int) -> "Mapping[str, Tensor]":
        """Root mean square of the gradient over the windows, (out, in) for each matrix of a block."""
        from safetensors.torch import load_file

        return load_file(self.folder / _GRADIENT.format(index))

    def outer(self) -> Outer:
        """What was seen outside the blocks."""
        from safetensors.torch import load_file

        found = load_file(self.folder / _OUTER)
        return Outer(float(found["head"]), found["embedding"], int(found["tokens"]))

    def gather(self, folder: Path, windows: "Tensor", listen: Listener = silent) -> None:
        """See to it that the gradients are there.

        Args:
            folder: the model, a checkpoint.
            windows: (n, window) token ids; the first 32 windows are used.
            listen: hears the blocks done.
        """
        count = len(self.layout.blocks)
        missing = [index for index in range(count) if not (self.folder / _GRADIENT.format(index)).exists()]
        if not missing and (self.folder / _OUTER).exists():
            return
        stream = Stream(folder, windows[:MOST_WINDOWS], self.layout, batch_tokens=1)
        self._forward(stream)
        pull, spread = self._loss(stream)
        for index in range(count - 1, -1, -1):
            listen(Progress("gradients", count - 1 - index, count))
            pull = self._backward(stream, index, pull)
        self._keep_outer(pull, spread)
        for index in range(count):
            (self.folder / _ENTERING.format(index)).unlink(missing_ok=True)
        listen(Progress("gradients", count, count))

    def _forward(self, stream: Stream) -> None:
        import torch

        stream.embed()
        for index in range(len(stream.blocks)):
            self._write(_ENTERING.format(index), {"hidden": stream.hidden})
            with stream.block(index) as module, torch.no_grad():
                for start, hidden in stream.batches():
                    stream.hidden[start : start + len(hidden)] = stream.run(index, module, hidden).to(stream.keep)

    def _keep_outer(self, pull: "Tensor", spread: float) -> None:
        import torch

        tokens = pull.shape[1] - 1  # the loss is their mean
        embedding = (pull.double() * tokens).square().mean((0, 1)).float()
        self._write(
            _OUTER, {"embedding": embedding, "head": torch.tensor(spread), "tokens": torch.tensor(float(tokens))}
        )

    def _loss(self, stream: Stream) -> "tuple[Tensor, float]":
        """The gradient of each window's mean loss at the output of the last block (windows, window, width).

        With it comes the mean of sum p (1 - p) over the tokens.
        """
        import torch

        pulls, spread = [], 0.0
        with stream.top() as top:
            for window, hidden in zip(stream.windows, stream.hidden, strict=True):
                state = hidden[None].to(stream.compute).requires_grad_()
                logits = top(state)[:, :-1].float()
                loss = torch.nn.functional.cross_entropy(logits[0], window[1:].long())
                pulls.append(torch.autograd.grad(loss, state)[0])
                spread += 1.0 - float(logits.detach().softmax(-1).square().sum(-1).mean())
        return torch.cat(pulls), spread / len(pulls)

    def _backward(self, stream: Stream, index: int, pull: "Tensor") -> "Tensor":
        """Sum the squares of a block's gradients; the gradient at its input comes back."""
        import torch
        from safetensors.torch import load_file

        entering = load_file(self.folder / _ENTERING.format(index))["hidden"]
        below, spec = torch.empty_like(pull), stream.layout.blocks[index]
        with stream.block(index) as module:
            parameters = dict(module.named_parameters())
            sums = {name: torch.zeros(weight.shape) for name, weight in matrices(parameters, spec).items()}
            for parameter in parameters.values():
                parameter.requires_grad_()
            for window in range(len(entering)):
                state = entering[window : window + 1].to(stream.compute).requires_grad_()
                torch.autograd.backward(stream.run(index, module, state), pull[window : window + 1])
                below[window] = torch.zeros_like(below[window]) if state.grad is None else state.grad[0]
                pulls = {name: _gradient(parameter) for name, parameter in parameters.items()}
                for name, gradient in matrices(pulls, spec).items():
                    sums[name] += gradient.float().square()
                module.zero_grad(set_to_none=True)
        self._write(_GRADIENT.format(index), {name: (total / len(entering)).sqrt() for name, total in sums.items()})
        return below

    def _write(self, name: str, tensors: "dict[str, Tensor]") -> None:
        from safetensors.torch import save_file

        target = self.folder / name
        with storage_errors(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            require_space(self.folder, sum(tensor.nbytes for tensor in tensors.values()))
            temp = temporary(self.folder)
            try:
                save_file({key: value.contiguous() for key, value in tensors.items()}, temp)
                publish(temp, target)
            finally:
                temp.unlink(missing_ok=True)


def _gradient(parameter: "Tensor") -> "Tensor":
    """Zeros for experts that no token chose."""
    import torch

    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
