"""A decoder whose blocks are in memory one at a time.

The network is built without weights. Its own code runs once with every block replaced by a recorder, which shows what
each block is given beside the hidden states (masks, rotations, positions), whatever the family. Then the hidden states
of all calibration windows pass through block after block, each loaded for that time alone.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sizewise.core.allocator import give_back
from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.checkpoint.tensors import TensorSource
from sizewise.load.layers import Block, Layout, layout_of, read_config

if TYPE_CHECKING:
    from torch import Tensor, dtype, nn

BATCH_TOKENS = 1024  # that pass through a block at once: more is no faster and takes more memory


class Stream:
    """A checkpoint's decoder, run block by block on windows of equal length.

    `hidden` holds the hidden states (windows, window, width) that enter the next block.
    """

    def __init__(
        self, folder: Path, windows: "Tensor", layout: Layout | None = None, *, batch_tokens: int = BATCH_TOKENS
    ) -> None:
        """Build the network without weights.

        Args:
            folder: a checkpoint whose family `load.layers` knows.
            windows: (n, window) token ids.
            layout: of that checkpoint, if it is known already.
            batch_tokens: that pass through a block at once, at most; one window in any case.
        """
        import torch

        self.folder, self.windows = folder, windows
        self.batch_tokens = batch_tokens
        self.layout = layout or layout_of(folder)
        self.source = TensorSource(folder)
        self.compute = compute_type()
        config = read_config(folder)
        length = getattr(config, "max_position_embeddings", None)
        if isinstance(length, int) and windows.shape[1] > length:
            raise Unsupported(f"windows of {windows.shape[1]} tokens exceed the model's context of {length}")
        self.model = _without_weights(config, self.compute)
        self.blocks = _block_list(self.model, len(self.layout.blocks))
        first = self.source.dtype(f"{self.layout.embedding}.weight")
        self.keep = torch.float32 if first in (torch.float32, torch.float64) else torch.bfloat16
        self.given: list[tuple[tuple[Any, ...], dict[str, Any]]] = []  # what each block gets beside the hidden states
        self.hidden: Tensor = torch.empty(0)
        self.tuples = False  # whether blocks answer with a tuple that begins with the hidden states

    @property
    def batch(self) -> int:
        """Windows that pass through a block at once; divides their number, so that all batches are alike."""
        count, most = len(self.windows), max(1, self.batch_tokens // self.windows.shape[1])
        return next(size for size in range(min(most, count), 0, -1) if count % size == 0)

    def embed(self) -> None:
        """Put the embeddings of all windows into `hidden`, and learn what blocks are given."""
        import torch

        used, places = torch.unique(self.windows.long(), return_inverse=True)
        loaded = self._load_outer(used)
        recorders = [_recorder() for _ in self.blocks]
        states = []
        with torch.no_grad(), _replaced(self.blocks, recorders):
            for rows in places.split(self.batch):
                with _stopping(recorders[-1]):
                    decoder_of(self.model)(input_ids=rows, use_cache=False)
                states.append(recorders[0].hidden.to(self.keep))
        self.given = [(recorder.args, recorder.kwargs) for recorder in recorders]
        self.hidden = torch.cat(states)
        for module in loaded:
            _unload(module)

    @contextmanager
    def block(self, index: int, override: "Mapping[str, Tensor] | None" = None) -> "Iterator[nn.Module]":
        """Block `index` with its weights, until the end of the context.

        Args:
            index: counts from 0.
            override: tensors, by their names in the files, to take in place of the stored ones.
        """
        module = self.blocks[index]
        spec = self.layout.blocks[index]
        load_block(module, self.source, spec, self.compute, override or {})
        try:
            yield module
        finally:
            _unload(module)
            give_back()

    def run(self, index: int, module: "nn.Module", hidden: "Tensor") -> "Tensor":
        """The output of a loaded block for one batch of hidden states."""
        args, kwargs = self.given[index]
        output = module(hidden.to(self.compute), *args, **kwargs)
        self.tuples = isinstance(output, tuple)
        made: Tensor = output[0] if self.tuples else output
        return made

    def batches(self) -> "Iterator[tuple[int, Tensor]]":
        """Position and hidden states of each batch."""
        for start in range(0, len(self.hidden), self.batch):
            yield start, self.hidden[start : start + self.batch]

    @contextmanager
    def top(self) -> "Iterator[Callable[[Tensor], Tensor]]":
        """A function from the last block's output (1, window, width) to logits, with norm and head in memory.

        At least one block must have run.
        """
        import torch

        loaded = self._load_outer(self.windows[0, :1].long()) + self._load_head()
        recorders = [_recorder() for _ in self.blocks]
        ids = torch.zeros(1, self.windows.shape[1], dtype=torch.long)

        def logits(state: "Tensor") -> "Tensor":
            recorders[-1].answer = (state,) if self.tuples else state
            made: Tensor = self.model(input_ids=ids, use_cache=False).logits
            return made

        with _replaced(self.blocks, recorders):
            yield logits
        for module in loaded:
            _unload(module)

    @contextmanager
    def normed(self) -> "Iterator[Callable[[Tensor], Tensor]]":
        """A function from the last block's output to what the head multiplies, with the last norm in memory."""
        path = self.layout.final_norm
        norm = self._module(path) if path else None
        for part, parameter in list(norm.named_parameters()) if norm else []:
            if parameter is not None:
                _assign(norm, part, self.source.get(f"{path}.{part}").to(self.compute))
        yield norm or (lambda state: state)
        if norm:
            _unload(norm)

    def _load_head(self) -> "list[nn.Module]":
        """The last norm, the head and what is between them."""
        layout = self.layout
        paths = [layout.final_norm] if layout.final_norm else []
        paths += [name.removesuffix(".weight") for name in layout.others if "project_out" in name]
        modules = [(self._module(path), path) for path in paths]
        modules.append((self.model.get_output_embeddings(), layout.head or layout.embedding))
        for module, path in modules:
            for part, parameter in list(module.named_parameters()):
                name = f"{path}.{part}"
                if parameter is not None and name in self.source:
                    _assign(module, part, self.source.get(name).to(self.compute))
        return [module for module, _ in modules]

    def _load_outer(self, used: "Tensor") -> "list[nn.Module]":
        """The embeddings of the tokens that occur, as rows 0, 1, ..., and whatever else runs before the blocks."""
        import torch

        layout = self.layout
        name = f"{layout.embedding}.weight"
        if int(used.max()) >= self.source.shape(name)[0]:
            raise BadModel(f"{self.folder.name}: the tokenizer has more tokens than the embedding has rows")
        rows = [self.source.rows(name, token, token + 1) for token in used.tolist()]
        embedding = self._module(layout.embedding)
        _assign(embedding, "weight", torch.cat(rows).to(self.compute))
        embedding.padding_idx = None
        loaded = [embedding]
        others = [layout.positions] if layout.positions else []
        others += [name.removesuffix(".weight") for name in layout.others if "project_in" in name]
        for path in others:
            module = self._module(path)
            _assign(module, "weight", self.source.get(f"{path}.weight").to(self.compute))
            loaded.append(module)
        return loaded

    def _module(self, path: str) -> Any:
        """The module that a path of the files names, whether or not the files leave out the decoder's name."""
        inner = path.removeprefix(self.layout.prefix)
        decoder = decoder_of(self.model)
        return decoder.get_submodule(inner)


