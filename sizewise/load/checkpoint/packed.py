"""Small forms in a checkpoint's files: which tensors a form becomes, and what config.json says of them.

Integers on uniform grids are written as compressed-tensors' "pack-quantized", which transformers and vLLM read: codes
packed into words, a scale and a packed zero point for each group, the shape. What that format or its readers do not
take (real-valued zeros, scattered groups, transposed matrices, zero points of experts, codebooks, outlier columns, thin
factors) is described under a key of our own, `quantization_config.sizewise`, without a `quant_method`: other loaders
then refuse the model instead of filling the gaps with random numbers. Integers have the same tensors either way.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.checkpoint.packed_bits import pack, unpack, words_for
from sizewise.load.forms import Codebook, Factors, Int8, Packed, Quantized, narrow, wide

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
_KEY, _METHOD = "sizewise", "compressed-tensors"
_KINDS = ("uniform", "int8", "codebook", "factors")
_EXPERT = re.compile(r"\.experts\.\d+\.")
# every tensor of a small form is called MODULE.SUFFIX
SUFFIXES = (
    *("weight_packed", "weight_scale", "weight_zero_point", "weight_shape", "weight_g_idx"),
    *("weight_codes", "weight_kept", "weight_columns", "weight_table", "weight_left", "weight_right"),
)


@dataclass(frozen=True, slots=True)
class Spec:
    """What must be known of a form beside its tensors."""

    kind: str  # one of _KINDS
    bits: int = 0
    group: int = 0  # columns in a group; 0: the whole row
    symmetric: bool = False
    threshold: float = 0.0
    transposed: bool = False  # the network wants (in, out)
    shared: bool = False  # compressed-tensors can hold it

    def as_json(self) -> dict[str, Any]:
        """Only what differs from the defaults."""
        plain = Spec(self.kind)
        names = ("bits", "group", "symmetric", "threshold", "transposed", "shared")
        differ = {name: getattr(self, name) for name in names if getattr(self, name) != getattr(plain, name)}
        return {"kind": self.kind, **differ}


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that files hold in a small form."""

    spec: Spec
    shape: tuple[int, int]  # (out, in)
    rank: int | None  # of thin factors

    @property
    def parameters(self) -> int:
        """Numbers that it has: codes count as the weights they stand for, factors as what they are."""
        return self.rank * sum(self.shape) if self.rank is not None else self.shape[0] * self.shape[1]

    @property
    def stored_shape(self) -> tuple[int, int]:
        """That the dense matrix would have in the files."""
        return (self.shape[1], self.shape[0]) if self.spec.transposed else self.shape


def spec_of(form: Packed, transposed: bool) -> Spec:
    """The description of a form.

    Args:
        form: the matrix.
        transposed: whether the network wants it the other way round.
    """
    if isinstance(form, Quantized):
        scattered = form.groups is not None or form.codes.shape[1] % form.group != 0
        shared = not (transposed or scattered) and bool((form.zeros == form.zeros.round()).all())
        group = form.group if form.group < form.codes.shape[1] else 0
        return Spec("uniform", form.bits, group, form.symmetric, transposed=transposed, shared=shared)
    if isinstance(form, Int8):
        return Spec("int8", 8, threshold=form.threshold, transposed=transposed)
    if isinstance(form, Codebook):
        return Spec("codebook", form.bits, transposed=transposed)
    if isinstance(form, Factors):
        return Spec("factors", transposed=transposed)
    raise TypeError(f"{type(form).__name__} has no form on disk")


