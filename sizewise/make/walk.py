"""One walk over the blocks of a checkpoint: read a block, apply a weight method to it, write it; then the next.

By default statistics come from the original model (`make.recorded`), and the walk needs no more memory than one block.
Sequentially, each block sees what the blocks already changed make of the calibration text: its own sums are gathered,
it is changed, and its changed self makes the input of the next. Every finished block is on disk with a note of how far
the walk is, so that a killed one goes on with the block that it was at.
"""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sizewise.core.allocator import give_back
from sizewise.core.events import Listener, Progress, silent
from sizewise.load.checkpoint.folder import read_json
from sizewise.load.checkpoint.packed import Spec, config_of, note_on, spec_of, tensors_of
from sizewise.load.checkpoint.tensors import TensorSink, TensorSource
from sizewise.load.layers import Block, Layout, layout_of
from sizewise.load.store.atomic import publish, storage_errors, temporary, write_atomic
from sizewise.make.gradients import Gradients
from sizewise.make.method import wants
from sizewise.make.outer import OUTER, head_sums, outer_blocks, seen_outside
from sizewise.make.recorded import Recorded, require_finite
from sizewise.make.statistics import Observer, Seen
from sizewise.make.stream import Stream
from sizewise.make.treat import Treated, Treatment, treat

if TYPE_CHECKING:
    from torch import Tensor

_NOTE, _HIDDEN = "walk.json", "hidden-{:05d}.bin"


@dataclass(slots=True)
class Tally:
    """What the walk has done so far, in numbers that are written beside the blocks."""

    blocks: int = 0
    error: float = 0.0
    energy: float = 0.0
    weights: int = 0  # in the matrices that were changed
    zeros: int = 0  # of those, after the change
    stored_bits: int = 0  # that they take now; a dense number counts 16
    saved_parameters: int = 0  # fewer than before
    warnings: list[str] = field(default_factory=list)
    forms: dict[str, dict[str, Any]] = field(default_factory=dict)  # what the files hold of matrices in small forms

    @property
    def note(self) -> str:
        """For the lineage: how the files hold small forms."""
        return note_on(self.specs)

    @property
    def specs(self) -> dict[str, Spec]:
        """The small forms by module."""
        return {name: Spec(**said) for name, said in self.forms.items()}

    def add(self, treated: Treated, block: Block, before: Mapping[str, "Tensor"]) -> None:
        """Count a finished block. `before` has the matrices that were changed."""
        self.blocks, self.error = self.blocks + 1, self.error + treated.error
        self.energy += treated.energy
        self.warnings += treated.warnings
        for linear in block.linears:
            if linear.name in before:
                now, size = treated.tensors[linear.weight], before[linear.name].numel()
                packed = treated.packed.get(linear.name)
                if packed:
                    spec = spec_of(packed, linear.transposed)
                    if linear.role in OUTER:  # other loaders keep these dense
                        spec = replace(spec, shared=False)
                    self.forms[linear.name] = spec.as_json()
                self.weights += size
                self.zeros += size - int(now.count_nonzero())
                self.stored_bits += packed.size_bits if packed else 16 * size
                rank = getattr(packed, "rank", None)
                self.saved_parameters += size - rank * sum(linear.shape) if rank else 0

    def figures(self) -> dict[str, Any]:
        """For the lineage."""
        if not self.weights:
            return {}
        found: dict[str, Any] = {"weights_changed": self.weights}
        found["weight_bits"] = round(self.stored_bits / self.weights, 4)
        found["relative_error"] = round(self.error / self.energy, 8) if self.energy else 0.0
        found["zeros"] = round(self.zeros / self.weights, 6)
        return found


class Writer:
    """Where blocks go: a folder that becomes a checkpoint, matrices in the small forms that the method gave them."""

    def __init__(self, folder: Path, source: TensorSource, layout: Layout) -> None:
        self.folder, self.source, self.layout = folder, source, layout
        with storage_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.glob("model*.safetensors")):  # killed while the files got their names: they are no blocks now
                shutil.rmtree(folder)
                folder.mkdir()
        self.sink = TensorSink(folder, resume=True)
        note = folder / _NOTE
        self.tally = Tally(**read_json(note)) if note.exists() else Tally()

    def block(self, treated: Treated, block: Block, chosen: "Mapping[str, Tensor]") -> None:
        """Write a block and the note of it."""
        linears = {linear.weight: linear for linear in block.linears}
        for name, tensor in treated.tensors.items():
            linear = linears.get(name)
            if linear and linear.name in treated.packed:
                stored = {f"{linear.name}.{part}": one for part, one in tensors_of(treated.packed[linear.name]).items()}
            else:
                stored = {name: (tensor.T if linear and linear.transposed else tensor).to(self.source.dtype(name))}
            for title, one in stored.items():
                if title not in self.sink.done:  # killed between the block and its note
                    self.sink.put(title, one)
        self.sink.flush()
        self.tally.add(treated, block, chosen)
        write_atomic(self.folder / _NOTE, [json.dumps(asdict(self.tally)).encode()])

    def finish(self) -> dict[str, Path]:
        """Write what lies outside the blocks and give the files their names."""
        inside = tuple(f"{block.prefix}." for block in self.layout.blocks)
        for name in self.source:
            done = name in self.sink.done or name.removesuffix(".weight") in self.tally.forms
            if not done and not name.startswith(inside) and not self._doubled(name):
                self.sink.put(name, self.source.get(name))
        files = {path.name: path for path in self.sink.finish()} | copy_companions(self.source, self.folder)
        if self.tally.forms:
            self._describe(files["config.json"])
        for leftover in (self.folder / _NOTE, *self.folder.glob(_HIDDEN.format(0).replace("00000", "*"))):
            leftover.unlink(missing_ok=True)
        return files

    def _doubled(self, name: str) -> bool:
        """True for a head that files hold beside the embedding that it is, once that is changed."""
        changed = {self.layout.embedding, f"{self.layout.embedding}.weight"} & {*self.tally.forms, *self.sink.done}
        return name == "lm_head.weight" and self.layout.tied and bool(changed)

    def _describe(self, config: Path) -> None:
        """Say in config.json which matrices are in small forms."""
        specs = self.tally.specs
        dense = [linear.name for linear in self.layout.linears if linear.name not in specs]
        said = read_json(config) | {"quantization_config": config_of(specs, dense)}
        write_atomic(config, [json.dumps(said, indent=2).encode()])