def compute_type() -> "dtype":
    """bfloat16 where the processor multiplies it natively, else float32: emulated it is ten times slower."""
    import torch

    native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    return torch.bfloat16 if native else torch.float32


def decoder_of(model: Any) -> Any:
    """The module that holds embedding and blocks."""
    inner = getattr(model, model.base_model_prefix, model)
    return getattr(inner, "decoder", inner)


def load_block(
    module: "nn.Module", source: TensorSource, spec: Block, kind: "dtype", override: "Mapping[str, Tensor]"
) -> None:
    """Give a block's module its weights.

    Raises:
        BadModel: a tensor is missing, or holds values that are not finite numbers.
    """
    import torch

    names = [name for name in source if name.startswith(f"{spec.prefix}.")]
    tensors = {}
    for name in names:
        tensor = override[name] if name in override else source.get(name)
        if tensor.is_floating_point():
            if not bool(torch.isfinite(tensor).all()):
                raise BadModel(f"tensor {name} holds values that are not finite numbers; get the model again")
            tensors[name.removeprefix(f"{spec.prefix}.")] = tensor.to(kind)
    tensors = _fuse_experts(module, tensors, spec)
    wanted = dict(module.named_parameters())
    for name, tensor in tensors.items():
        if name in wanted:
            owner, _, last = name.rpartition(".")
            _assign(module.get_submodule(owner), last, tensor)
    missing = [name for name, parameter in module.named_parameters() if parameter.is_meta]
    if missing:
        raise BadModel(f"{spec.prefix}: {missing[0]} is in none of the checkpoint's files")


