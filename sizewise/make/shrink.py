"""Methods for a network's weights, on a whole model: its checkpoint, calibration text, statistics, and the result.

A GGUF is unpacked into a checkpoint first, once, and kept in the cache. What belongs to the walk and not to a method
(which text, how much of it, which matrices) has a schema of its own, `walk_settings`, from which flags and recipe keys
come just as from a method's signature.
"""

import json
import os
import shutil
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from sizewise.core.errors import UnknownName, Unsupported, UsageError
from sizewise.core.events import Listener
from sizewise.core.model import Model
from sizewise.core.params import Parameter, Range, schema_of
from sizewise.load.checkpoint.folder import read_json
from sizewise.load.checkpoint.tensors import TensorSource, elements, save_tensors
from sizewise.load.facts import root_of
from sizewise.load.home import home
from sizewise.load.layers import Layout, layout_of
from sizewise.load.store.atomic import locked, storage_errors, temporary, write_atomic
from sizewise.make.budget import widths_within
from sizewise.make.calibration import DEFAULT_TOKENS, DEFAULT_WINDOW, Calibration, load_calibration, read_texts
from sizewise.make.fitting import require_fitting
from sizewise.make.gradients import Gradients
from sizewise.make.method import Made, kind_of, needs_calibration, purpose_of, statistics_of, wants
from sizewise.make.outer import OUTER, outer_blocks
from sizewise.make.packed import Reshaped
from sizewise.make.recorded import Recorded
from sizewise.make.treat import PARTS, Treatment
from sizewise.make.walk import Tally, copy_companions, walk


@dataclass(frozen=True, slots=True)
class Settings:
    """What `walk_settings` was called with."""

    calibration: str | None
    tokens: int
    window: int
    sequential: bool
    parts: frozenset[str]
    dequantize: bool
    budget: float | None


def walk_settings(
    *,
    calibration: str | None = None,
    tokens: Annotated[int, Range(1)] = DEFAULT_TOKENS,
    window: Annotated[int, Range(2)] = DEFAULT_WINDOW,
    sequential: bool = False,
    parts: str = "",
    dequantize: bool = False,
    budget: Annotated[float | None, Range(1, 16)] = None,
) -> Settings:
    """Options that all methods for the weights of a network have in common.

    Args:
        calibration: text that shows what inputs occur, a .txt or .jsonl file; else the text that comes with sizewise.
        tokens: how many tokens of it to use.
        window: how many tokens the model sees at a time.
        sequential: let each block see what the blocks already changed make of the text; slower, and nothing is cached.
        parts: only these matrices, by commas: q, k, v, qkv, o, gate, up, gate_up, down, embedding, head; "all" is every
            one; else all but embedding and head, which other programs read dense only.
        dequantize: allow a base that is quantized already; its rounding errors stay.
        budget: bits per weight, scales included, that the matrices may take on average; those whose rounding does most
            harm on the calibration text get more of them, in place of one number of bits for all.

    Raises:
        UnknownName: there is no such part.
    """
    chosen = [part.strip() for part in parts.split(",") if part.strip()]
    for part in chosen:
        if part not in (*PARTS, *OUTER, "all"):
            raise UnknownName("part", part, (*PARTS, *OUTER, "all"))
    roles = frozenset((*PARTS, *OUTER) if "all" in chosen else chosen or PARTS)
    return Settings(calibration, tokens, window, sequential, roles, dequantize, budget)


def settings_of(function: Callable[..., Any]) -> tuple[Parameter, ...]:
    """Those options of `walk_settings` that mean something for a method."""
    kind, quantizes = kind_of(function), purpose_of(function) == "Quantize"
    fitting = set()
    if kind == "weight" or (kind != "head" and needs_calibration(function)):
        fitting = {"calibration", "tokens", "window"} | ({"dequantize"} if quantizes else set())
    if kind == "weight":
        own = {parameter.name for parameter in schema_of(function)}
        fitting |= {"sequential", "parts"}
        fitting |= {"budget"} if quantizes and "bits" in own else set()
    return tuple(parameter for parameter in schema_of(walk_settings) if parameter.name in fitting)


@dataclass(frozen=True, slots=True)
class Order:
    """A checked order for a weight or structure method."""

    method: str
    function: Callable[..., Any]
    options: dict[str, Any]
    settings: Settings
    base: Model
    seed: int
    listen: Listener