def tensors_of(form: Packed) -> "dict[str, Tensor]":
    """The tensors of a form by their suffixes; floating-point ones in 16 bits, exactly those of `form.stored()`."""
    import torch

    if isinstance(form, Quantized):
        found = {"weight_packed": pack(form.codes, form.bits), "weight_shape": torch.tensor(form.shape)}
        found["weight_scale"] = form.scales.to(torch.bfloat16)
        if not bool((form.zeros == form.zeros.round()).all()):
            found["weight_zero_point"] = form.zeros.to(torch.float16)
        elif not form.symmetric:  # rows lie along the words: compressed-tensors packs zeros down the columns
            found["weight_zero_point"] = pack(form.zeros.T.to(torch.uint8), form.bits).T
        if form.groups is not None:
            found["weight_g_idx"] = form.groups.to(torch.int32)
        return found
    if isinstance(form, Int8):
        kept = {"weight_kept": form.kept.to(torch.int32), "weight_columns": narrow(form.columns)}
        return {"weight_codes": form.codes, "weight_scale": form.scales.to(torch.bfloat16), **kept}
    if isinstance(form, Codebook):
        packed = {"weight_packed": pack(form.codes, form.bits), "weight_shape": torch.tensor(form.shape)}
        return packed | {"weight_table": narrow(form.table)}
    if isinstance(form, Factors):
        return {"weight_left": narrow(form.left), "weight_right": narrow(form.right)}
    raise TypeError(f"{type(form).__name__} has no form on disk")


def form_of(name: str, spec: Spec, tensors: "Mapping[str, Tensor]") -> Packed:
    """The form that `tensors_of` took apart.

    Args:
        name: of the module, for messages.
        spec: its description.
        tensors: by suffix.

    Raises:
        BadModel: a tensor is missing or has a shape that contradicts the others.
    """
    try:
        form = _form(spec, tensors)
        _check(form)
    except KeyError as error:
        raise BadModel(f"{name}: {error.args[0]} is missing; get the model again") from error
    except (RuntimeError, ValueError, IndexError) as error:
        line = (str(error).splitlines() or ["?"])[0][:200]
        raise BadModel(f"{name}: its packed tensors contradict each other ({line}); get the model again") from error
    return form


def _form(spec: Spec, tensors: "Mapping[str, Tensor]") -> Packed:
    if spec.kind == "int8":
        kept, outer = tensors["weight_kept"].long(), wide(tensors["weight_columns"])
        return Int8(tensors["weight_codes"], wide(tensors["weight_scale"]), kept, outer, spec.threshold)
    if spec.kind == "factors":
        return Factors(wide(tensors["weight_left"]), wide(tensors["weight_right"]))
    rows, columns = (int(size) for size in tensors["weight_shape"].tolist())
    codes = unpack(tensors["weight_packed"], spec.bits, columns)
    if spec.kind == "codebook":
        return Codebook(codes, wide(tensors["weight_table"]), spec.bits)
    scales = wide(tensors["weight_scale"])
    zeros = zeros_of(spec, tensors, rows)
    groups = tensors.get("weight_g_idx")
    return Quantized(codes, scales, zeros, spec.bits, spec.group or columns, spec.symmetric, groups)


def zeros_of(spec: Spec, tensors: "Mapping[str, Tensor]", rows: int) -> "Tensor":
    """(out, groups) float32: the zero points of a uniform form."""
    import torch

    if spec.symmetric:
        return torch.full_like(wide(tensors["weight_scale"]), 2 ** (spec.bits - 1))
    zeros = tensors["weight_zero_point"]
    return wide(zeros) if zeros.is_floating_point() else wide(unpack(zeros.T, spec.bits, rows).T)


def _check(form: Packed) -> None:
    """Refuse parts that do not fit together, before they are multiplied with."""
    rows, columns = form.shape
    if isinstance(form, Quantized):
        groups = form.column_groups()
        fits = form.scales.shape == form.zeros.shape == (rows, form.scales.shape[1]) and len(groups) == columns
        fits = fits and int(groups.min()) >= 0 and int(groups.max()) < form.scales.shape[1]
    elif isinstance(form, Int8):
        kept = form.kept
        inside = not len(kept) or (int(kept.min()) >= 0 and int(kept.max()) < columns)
        fits = inside and form.scales.shape == (rows,) and form.columns.shape == (rows, len(kept))
    elif isinstance(form, Codebook):
        fits = form.table.shape == (rows, 2**form.bits)
    elif isinstance(form, Factors):
        fits = form.left.shape[1] == form.right.shape[0]
    if not fits:
        raise ValueError(f"parts of a matrix of {rows} x {columns}")


