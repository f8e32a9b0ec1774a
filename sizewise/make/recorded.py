"""Statistics of a model on a calibration text, gathered once and kept on disk: ten methods cost one pass.

    <home>/cache/statistics/<digest of model, text and number type>/
        inputs-00003.safetensors     sums over the inputs of block 3, which matrices share them, what enters the block
        hessian-00003.safetensors    mean of x xT of the same inputs
        gram-00003.safetensors       mean of x xT of the residual stream before each norm of block 3
        head-00030.safetensors       means of what the head multiplies; with the Hessians, after the last block
        hidden-00003.safetensors     the hidden states that enter block 3: where a killed pass goes on

Each file is whole or not there. A pass that finds files of an earlier one begins where those end.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sizewise.core.digests import digest_of_json
from sizewise.core.errors import BadModel, Unsupported
from sizewise.core.events import Listener, Progress, silent
from sizewise.load.home import home
from sizewise.load.layers import Layout
from sizewise.load.store.atomic import publish, require_space, storage_errors, temporary
from sizewise.make.method import INPUT_STATISTICS, NETWORK_STATISTICS
from sizewise.make.outer import head_sums
from sizewise.make.statistics import Observer, Seen, add_products, mirror
from sizewise.make.stream import Stream, compute_type

if TYPE_CHECKING:
    from torch import Tensor, nn

_VERSION = 4  # of what the files hold
_GRAMS = frozenset({"attention_gram", "ffn_gram", "final_gram"})


class Recorded:
    """A folder of statistics."""

    def __init__(self, model_digest: str, calibration_digest: str, layout: Layout, root: Path | None = None) -> None:
        """Name the folder; nothing is read.

        Args:
            model_digest: of the model as it was.
            calibration_digest: of the token windows.
            layout: of the model.
            root: where such folders are; None = in the user's home.
        """
        key = digest_of_json([_VERSION, model_digest, calibration_digest, str(compute_type())])
        self.folder = (root or home() / "cache" / "statistics") / key.removeprefix("sha256:")[:32]
        self.layout = layout

    def block(self, index: int, *, hessian: bool) -> list[Seen]:
        """What the matrices of one block saw."""
        tensors, notes = self._read("inputs", index)
        groups = [Seen(tuple(note["names"]), note["norm"], note["tokens"], note["windows"]) for note in notes["groups"]]
        products = self._read("hessian", index)[0] if hessian else {}
        for place, seen in enumerate(groups):
            prefix = f"{place}."
            seen.sums = {key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)}
            if hessian:
                seen.sums["hessian"] = products[str(place)]
        return groups

    def head(self) -> "dict[str, Tensor]":
        """Means of what the head multiplies, as `outer.head_sums` names them; gathered with the Hessians."""
        return self._read("head", len(self.layout.blocks))[0]

    def network(self, name: str) -> "Tensor":
        """A statistic of `method.NETWORK_STATISTICS`.

        Raises:
            Unsupported: the network has no such thing.
        """
        import torch

        count = len(self.layout.blocks)
        if name == "final_gram":
            return self._read("gram", count)[0]["final"]
        blocks = [self._read("inputs", index)[0] for index in range(count)]
        if name == "block_influence":
            return torch.stack([tensors["influence"] for tensors in blocks])
        if name == "angular":
            states = [tensors["entering"] for tensors in blocks] + [blocks[-1]["leaving"]]
            return _angles(torch.stack(states))
        made = torch.stack([self._of_block(name, index) for index in range(count)])
        return made.sum(0) if name == "hidden_activation" else made

    def _of_block(self, name: str, index: int) -> "Tensor":
        import torch

        groups, spec = self.block(index, hessian=False), self.layout.blocks[index]
        roles = {linear.name: linear.role for linear in spec.linears}
        if name in _GRAMS:
            first = ("q", "qkv") if name == "attention_gram" else ("gate", "up", "gate_up", "router")
            norm = next((seen.norm for seen in groups if any(roles[each] in first for each in seen.names)), None)
            if norm is None:
                raise Unsupported(f"block {index} has no norm before its matrices; {name} is not defined")
            return self._read("gram", index)[0][norm]
        if name == "hidden_activation":
            return torch.stack([seen.mean("window_abs") for seen in groups if seen.norm is not None]).sum(0)
        if self.layout.experts and name == "channel_activation":
            raise Unsupported("feed-forward channels of a mixture of experts cannot be compared across experts")
        role = "o" if name == "head_activation" else "down"
        features = next(seen for seen in groups if roles[seen.names[0]] == role).mean("window_abs")
        return features.reshape(self.layout.heads, -1).norm(dim=1) if role == "o" else features

    def gather(self, folder: Path, windows: "Tensor", wanted: Iterable[str], listen: Listener = silent) -> None:
        """See to it that the wanted statistics are there.

        Args:
            folder: the model, a checkpoint.
            windows: (n, window) token ids.
            wanted: names of `method.INPUT_STATISTICS` and `method.NETWORK_STATISTICS`; others are ignored.
            listen: hears the blocks done.

        Raises:
            DiskFull: there is no room for them.
            BadModel: weights or activations are not finite numbers.
        """
        wanted = set(wanted)
        kinds = ["inputs"] if wanted & (set(INPUT_STATISTICS) | set(NETWORK_STATISTICS)) - {"gradient"} else []
        kinds += ["hessian"] if "hessian" in wanted else []
        kinds += ["gram"] if wanted & _GRAMS else []
        count = len(self.layout.blocks)
        if all(self._path(kind, index).exists() for kind in kinds for index in range(count)):
            return
        stream = Stream(folder, windows, self.layout)
        for index in range(self._begin(stream, kinds), count):
            listen(Progress("calibrate", index, count))
            with stream.block(index) as module:
                self._pass(stream, index, module, kinds)
            self._write("hidden", index + 1, {"hidden": stream.hidden}, {})
            self._path("hidden", index).unlink(missing_ok=True)
        self._path("hidden", count).unlink(missing_ok=True)
        listen(Progress("calibrate", count, count))

    def _begin(self, stream: Stream, kinds: list[str]) -> int:
        """The block to begin with, its input in `stream.hidden`."""
        stream.embed()
        for index in range(len(self.layout.blocks) - 1, 0, -1):
            done = all(self._path(kind, before).exists() for kind in kinds for before in range(index))
            if done and self._path("hidden", index).exists():
                stream.hidden = self._read("hidden", index)[0]["hidden"]
                return index
        return 0

    def _pass(self, stream: Stream, index: int, module: "nn.Module", kinds: list[str]) -> None:
        """One block: its statistics to disk, its output into `stream.hidden`."""
        import torch

        observer = Observer(module, self.layout.blocks[index], hessian="hessian" in kinds)
        grams = _Grams(module, self.layout.blocks[index].prefix, self.layout) if "gram" in kinds else None
        entering, total, tokens = stream.hidden[:, -1].float().clone(), 0.0, stream.windows.numel()
        with torch.no_grad():
            for start, hidden in stream.batches():
                with observer.watching(len(hidden)):
                    output = stream.run(index, module, hidden)
                require_finite(output, index)
                cosine = torch.nn.functional.cosine_similarity(hidden.float(), output.float(), dim=-1)
                total += float((1 - cosine).sum(dtype=torch.float64))
                stream.hidden[start : start + len(hidden)] = output.to(stream.keep)
        own = {"influence": torch.tensor(total / tokens), "entering": entering}
        own |= {"leaving": stream.hidden[:, -1].float()} if index + 1 == len(stream.blocks) else {}
        if index + 1 == len(stream.blocks) and "hessian" in kinds:
            self._write("head", index + 1, head_sums(stream), {})
        self._save(index, observer.groups(), own)
        if grams:
            self._write("gram", index, grams.finished(tokens), {})
            if index + 1 == len(stream.blocks):
                self._write("gram", index + 1, {"final": _gram_of(stream.hidden)}, {})

    def _save(self, index: int, groups: list[Seen], own: "dict[str, Tensor]") -> None:
        notes = []
        sums, products = dict(own), {}
        for place, seen in enumerate(groups):
            notes.append({"names": seen.names, "norm": seen.norm, "tokens": seen.tokens, "windows": seen.windows})
            sums |= {f"{place}.{name}": value for name, value in seen.sums.items() if name != "hessian"}
            if "hessian" in seen.sums:
                products[str(place)] = seen.sums["hessian"]
        if products:
            self._write("hessian", index, products, {})
        self._write("inputs", index, sums, {"groups": notes})

    def _path(self, kind: str, index: int) -> Path:
        return self.folder / f"{kind}-{index:05d}.safetensors"

    def _write(self, kind: str, index: int, tensors: "dict[str, Tensor]", notes: dict[str, Any]) -> None:
        from safetensors.torch import save_file

        target = self._path(kind, index)
        with storage_errors(target):
            self.folder.mkdir(parents=True, exist_ok=True)
            require_space(self.folder, sum(tensor.nbytes for tensor in tensors.values()))
            temp = temporary(self.folder)
            try:
                save_file(
                    {key: value.contiguous() for key, value in tensors.items()}, temp, {"notes": json.dumps(notes)}
                )
                publish(temp, target)
            finally:
                temp.unlink(missing_ok=True)

    def _read(self, kind: str, index: int) -> "tuple[dict[str, Tensor], dict[str, Any]]":
        from safetensors import safe_open

        with safe_open(self._path(kind, index), framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            return tensors, json.loads((file.metadata() or {}).get("notes", "{}"))


class _Grams:
    """x xT of what enters each norm of a block that is as wide as the residual stream."""

    def __init__(self, module: "nn.Module", prefix: str, layout: Layout) -> None:
        import torch

        self.sums: dict[str, Tensor] = {}
        self._handles = []
        block = next(block for block in layout.blocks if block.prefix == prefix)
        for name in block.norms:
            norm = module.get_submodule(name.removeprefix(f"{prefix}."))
            weight: Any = norm.weight
            if weight.numel() == layout.hidden:
                self.sums[name] = torch.zeros(layout.hidden, layout.hidden)
                self._handles.append(norm.register_forward_pre_hook(self._adds_to(name)))

    def _adds_to(self, name: str) -> Any:
        def hook(_: Any, args: tuple[Any, ...]) -> None:
            add_products(self.sums[name], args[0].reshape(-1, args[0].shape[-1]).float())

        return hook

    def finished(self, tokens: int) -> "dict[str, Tensor]":
        """Means, by the names of the norms."""
        for handle in self._handles:
            handle.remove()
        for total in self.sums.values():
            mirror(total)
        return {name: total / tokens for name, total in self.sums.items()}


def require_finite(output: "Tensor", index: int) -> None:
    """Refuse what a block makes of the calibration text if it is infinite or no number.

    Raises:
        BadModel: it is.
    """
    import torch

    if not bool(torch.isfinite(output).all()):
        raise BadModel(f"block {index} makes numbers that are not finite from the calibration text: use another text")


def _gram_of(hidden: "Tensor") -> "Tensor":
    """Mean of x xT of hidden states."""
    import torch

    total = torch.zeros(hidden.shape[-1], hidden.shape[-1])
    for batch in torch.split(hidden, 8):
        add_products(total, batch.reshape(-1, batch.shape[-1]).float())
    mirror(total)
    return total / hidden[..., 0].numel()


def _angles(states: "Tensor") -> "Tensor":
    """(b, b), mean angle / pi between states (b, n, width)."""
    import torch

    unit = torch.nn.functional.normalize(states.double(), dim=-1)
    cosine = torch.einsum("inh,jnh->ijn", unit, unit).clamp(-1, 1)
    return (cosine.arccos() / torch.pi).mean(-1).float()