@dataclass(frozen=True, slots=True)
class Shrunk:
    """What was made, and which text it was calibrated on."""

    made: Made
    calibration: Calibration | None


def shrink(order: Order, folder: Path) -> Shrunk:
    """Carry out an order.

    Args:
        order: what to do.
        folder: where to work; what an interrupted run of the same order left there is used.

    Raises:
        UsageError: the base is quantized already, or the method does not fit its shapes.
        Unsupported: the base is no language model whose family is known.
    """
    settings, function = order.settings, order.function
    asked = settings.sequential or settings.budget is not None
    calibrated = needs_calibration(function) or (asked and kind_of(function) == "weight")
    if settings.calibration and not calibrated:
        raise UsageError(f"{order.method} uses no calibration text; leave {settings.calibration!r} out")
    if settings.calibration:
        read_texts(Path(settings.calibration))  # what is wrong with it is told before a GGUF is unpacked
    _refuse_quantized(order)
    base, note = checkpoint_of(order.base, folder, order.listen)
    calibration = None
    if calibrated:
        calibration = load_calibration(
            settings.calibration, base, tokens=settings.tokens, window=settings.window, seed=order.seed
        )
    if kind_of(function) == "model":
        return Shrunk(_write_file(order, base, folder / "out", calibration, note), calibration)
    change = _change_weights if kind_of(function) == "weight" else _change_structure
    return Shrunk(change(order, base, folder / "out", layout_of(base), calibration, note), calibration)


def checkpoint_of(base: Model, folder: Path, listen: Listener) -> tuple[Path, str]:
    """The base as a checkpoint folder, and what a reader must know of how it became one.

    Raises:
        Unsupported: it is neither a checkpoint nor a single GGUF file.
    """
    if base.kind == "checkpoint":
        return root_of(base.files) or _linked(base, folder / "base"), base.lineage.note
    if base.kind != "gguf" or len(base.files) != 1:
        raise Unsupported(f"{base.name} is of kind {base.kind!r}; a checkpoint or a GGUF of one file is needed")
    return _imported(base, listen)


def _linked(base: Model, folder: Path) -> Path:
    """The files of a model under their own names."""
    with storage_errors(folder):
        for title, path in base.files.items():
            place = folder / title
            if not place.exists():
                place.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(path.resolve(), place)
                except OSError:  # another disk
                    shutil.copyfile(path, place)
    return folder


def _imported(base: Model, listen: Listener) -> tuple[Path, str]:
    from sizewise.load.doors import checked_import

    place = home() / "cache" / "checkpoints" / base.digest.removeprefix("sha256:")[:32]
    said = place / "import.json"
    with locked(place.with_suffix(".lock"), exclusive=True, wait_s=3600):
        if not said.exists():
            temp = temporary(place.parent)
            try:
                imported, _ = checked_import(base, temp, listen=listen)
                write_atomic(temp / said.name, [json.dumps({"note": imported.note}).encode()])
                with storage_errors(place):
                    temp.rename(place)
            finally:
                shutil.rmtree(temp, ignore_errors=True)
    return place, str(read_json(said)["note"]) or base.lineage.note


def _refuse_quantized(order: Order) -> None:
    base = order.base
    config = base.files.get("config.json")
    if base.kind == "checkpoint" and config and "quantization_config" in read_json(config):
        raise UsageError(
            f"{base.name} is packed in {base.quantization or 'few bits'}: start from what it was made from"
        )
    packed = base.kind == "gguf" and base.quantization not in ("F32", "F16", "BF16")
    if packed and purpose_of(order.function) == "Quantize" and not order.settings.dequantize:
        raise UsageError(
            f"{base.name} is already {base.quantization}: start from a model in 16 bits, or pass --dequantize "
            "to unpack it first and keep its rounding errors"
        )