def config_of(specs: Mapping[str, Spec], dense: Iterable[str]) -> dict[str, Any]:
    """What config.json says under `quantization_config`.

    Args:
        specs: of every module in a small form, by its name in the files.
        dense: names of the matrices that stay as they are.
    """
    if is_shared(specs):
        return _compressed_tensors(specs, dense)
    alike: dict[Spec, list[str]] = {}
    for name, spec in specs.items():
        alike.setdefault(spec, []).append(name)
    forms = [{**spec.as_json(), "modules": names} for spec, names in alike.items()]
    return {_KEY: {"version": VERSION, "forms": forms}}


def is_shared(specs: Mapping[str, Spec]) -> bool:
    """True where other programs can read all forms; transformers reads no zero points of experts."""
    return all(spec.shared and (spec.symmetric or not _EXPERT.search(name)) for name, spec in specs.items())


def note_on(specs: Mapping[str, Spec]) -> str:
    """What a reader must know of the files of a model with these forms; "" without any."""
    if not specs:
        return ""
    if not is_shared(specs):
        return "its small matrices are in sizewise's own form, which other programs do not read"
    odd = sorted({spec.bits for spec in specs.values()} - {2, 4, 8})  # before 0.18 words held whole codes
    needs = f"; those of {', '.join(map(str, odd))} bits need its version 0.18" if odd else ""
    return f"its integers are in compressed-tensors' form{needs}"


def _compressed_tensors(specs: Mapping[str, Spec], dense: Iterable[str]) -> dict[str, Any]:
    alike: dict[Spec, list[str]] = {}
    for name, spec in specs.items():
        alike.setdefault(spec, []).append(name)
    groups = {}
    for number, (spec, names) in enumerate(alike.items()):
        targets = ["Linear"] if len(alike) == 1 else [f"re:{re.escape(name)}$" for name in names]
        weights = {
            "num_bits": spec.bits,
            "type": "int",
            "symmetric": spec.symmetric,
            "strategy": "group" if spec.group else "channel",
            "group_size": spec.group or -1,
            "dynamic": False,
        }
        groups[f"group_{number}"] = {"targets": targets, "weights": weights, "format": "pack-quantized"}
    return {
        "quant_method": _METHOD,
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": ["lm_head", *sorted(dense)],
        # transformers 5 takes packed zero points and experts in no other way; weights then have the type of the scales
        **({"dequantize": True} if any(_EXPERT.search(n) or not spec.symmetric for n, spec in specs.items()) else {}),
    }


def specs_of(config: Mapping[str, Any], names: Iterable[str]) -> dict[str, Spec]:
    """The small forms that a checkpoint holds, by module.

    Args:
        config: config.json.
        names: of all tensors in the files.

    Returns:
        Nothing for a checkpoint without any.

    Raises:
        BadModel: the description is no such thing, or contradicts the names.
        Unsupported: packed in a way that is not known here; the message names it.
    """
    said = config.get("quantization_config")
    if not isinstance(said, dict):
        return {}
    if _KEY in said:
        return dict(_own(said[_KEY]))
    method, form = said.get("quant_method"), said.get("format")
    if method != _METHOD or form != "pack-quantized":
        raise Unsupported(f"packed as {method} {form or ''}".rstrip() + ": such weights are not read here")
    modules = [name.removesuffix(".weight_packed") for name in names if name.endswith(".weight_packed")]
    return {module: _scheme(said, module) for module in modules}


