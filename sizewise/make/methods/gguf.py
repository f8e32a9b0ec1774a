"""gguf: encode into llama.cpp's own grids, with errors weighed and made up for as GPTQ does (arXiv:2210.17323).

llama.cpp's quantizer rounds every weight by itself; an importance matrix tells it how loud each input is. Here the
whole Hessian of each layer's inputs counts, so that the error of one weight is made up for by others. The file is an
ordinary GGUF.
"""

from collections import Counter
from pathlib import Path
from typing import Annotated, Any, Literal

from sizewise.core.errors import Unsupported
from sizewise.core.events import Listener
from sizewise.core.model import Model
from sizewise.core.params import Range, Search
from sizewise.load.gguf.file import GgufInfo, read_gguf
from sizewise.load.gguf.types import GgmlType
from sizewise.load.gguf.write import copy_gguf
from sizewise.make.calibration import Calibration
from sizewise.make.gguf_descent import ROUNDS
from sizewise.make.gguf_encoder import Encoder
from sizewise.make.gguf_mix import assign, average_bits, may_change
from sizewise.make.gguf_sensitivity import measured, pulls_of
from sizewise.make.gguf_sweep import TRIES
from sizewise.make.gradients import Gradients
from sizewise.make.method import Made, model_method
from sizewise.make.recorded import Recorded

# fmt: off
Type = Literal[
    "Q8_0", "Q6_K", "Q5_K_M", "Q5_K_S", "Q5_1", "Q5_0", "Q4_K_M", "Q4_K_S", "Q4_1", "Q4_0", "IQ4_NL", "Q3_K_L",
    "Q3_K_M", "Q3_K_S", "Q2_K",
]
# fmt: on
_GRADIENT_WINDOWS = 8  # which tensors are sensitive shows in few


@model_method
def gguf(
    base: Model,
    checkpoint: Path,
    calibration: Calibration,
    out: Path,
    listen: Listener,
    *,
    type: Annotated[Type, Search("Q4_K_M", "Q4_0", "Q3_K_M", "Q2_K")] = "Q4_K_M",
    types: Literal["measured", "mix"] = "measured",
    damp: Annotated[float, Range(0, 1)] = 0.01,
    tries: Annotated[int, Range(1, 100)] = TRIES,
    rounds: Annotated[int, Range(0, 100)] = ROUNDS,
) -> Made:
    """Quantize: into the types of GGUF, each error made up for by other weights (GPTQ and coordinate descent).

    Args:
        base: a checkpoint, or a GGUF of one file.
        checkpoint: the base as a checkpoint folder.
        calibration: text that shows what inputs occur.
        out: folder for the new file.
        listen: hears the blocks calibrated and the bytes written.
        type: name of the mix, from most to fewest bits per weight, as llama.cpp defines it.
        types: "mix" takes the mix's own type for every tensor; "measured" gives bits to the tensors that need them
            most, in no more bytes than the mix takes.
        damp: share of each Hessian's mean diagonal that is added to its diagonal.
        tries: scales that are tried for each group of weights.
        rounds: of coordinate descent after the sweep; 0 = none.

    Returns:
        One file, "model.gguf".

    Raises:
        Unsupported: the family has no GGUF architecture, or the base is one part of a split GGUF.
    """
    info = _whole(base, checkpoint, out)
    encoder = Encoder(checkpoint, info, tries=tries, rounds=rounds, damp=damp)
    recorded = Recorded(base.digest, calibration.digest, encoder.layout)
    chosen, figures = _types(encoder, recorded, checkpoint, calibration, type, types, listen)
    target = out / "model.gguf"
    copy_gguf(info, target, chosen, encoder.encode, file_type=type, listen=listen)
    if info.path.parent == out:
        info.path.unlink()
    figures |= _figures(info, chosen, calibration)
    return Made("gguf", {"model.gguf": target}, type, info.parameters, figures, architecture=info.architecture)


def _types(
    encoder: Encoder, recorded: Recorded, folder: Path, text: Calibration, type: Type, types: str, listen: Listener
) -> tuple[dict[str, GgmlType], dict[str, Any]]:
    """Let the encoder know the inputs; then the type of each tensor, and what that is expected to cost."""
    recorded.gather(folder, text.windows, ["hessian"], listen)
    encoder.use(recorded)
    chosen = assign(encoder.info, type)
    if types == "mix":
        return chosen, {}
    gradients = Gradients(recorded.folder / "outputs", encoder.layout)
    gradients.gather(folder, text.windows[:_GRADIENT_WINDOWS], listen)
    chosen, kl = measured(encoder, pulls_of(encoder.layout, recorded, gradients), chosen)
    return chosen, {"expected_kl": kl}


def _figures(info: GgufInfo, chosen: dict[str, GgmlType], text: Calibration) -> dict[str, Any]:
    return {
        "weight_bits": round(average_bits(info, chosen), 4),
        "calibration_tokens": text.windows.numel(),
        "types": dict(Counter(chosen[tensor.name].name for tensor in info.tensors if may_change(tensor))),
    }


def _whole(base: Model, folder: Path, out: Path) -> GgufInfo:
    """The base as a GGUF, whose metadata the result takes over."""
    from sizewise.load.checkpoint.export_gguf import export_gguf

    if base.kind == "gguf":
        info = read_gguf(next(iter(base.files.values())))
        if info.metadata.get("split.count", 0) > 1:
            raise Unsupported(f"{base.name} is one part of a split GGUF; join the parts first")
        return info
    whole = out / "whole.gguf"
    export_gguf(folder, whole, name=base.name)
    return read_gguf(whole)