def _change_weights(
    order: Order, base: Path, out: Path, layout: Layout, calibration: Calibration | None, note: str
) -> Made:
    settings, function = order.settings, order.function
    recorded = gradients = None
    wanted = set(statistics_of(function)) - {"gradient"}
    if settings.parts & set(OUTER):
        if "gradient" in statistics_of(function):
            raise UsageError(f"{order.method} has no gradients of embedding and head; leave them out of --parts")
        wanted |= {"hessian"} if wanted else set()  # what the head multiplies is gathered with these
    given = order.options | ({"seed": order.seed} if "seed" in wants(function) else {})
    treatment = Treatment(order.method, function, given, settings.parts)
    blocks = [*layout.blocks, *outer_blocks(layout, TensorSource(base), settings.parts)]
    require_fitting(given, (each for block in blocks for each in block.linears if each.role in settings.parts))
    if calibration:
        recorded = Recorded(order.base.digest, calibration.digest, layout)
        if "gradient" in statistics_of(function):
            gradients = Gradients(recorded.folder, layout)
            gradients.gather(base, calibration.windows, order.listen)
        if settings.budget is not None:
            recorded.gather(base, calibration.windows, {"hessian"}, order.listen)
            per_matrix = widths_within(settings.budget, treatment, TensorSource(base), layout, recorded, order.listen)
            treatment = replace(treatment, per_matrix=per_matrix)
        if wanted and not settings.sequential:
            recorded.gather(base, calibration.windows, wanted, order.listen)
    files, tally = walk(
        base,
        out,
        treatment,
        recorded=recorded if wanted else None,
        gradients=gradients,
        windows=calibration.windows if calibration and settings.sequential else None,
        listen=order.listen,
    )
    parameters = elements(TensorSource(base)) - tally.saved_parameters
    figures = tally.figures() | _matrices_by_bits(treatment)
    return Made("checkpoint", files, _quantization(order), parameters, figures, _note(note, tally))


def _matrices_by_bits(treatment: Treatment) -> dict[str, Any]:
    """How many matrices got how many bits, where a budget decided on that."""
    counts = Counter(options["bits"] for options in treatment.per_matrix.values())
    return {"matrices_by_bits": {str(bits): counts[bits] for bits in sorted(counts)}} if counts else {}


def _quantization(order: Order) -> str:
    if purpose_of(order.function) != "Quantize":
        return order.base.quantization if order.base.kind == "checkpoint" else ""
    bits = order.settings.budget or order.options.get("bits")
    return f"{order.method}-{bits:g}" if bits else order.method


def _note(note: str, tally: Tally) -> str:
    parts = [note, tally.note, *tally.warnings[:3]]
    if len(tally.warnings) > 3:
        parts.append(f"and {len(tally.warnings) - 3} more such warnings")
    return "; ".join(part for part in parts if part)


def _change_structure(
    order: Order, base: Path, out: Path, layout: Layout, calibration: Calibration | None, note: str
) -> Made:
    source, function = TensorSource(base), order.function
    wanted = statistics_of(function)
    given: dict[str, Any] = {
        "layout": layout,
        "config": read_json(base / "config.json"),
        "tensors": source,
        "folder": base,
        "seed": order.seed,
    }
    if calibration:
        given |= {"texts": calibration.texts, "tokens": calibration.windows}
        if wanted:
            recorded = Recorded(order.base.digest, calibration.digest, layout)
            recorded.gather(base, calibration.windows, wanted, order.listen)
            given |= {name: recorded.network(name) for name in wanted}
    made: Reshaped = function(*(given[name] for name in wants(function)), **order.options)
    shutil.rmtree(out, ignore_errors=True)
    files = {path.name: path for path in save_tensors(out, made.tensors)}
    files |= copy_companions(source, out)
    for name, body in made.files.items():
        if body is not None:
            files[name] = out / name
            write_atomic(files[name], [body])
        elif name in files:
            files.pop(name).unlink()
    write_atomic(out / "config.json", [json.dumps(dict(made.config), indent=2).encode()])
    written = elements(TensorSource(out))
    notes = "; ".join(part for part in (note, made.note) if part)
    return Made("checkpoint", files, "", written, dict(made.figures), notes, made.architecture)


def _write_file(order: Order, base: Path, out: Path, calibration: Calibration | None, note: str) -> Made:
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    given = {
        "base": order.base,
        "checkpoint": base,
        "calibration": calibration,
        "out": out,
        "seed": order.seed,
        "listen": order.listen,
    }
    made: Made = order.function(*(given[name] for name in wants(order.function)), **order.options)
    return replace(made, note="; ".join(part for part in (note, made.note) if part))