def copy_companions(source: TensorSource, folder: Path) -> dict[str, Path]:
    """Copy all files of a checkpoint that hold no weights: configuration, tokenizer, licence."""
    copied = {}
    for name, path in source.files.items():
        if not name.endswith((".safetensors", ".safetensors.index.json")):
            copied[name] = folder / name
            with storage_errors(folder):
                copied[name].parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, copied[name])
    return copied


def walk(
    folder: Path,
    out: Path,
    treatment: Treatment,
    *,
    recorded: Recorded | None = None,
    gradients: Gradients | None = None,
    windows: "Tensor | None" = None,
    listen: Listener = silent,
) -> tuple[dict[str, Path], Tally]:
    """Apply a weight method to every block of a checkpoint.

    Args:
        folder: the checkpoint.
        out: a folder for the result; what a killed walk left there is used.
        treatment: the method.
        recorded: the statistics of the original model, if the method wants any.
        gradients: of the original model, if the method wants them.
        windows: (n, window) token ids: walk sequentially on these instead.
        listen: hears the blocks done.

    Returns:
        The files of the result, by name, and what was done in numbers.

    Raises:
        BadModel: weights or activations are not finite numbers.
        DiskFull: there is no room.
        UsageError: the method refuses a matrix.
    """
    source, layout = TensorSource(folder), layout_of(folder)
    writer = Writer(out, source, layout)
    activation = activation_of(folder)
    blocks = [*layout.blocks, *outer_blocks(layout, source, treatment.roles)]
    inside, count = len(layout.blocks), len(blocks)
    begin = min(writer.tally.blocks, inside)  # embedding and head both see what leaves the last block
    stream = _stream_at(folder, out, windows, layout, begin) if windows is not None else None
    hessian = "hessian" in wants(treatment.function)
    for index in range(writer.tally.blocks, count):
        listen(Progress(treatment.method, index, count))
        block = blocks[index]
        if index >= inside:
            sums = head_sums(stream) if stream else recorded.head() if recorded else None
            seen = [seen_outside(block, layout, sums)] if sums else []
        else:
            seen = _observe(stream, index, hessian) if stream else []
            seen = recorded.block(index, hessian=hessian) if recorded and not stream else seen
        own = gradients.block(index) if gradients and index < inside else {}
        treated = treat(treatment, source, layout, block, seen, own, activation)
        if stream and index < inside:
            _advance(stream, index, treated)
            _keep_hidden(out, index + 1, stream.hidden)
        chosen = {each.name: treated.tensors[each.weight] for each in block.linears if each.role in treatment.roles}
        writer.block(treated, block, chosen)
        if index < inside:
            (out / _HIDDEN.format(index)).unlink(missing_ok=True)
        del seen, own, treated, chosen
        give_back()
    listen(Progress(treatment.method, count, count))
    return writer.finish(), writer.tally


def activation_of(folder: Path) -> str:
    """The feed-forward's activation, as config.json calls it."""
    config = read_json(folder / "config.json")
    return str(next((config[key] for key in ("hidden_act", "activation_function", "activation") if key in config), ""))


def _observe(stream: Stream, index: int, hessian: bool) -> list[Seen]:
    """The statistics of a block as it still is, on the outputs of the blocks already changed."""
    import torch

    with stream.block(index) as module, torch.no_grad():
        observer = Observer(module, stream.layout.blocks[index], hessian=hessian)
        for _, hidden in stream.batches():
            with observer.watching(len(hidden)):
                require_finite(stream.run(index, module, hidden), index)
        return observer.groups()


def _advance(stream: Stream, index: int, treated: Treated) -> None:
    """Let the hidden states pass through the changed block."""
    import torch

    block = stream.layout.blocks[index]
    transposed = {linear.weight for linear in block.linears if linear.transposed}
    changed = {name: tensor.T if name in transposed else tensor for name, tensor in treated.tensors.items()}
    with stream.block(index, changed) as module, torch.no_grad():
        for start, hidden in stream.batches():
            stream.hidden[start : start + len(hidden)] = stream.run(index, module, hidden).to(stream.keep)


def _stream_at(folder: Path, out: Path, windows: "Tensor", layout: Layout, index: int) -> Stream:
    """The stream, with the hidden states that enter block `index`."""
    from safetensors.torch import load_file

    stream = Stream(folder, windows, layout)
    stream.embed()
    if index:
        stream.hidden = load_file(out / _HIDDEN.format(index))["hidden"]
    return stream


def _keep_hidden(out: Path, index: int, hidden: "Tensor") -> None:
    from safetensors.torch import save_file

    target = out / _HIDDEN.format(index)
    with storage_errors(target):
        temp = temporary(out)
        try:
            save_file({"hidden": hidden}, temp)
            publish(temp, target)
        finally:
            temp.unlink(missing_ok=True)
