"""What a checkpoint folder holds, read without torch: config.json, the tokenizer's files, safetensors headers.

A folder comes from anywhere, so nothing in it is believed before it is checked: pickled weights and code are refused,
links and names may not leave the folder, and every header must describe exactly the bytes that follow it. A
safetensors file is 8 bytes that hold n, n bytes of JSON `{name: {dtype, shape, data_offsets}}`, then the tensors
one after the other with neither hole nor overlap.
"""

import json
import math
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sizewise.core.errors import BadModel, StorageError, UnsafeModel, Unsupported
from sizewise.load.checkpoint.packed import SUFFIXES, Matrix, matrix_of, specs_of, title_of

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".hdf5", ".msgpack", ".joblib", ".npy"})
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors format itself
_MAX_JSON_BYTES = 64_000_000
_BITS = {"BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6}
_BITS |= {"I16": 16, "U16": 16, "F16": 16, "BF16": 16, "I32": 32, "U32": 32, "F32": 32}
_BITS |= {"I64": 64, "U64": 64, "F64": 64, "C64": 64}
_WEIGHT_DTYPES = frozenset({"F64", "F32", "F16", "BF16", "F8_E5M2", "F8_E4M3", "F6_E2M3", "F6_E3M2", "F4"})
_TOKENIZERS = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.txt", "vocab.json")
_COMPANIONS = (
    *("config.json", "generation_config.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "merges.txt", "chat_template.jinja", "chat_template.json", *_TOKENIZERS),
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
    *("LICENSE", "LICENSE.txt"),
)
# Published checkpoints of these families name code of their own although transformers has the family built in:
# that code is neither copied nor run. Anything else that names code cannot be loaded without running it.
_BUILT_IN_DESPITE_CODE = frozenset({"falcon", "phi", "phi3", "phimoe"})
_ENCODERS = frozenset(
    {
        *("albert", "bert", "camembert", "convbert", "deberta", "deberta-v2", "distilbert", "electra", "ernie"),
        *("mobilebert", "modernbert", "mpnet", "nomic_bert", "roberta", "roberta-prelayernorm", "squeezebert"),
        *("xlm-roberta", "xlm-roberta-xl"),
    }
)
# Masks and positions that old checkpoints stored beside the weights; they are no parameters.
_BUFFERS = re.compile(r"(position_ids|inv_freq|\.attn\.masked_bias)$|\.attn\.bias$")
_OWN_LINKS: ContextVar[Path | None] = ContextVar("own_links", default=None)


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint, as its files describe it."""

    architecture: str  # config's model_type: "llama", "phi3", "bert"
    parameters: int | None  # None where packed weights cannot be counted from their shapes
    dtype: str  # safetensors' name of the type that most weights have: "BF16"; or their small form: "int4-g64"
    context_length: int | None
    embedding_length: int | None
    template: str | None
    files: dict[str, Path]  # relative name, "/" as separator -> path
    is_encoder: bool
    size_bytes: int
    packed: dict[str, Matrix] = field(default_factory=dict)  # matrices in small forms, by module
    base_dtype: str = ""  # of the weights that are in none


@dataclass(frozen=True, slots=True)
class Tensor:
    """One entry of a safetensors header."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int  # both count from the end of the header


def inspect_checkpoint(folder: str | Path) -> CheckpointInfo:
    """Read what a checkpoint folder says about itself.

    Raises:
        BadModel: no model is there, or one whose files contradict each other; the message names the file.
        StorageError: a file cannot be read.
        UnsafeModel: only pickled weights, code of its own, or a name or link that leaves the folder.
    """
    root = Path(folder).expanduser()
    if not root.is_dir():
        raise BadModel(f"{folder}: no such folder; a checkpoint is a folder with config.json and model.safetensors")
    try:
        return _inspect(root)
    except OSError as error:
        raise StorageError(f"{error.filename or root}: cannot be read: {error.strerror or error}") from error


def _inspect(root: Path) -> CheckpointInfo:
    names = {path.name for path in root.iterdir()}
    weights = _weight_files(root, names)
    if "config.json" not in names:
        raise BadModel(f"{root}: config.json is missing")
    if not names & set(_TOKENIZERS):
        raise BadModel(f"{root}: tokenizer.json is missing, and so are {', '.join(_TOKENIZERS[1:])}")
    config = read_json(_inside(root, "config.json"))
    tokenizer = read_json(_inside(root, "tokenizer_config.json")) if "tokenizer_config.json" in names else {}
    architecture = config.get("model_type")
    if not isinstance(architecture, str) or not architecture:
        raise BadModel(f"{root / 'config.json'}: model_type is missing")
    _refuse_code(root, config, tokenizer, architecture)
    companions = [name for name in _COMPANIONS if name in names] + _module_files(root, names)
    files = {name: _inside(root, name) for name in companions}
    tensors, where = _read_weights(root, weights)
    files |= {name: _inside(root, name) for name in weights}
    if WEIGHTS not in weights:
        files[INDEX] = _inside(root, INDEX)
    packed = _packed(root, config, tensors, where)
    inside = {f"{module}.{part}" for module in packed or () for part in SUFFIXES}
    counted = _count({name: tensor for name, tensor in tensors.items() if name not in inside})
    small = [] if packed is None else list(packed.values())
    dense = counted.most_common(1)[0][0] if counted else ""
    parameters = sum(counted.values()) + sum(matrix.parameters for matrix in small)
    text: dict[str, Any] = config["text_config"] if isinstance(config.get("text_config"), dict) else config
    return CheckpointInfo(
        architecture=architecture,
        parameters=None if packed is None else parameters,
        dtype=title_of(small, dense),
        context_length=_context_length(root, names, text),
        embedding_length=_first_int(text, "hidden_size", "n_embd", "d_model", "dim"),
        template=_template(root, names, tokenizer),
        files=files,
        is_encoder="modules.json" in names or (architecture in _ENCODERS and not config.get("is_decoder")),
        size_bytes=sum(path.stat().st_size for path in files.values()),
        packed=packed or {},
        base_dtype=dense,
    )


@contextmanager
def own_links(folder: Path) -> Iterator[None]:
    """While this lasts, links in `folder` may lead anywhere: it was put together here, from files already checked."""
    token = _OWN_LINKS.set(folder.resolve())
    try:
        yield
    finally:
        _OWN_LINKS.reset(token)


def read_safetensors_header(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, after checking that they fill it exactly.

    Raises:
        BadModel: the header is no header, or does not describe the bytes that follow.
    """
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if size < 8 or length > min(MAX_HEADER_BYTES, size - 8):
            raise BadModel(f"{path}: cut short or no safetensors file: header of {length} bytes in a file of {size}")
        raw = file.read(length)
    header = _parse(path, raw)
    header.pop("__metadata__", None)
    tensors = {name: _tensor(path, name, entry) for name, entry in header.items()}
    position = 0
    for name, tensor in sorted(tensors.items(), key=lambda pair: (pair[1].start, pair[1].end)):
        if tensor.start != position:
            fault = "overlaps the one before it" if tensor.start < position else "leaves a hole before it"
            raise BadModel(f"{path}: tensor {name!r} {fault}; the file is damaged")
        position = tensor.end
    if position != size - 8 - length:
        state = "cut short" if position > size - 8 - length else "followed by other bytes"
        raise BadModel(f"{path}: {state}: tensors need {position} bytes, {size - 8 - length} are there")
    return tensors


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object in a file of a model.

    Raises:
        BadModel: the file is no JSON object, or larger than any honest one.
    """
    if path.stat().st_size > _MAX_JSON_BYTES:
        raise BadModel(f"{path}: more than {_MAX_JSON_BYTES} bytes; too large for what it should hold")
    return _parse(path, path.read_bytes())


def _parse(path: Path, raw: bytes) -> dict[str, Any]:
    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key appears twice")
        return found

    try:
        value = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except (ValueError, RecursionError) as error:
        raise BadModel(f"{path}: no readable JSON: {error}") from error
    if not isinstance(value, dict):
        raise BadModel(f"{path}: should hold a JSON object, holds a {type(value).__name__}")
    return value


def _tensor(path: Path, name: str, entry: Any) -> Tensor:
    shape = _counts(entry.get("shape")) if isinstance(entry, dict) else None
    offsets = _counts(entry.get("data_offsets")) if isinstance(entry, dict) else None
    if shape is None or offsets is None or len(offsets) != 2:
        raise BadModel(f"{path}: tensor {name!r} has no valid shape and data_offsets")
    if not isinstance(entry.get("dtype"), str) or entry["dtype"] not in _BITS:
        raise BadModel(f"{path}: tensor {name!r} has unknown dtype {entry.get('dtype')!r}")
    need = math.prod(shape) * _BITS[entry["dtype"]]
    if (offsets[1] - offsets[0]) * 8 != need:
        raise BadModel(f"{path}: tensor {name!r} of shape {shape} needs {need // 8} bytes, has {offsets}")
    return Tensor(entry["dtype"], tuple(shape), offsets[0], offsets[1])


def _counts(value: Any) -> list[int] | None:
    valid = isinstance(value, list) and all(type(number) is int and 0 <= number < 2**63 for number in value)
    return value if valid else None


def _weight_files(root: Path, names: set[str]) -> list[str]:
    """Names of the files that hold the weights, in the order in which transformers looks for them."""
    if WEIGHTS in names:
        return [WEIGHTS]
    if INDEX in names:
        return _shards(root)
    pickles = sorted(name for name in names if Path(name).suffix.lower() in PICKLES)
    safe = sorted(name for name in names if name.endswith(".safetensors"))
    if pickles and not safe:
        raise UnsafeModel(
            f"{root}: holds only pickled weights ({pickles[0]}), which can run code when read: convert them with "
            "the safetensors library, or take a revision that has model.safetensors"
        )
    if "adapter_config.json" in names:
        raise BadModel(f"{root}: holds an adapter, no model: merge it into its base model first")
    found = f"; {safe[0]} alone is none of the names that are loaded" if safe else ""
    raise BadModel(f"{root}: {WEIGHTS} is missing, and so is {INDEX}{found}")


def _shards(root: Path) -> list[str]:
    index = _inside(root, INDEX)
    shard_of = read_json(index).get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of or not all(isinstance(name, str) for name in shard_of.values()):
        raise BadModel(f"{index}: weight_map is missing or names no files")
    shards = sorted(set(shard_of.values()))
    for name in shards:
        if "/" in name or "\\" in name or name in ("", ".", "..") or "\0" in name:
            raise UnsafeModel(f"{index}: names {name!r}, which is no file of this folder")
        if not name.endswith(".safetensors"):
            raise UnsafeModel(f"{index}: names {name!r}; only .safetensors files are read, pickles can run code")
        if not (root / name).is_file():
            raise BadModel(f"{index}: names {name}, which is missing; fetch the checkpoint again")
    return shards


def _read_weights(root: Path, weights: list[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """All tensors by name, and the name of the file that each is in."""
    tensors: dict[str, Tensor] = {}
    where: dict[str, str] = {}
    for file in weights:
        header = read_safetensors_header(_inside(root, file))
        tensors |= header
        where |= dict.fromkeys(header, file)
    if not tensors:
        raise BadModel(f"{root / weights[0]}: holds no tensors")
    if WEIGHTS not in weights:
        for name, file in read_json(root / INDEX)["weight_map"].items():
            if where.get(name) != file:
                raise BadModel(f"{root / file}: tensor {name!r} is missing, although {INDEX} says that it is there")
    return tensors, where


def _packed(
    root: Path, config: dict[str, Any], tensors: dict[str, Tensor], where: dict[str, str]
) -> dict[str, Matrix] | None:
    """Matrices in small forms; None where the weights are packed in a way that is not known here."""
    try:
        specs = specs_of(config, tensors)
    except Unsupported:
        return None

    def read(name: str) -> tuple[int, ...]:
        with (root / where[name]).open("rb") as stream:
            stream.seek(8 + int.from_bytes(stream.read(8), "little") + tensors[name].start)
            raw = stream.read(16)
        return int.from_bytes(raw[:8], "little"), int.from_bytes(raw[8:], "little")

    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    return {module: matrix_of(module, spec, shapes, read) for module, spec in specs.items()}


def _count(tensors: dict[str, Tensor]) -> Counter[str]:
    """Number of weights of each type."""
    counted: Counter[str] = Counter()
    for name, tensor in tensors.items():
        buffer = _BUFFERS.search(name) and not (name.endswith(".attn.bias") and len(tensor.shape) < 3)
        if tensor.dtype in _WEIGHT_DTYPES and not buffer:
            counted[tensor.dtype] += math.prod(tensor.shape)
    return counted


def _inside(root: Path, name: str) -> Path:
    """The file of that name, unless it is a link to somewhere else.

    A snapshot in the hub's cache links to `../../blobs`: those files are the cache's own and are allowed.
    """
    path, home = root / name, root.resolve()
    real = path.resolve()
    cached = home.parent.name == "snapshots" and real.is_relative_to(home.parent.parent / "blobs")
    if not real.is_relative_to(home) and not cached and home != _OWN_LINKS.get():
        raise UnsafeModel(f"{path}: is a link that leaves the folder (to {real}); put a copy of the file there")
    if not real.is_file():
        raise BadModel(f"{path}: is missing or no regular file")
    return path


def _module_files(root: Path, names: set[str]) -> list[str]:
    """Files of the modules that a sentence-transformers checkpoint lists after the transformer."""
    if "modules.json" not in names:
        return []
    path = _inside(root, "modules.json")
    try:
        modules = json.loads(path.read_bytes())
        folders = [str(module["path"]) for module in modules if module["path"]]
    except (ValueError, RecursionError, TypeError, KeyError) as error:
        raise BadModel(f"{path}: should hold a list of modules with their paths") from error
    found = []
    for folder in folders:
        if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.-]*", folder):
            raise UnsafeModel(f"{path}: names {folder!r}, which is no folder of this checkpoint")
        for name in (f"{folder}/config.json", f"{folder}/{WEIGHTS}"):
            if (root / name).exists():
                found.append(name)
    return found


def _refuse_code(root: Path, config: dict[str, Any], tokenizer: dict[str, Any], architecture: str) -> None:
    for file, content in (("config.json", config), ("tokenizer_config.json", tokenizer)):
        if content.get("auto_map") and architecture not in _BUILT_IN_DESPITE_CODE:
            raise UnsafeModel(
                f"{root / file}: auto_map asks to run code that comes with the model, which is refused; if "
                f"transformers has {architecture!r} built in, remove auto_map from the file"
            )


def _context_length(root: Path, names: set[str], config: dict[str, Any]) -> int | None:
    length = _first_int(config, "max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "seq_length")
    if "sentence_bert_config.json" in names:
        trained = _first_int(read_json(_inside(root, "sentence_bert_config.json")), "max_seq_length")
        return min(length or trained, trained) if trained else length
    return length


def _first_int(config: dict[str, Any], *keys: str) -> int | None:
    return next((config[key] for key in keys if type(config.get(key)) is int and config[key] > 0), None)


def _template(root: Path, names: set[str], tokenizer: dict[str, Any]) -> str | None:
    """The chat template: a file of its own wins over an entry in tokenizer_config.json, as in transformers."""
    if "chat_template.jinja" in names:
        try:
            return _inside(root, "chat_template.jinja").read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise BadModel(f"{root / 'chat_template.jinja'}: is not UTF-8") from error
    if "chat_template.json" in names:
        tokenizer = read_json(_inside(root, "chat_template.json"))
    template = tokenizer.get("chat_template")
    if isinstance(template, list):  # several, by name
        named = {entry.get("name"): entry.get("template") for entry in template if isinstance(entry, dict)}
        template = named.get("default")
    return template if isinstance(template, str) else None
