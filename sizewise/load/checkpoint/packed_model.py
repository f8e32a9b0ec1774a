"""A network with matrices in small forms, loaded so that they stay small. Runs in the child of the torch runner.

The network is built without weights; matrices in small forms are exchanged for modules that multiply with them, all
other weights are read into their places.
"""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from sizewise.core.errors import BadModel
from sizewise.load.checkpoint.packed import form_of
from sizewise.load.checkpoint.packed_modules import Experts, Looked, Small, module_for
from sizewise.load.checkpoint.packed_source import DenseSource
from sizewise.load.layers import Block, Layout, Linear, family_of, layout_of


def load_packed(folder: Path, config: Any, dtype: torch.dtype, *, exact: bool = False) -> Any:
    """The network of a checkpoint folder.

    Args:
        folder: a checkpoint with matrices in small forms, of a family that `load.layers` knows.
        config: its configuration.
        dtype: of everything that is not in a small form.
        exact: no product rounds its inputs to fewer bits than `dtype` has, however much faster that would be.

    Raises:
        BadModel: tensors are missing or contradict each other.
        Unsupported: the family is not known.
    """
    from accelerate import init_empty_weights
    from transformers import AutoModelForCausalLM

    del config.quantization_config
    layout, source = layout_of(folder), DenseSource(folder)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    model.requires_grad_(False)
    loader = _Loader(model, layout, source, dtype)
    for block in layout.blocks:
        loader.block(block)
    loader.outer()
    loader.rest()
    if layout.embedding not in source.matrices:  # else the head multiplies by what tokens are looked up in
        model.tie_weights()
    for module in model.modules():
        if isinstance(module, Small):
            module.exact = exact
    missing = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if missing:
        raise BadModel(f"{missing[0]} is in none of the checkpoint's files; get the model again")
    return model


class _Loader:
    def __init__(self, model: Any, layout: Layout, source: DenseSource, dtype: torch.dtype) -> None:
        self.model, self.layout, self.source, self.dtype = model, layout, source, dtype
        self.prefix = family_of(layout.family).prefix
        self.done: set[str] = set()

    def block(self, block: Block) -> None:
        """Read the matrices of a block that are not just parameters of the same name in the network."""
        for linear in block.linears:
            if linear.expert is None and linear.name in self.source.matrices:
                owner, _, last = self._path(linear.name).rpartition(".")
                setattr(self.model.get_submodule(owner), last, self._small(linear))
        routers = block.of("router")
        if routers:
            self._experts(block, routers[0])

    def outer(self) -> None:
        """Exchange an embedding and a head in small forms."""
        layout, matrices = self.layout, self.source.matrices
        if layout.embedding in matrices:
            path = self._path(layout.embedding)
            looked_up = Looked(
                self._outer(layout.embedding), getattr(self.model.get_submodule(path), "embed_scale", 1.0)
            )
            self.model.set_submodule(path, looked_up)
            if layout.tied:
                self.model.set_output_embeddings(looked_up.small)
        if layout.head in matrices:
            self.model.set_output_embeddings(self._outer(layout.head))

    def _outer(self, name: str) -> Small:
        bias = self._read(f"{name}.bias") if f"{name}.bias" in self.source else None
        return self._module(name, bias)

    def rest(self) -> None:
        """Read all other tensors into the parameters of their names."""
        parameters = dict(self.model.named_parameters())
        for name in self.source:
            path = self._path(name)
            if name not in self.done and path in parameters:
                self._assign(path, self.source.get(name))

    def _experts(self, block: Block, router: Linear) -> None:
        """Exchange stacked experts for single ones; the network calls what leads to them otherwise than the files."""
        parent = self.model.get_submodule(self._path(block.prefix))
        owner = next(module for module in parent.modules() if hasattr(module, "experts") and hasattr(module, "router"))
        count = self.layout.experts
        experts: list[dict[str, nn.Module]] = [{} for _ in range(count)]
        for linear in block.linears:
            if linear.expert is not None:
                packed = linear.name in self.source.matrices
                experts[linear.expert][linear.role] = self._small(linear) if packed else self._plain(linear)
        owner.experts = Experts(experts, owner.experts.act_fn)
        weight = self._read(router.weight)
        owner.router.weight = nn.Parameter(weight, requires_grad=False)

    def _small(self, linear: Linear) -> nn.Module:
        return self._module(linear.name, self._read(f"{linear.name}.bias") if linear.bias else None)

    def _module(self, name: str, bias: Tensor | None) -> Small:
        spec, parts = self.source.matrices[name].spec, self.source.parts(name)
        form_of(name, spec, parts)  # refuses parts that do not fit together
        self.done.add(f"{name}.weight")
        return module_for(spec, parts, bias, self.dtype)

    def _plain(self, linear: Linear) -> nn.Module:
        module = nn.Linear(1, 1, bias=linear.bias, device="meta")
        module.weight = nn.Parameter(self._read(linear.weight), requires_grad=False)
        if linear.bias:
            module.bias = nn.Parameter(self._read(f"{linear.name}.bias"), requires_grad=False)
        return module

    def _read(self, name: str) -> Tensor:
        self.done.add(name)
        return self.source.get(name).to(self.dtype)

    def _path(self, name: str) -> str:
        """Where the network has what the files call `name`."""
        if not name.startswith(self.layout.prefix) or name.startswith("lm_head."):
            return name
        return self.prefix + name.removeprefix(self.layout.prefix)

    def _assign(self, path: str, tensor: Tensor) -> None:
        owner, _, last = path.rpartition(".")
        kept = nn.Parameter(tensor.to(self.dtype), requires_grad=False)
        self.model.get_submodule(owner)._parameters[last] = kept