def _own(said: Any) -> Iterator[tuple[str, Spec]]:
    if not isinstance(said, dict) or said.get("version") != VERSION:
        version = said.get("version") if isinstance(said, dict) else None
        raise Unsupported(f"packed in version {version} of sizewise's forms, which needs a newer sizewise")
    try:
        for entry in said["forms"]:
            values = {key: value for key, value in entry.items() if key != "modules"}
            spec = Spec(**values)
            if spec.kind not in _KINDS or not 0 <= spec.bits <= 8 or spec.group < 0:
                raise ValueError(f"no such form: {values}")
            for name in entry["modules"]:
                yield str(name), spec
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadModel(f"config.json: quantization_config.sizewise is damaged: {str(error)[:200]}") from error


def _scheme(said: Mapping[str, Any], module: str) -> Spec:
    """What compressed-tensors' groups say of a module: the first target that fits it."""
    try:
        for group in said["config_groups"].values():
            if any(_targets(target, module) for target in group["targets"]):
                weights = group["weights"]
                if weights.get("type", "int") != "int" or not 1 <= int(weights["num_bits"]) <= 8:
                    raise Unsupported(f"{module}: packed as {weights.get('num_bits')}-bit {weights.get('type')}")
                size = max(int(weights.get("group_size") or 0), 0)
                return Spec(
                    "uniform", int(weights["num_bits"]), size, bool(weights.get("symmetric", True)), shared=True
                )
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise BadModel(f"config.json: quantization_config is damaged: {str(error)[:200]}") from error
    raise BadModel(f"config.json: quantization_config names no scheme for {module}, which is packed")


def _targets(target: str, module: str) -> bool:
    if target.startswith("re:"):
        return re.match(target.removeprefix("re:"), module) is not None
    return target in ("Linear", module) or module.endswith(f".{target}")


def matrix_of(
    name: str, spec: Spec, shapes: Mapping[str, tuple[int, ...]], read: Callable[[str], tuple[int, ...]]
) -> Matrix:
    """What files hold of a matrix, by their headers.

    Args:
        name: of the module.
        spec: its description.
        shapes: of all tensors, by name.
        read: the values of a tensor of two 64-bit integers.

    Raises:
        BadModel: a tensor is missing, or shapes contradict each other.
    """
    kind = spec.kind
    parts = {"int8": ("weight_codes",), "factors": ("weight_left", "weight_right")}.get(kind, ("weight_shape",))
    for part in parts:
        if f"{name}.{part}" not in shapes:
            raise BadModel(f"{name}.{part} is missing; get the model again")
    found = [shapes[f"{name}.{part}"] for part in parts]
    if kind == "factors" and all(len(one) == 2 for one in found) and found[0][1] == found[1][0]:
        return Matrix(spec, (found[0][0], found[1][1]), found[0][1])
    if kind == "int8" and len(found[0]) == 2:
        return Matrix(spec, (found[0][0], found[0][1]), None)
    if kind in ("uniform", "codebook") and found[0] == (2,):
        rows, columns = read(f"{name}.weight_shape")
        if shapes.get(f"{name}.weight_packed") == (rows, words_for(columns, spec.bits)):
            return Matrix(spec, (rows, columns), None)
    raise BadModel(f"{name}: its packed tensors contradict each other; get the model again")


def title_of(matrices: Iterable[Matrix], dense: str) -> str:
    """In a word, how most weights of a model are held: "int4-g64", "int8", "lut4".

    Args:
        matrices: those in small forms.
        dense: the type of the other weights, which is also that of thin factors.
    """
    counted: Counter[str] = Counter()
    for matrix in matrices:
        spec = matrix.spec
        grouped = f"int{spec.bits}-g{spec.group}" if spec.group else f"int{spec.bits}"
        title = {"uniform": grouped, "int8": "llm.int8", "codebook": f"lut{spec.bits}"}.get(spec.kind, dense)
        counted[title] += matrix.parameters
    return counted.most_common(1)[0][0] if counted else dense