def matrices(inside: "Mapping[str, Tensor]", spec: Block) -> "dict[str, Tensor]":
    """The matrices of a block as (out, in), by the names of their modules in the files; views, not copies.

    Args:
        inside: the parameters of the block's module, or tensors of their shapes, by their names in it.
        spec: what the files say of the block.
    """
    found: dict[str, Tensor] = {}
    fused = {name.rpartition(".")[2]: tensor for name, tensor in inside.items() if ".experts." in name}
    router = next((name for name in inside if name.endswith(("router.weight", "gate.weight"))), "")
    for linear in spec.linears:
        weight: Tensor | None = inside.get(linear.weight.removeprefix(f"{spec.prefix}."))
        if linear.expert is not None:
            half = fused["gate_up_proj"].shape[1] // 2
            up = fused["gate_up_proj"][linear.expert]
            weight = {"gate": up[:half], "up": up[half:], "down": fused["down_proj"][linear.expert]}[linear.role]
        elif linear.role == "router":
            weight = inside[router]
        if weight is None:
            raise BadModel(f"{linear.name} is no part of the network that config.json describes")
        found[linear.name] = weight.T if linear.transposed else weight
    return found


def _fuse_experts(module: "nn.Module", tensors: "dict[str, Tensor]", spec: Block) -> "dict[str, Tensor]":
    """Matrices of single experts put together as the network holds them: one tensor for all, gate above up."""
    import torch

    experts = sorted({linear.expert for linear in spec.linears if linear.expert is not None})
    if not experts:
        return tensors
    names = {(linear.role, linear.expert): linear.weight.removeprefix(f"{spec.prefix}.") for linear in spec.linears}
    inside = {name.rpartition(".")[2]: name for name, _ in module.named_parameters() if ".experts." in name}
    router = next(name for name, _ in module.named_parameters() if name.endswith(("router.weight", "gate.weight")))
    fused = {
        inside["gate_up_proj"]: torch.stack(
            [torch.cat([tensors.pop(names["gate", e]), tensors.pop(names["up", e])]) for e in experts]
        ),
        inside["down_proj"]: torch.stack([tensors.pop(names["down", e]) for e in experts]),
        router: tensors.pop(names["router", None]),
    }
    return tensors | fused


class _Stop(Exception):
    """The last recorder has what it wants."""


def _recorder() -> Any:
    """A module in place of a block: it hands hidden states on, or what it is told to, and keeps what it was given."""
    from torch import nn

    class Recorder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.hidden: Any = None
            self.answer: Any = None
            self.args: tuple[Any, ...] = ()
            self.kwargs: dict[str, Any] = {}

        def forward(self, hidden_states: Any, *args: Any, **kwargs: Any) -> Any:
            self.hidden, self.args, self.kwargs = hidden_states, args, kwargs
            return hidden_states if self.answer is None else self.answer

    return Recorder()


@contextmanager
def _replaced(blocks: "nn.ModuleList", recorders: list[Any]) -> Iterator[None]:
    """Blocks exchanged for recorders, which keep the attributes that the decoder's loop asks for."""
    originals = list(blocks)
    for place, (block, recorder) in enumerate(zip(originals, recorders, strict=True)):
        for name in ("attention_type", "layer_type", "is_sliding"):
            if hasattr(block, name):
                setattr(recorder, name, getattr(block, name))
        blocks[place] = recorder
    try:
        yield
    finally:
        for place, block in enumerate(originals):
            blocks[place] = block


@contextmanager
def _stopping(recorder: Any) -> Iterator[None]:
    """Whatever runs within this context runs no further than `recorder`."""

    def stop(*_: Any) -> None:
        raise _Stop

    handle = recorder.register_forward_hook(stop)
    try:
        with suppress(_Stop):
            yield
    finally:
        handle.remove()


def _without_weights(config: Any, kind: "dtype") -> Any:
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=kind, experts_implementation="eager")
    torch.nn.Module.requires_grad_(model, False)
    return model.eval()


def _block_list(model: Any, count: int) -> "nn.ModuleList":
    from torch import nn

    for module in decoder_of(model).modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise Unsupported(f"{type(model).__name__} has no list of {count} blocks")


def _unload(module: Any) -> None:
    """Give up a module's weights; buffers, which come from the configuration, stay."""
    from torch import nn

    for part in module.modules():
        for name, parameter in part._parameters.items():
            if parameter is not None:
                part._parameters[name] = nn.Parameter(parameter.to("meta"), requires_grad=False)


def _assign(module: Any, name: str, tensor: "Tensor") -> None:
    from torch import nn

    module._parameters[name] = nn.Parameter(tensor, requires_grad=False)
