"""Which matrix does what: the parts of a decoder by role, for every family whose checkpoints can be made smaller.

    layout_of(folder).blocks[0].linears  ->  (Linear("model.layers.0.self_attn.q_proj", "q", ...), ...)

A family is a row in `_FAMILIES`: where its blocks, embedding, head and last norm are, and which name has which role.
Every matrix that the files hold must be accounted for; one that no row knows stops the work, since a method that
passed over it in silence would report a smaller model than it made.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sizewise.core.errors import BadModel, Unsupported
from sizewise.load.checkpoint.folder import Tensor, inspect_checkpoint, read_safetensors_header
from sizewise.load.checkpoint.packed import SUFFIXES

Role = Literal["q", "k", "v", "qkv", "o", "gate", "up", "gate_up", "down", "router", "embedding", "head"]
Rows = tuple[tuple[str, int], ...]


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix y = W x + b of a block, or the embedding or head as if they were one.

    `name` is the path of the module in the files: the weight is `name.weight`, and with `bias` there is a
    `name.bias`. `shape` is (out, in) also where the file holds the transpose (`transposed`, Conv1D of GPT-2). `rows`
    lists the parts of a fused matrix in the order of its output rows; a part may come several times, where heads are
    interleaved.
    """

    name: str
    role: Role
    expert: int | None = None
    transposed: bool = False
    bias: bool = False
    rows: Rows = ()
    shape: tuple[int, int] = (0, 0)

    @property
    def weight(self) -> str:
        """The tensor's name in the files."""
        return self.name + ".weight"

    def rows_of(self, part: str) -> tuple[range, ...]:
        """The output rows that belong to a part of a fused matrix; all rows where `part` is the role itself."""
        if part == self.role:
            return (range(self.shape[0]),)
        found, at = [], 0
        for name, count in self.rows:
            if name == part:
                found.append(range(at, at + count))
            at += count
        return tuple(found)


@dataclass(frozen=True, slots=True)
class Block:
    """One layer. `norms` are paths of modules, in the order of the family's row; `window`: tokens attended to."""

    index: int
    prefix: str
    linears: tuple[Linear, ...]
    norms: tuple[str, ...]
    window: int | None = None

    def of(self, *roles: str) -> tuple[Linear, ...]:
        """The matrices with one of these roles, in the order of the block."""
        return tuple(linear for linear in self.linears if linear.role in roles)


@dataclass(frozen=True, slots=True)
class Layout:
    """A whole decoder. Names are paths of modules; `head` is None where the embedding serves as head (`tied`)."""

    family: str  # config's model_type
    blocks: tuple[Block, ...]
    embedding: str
    head: str | None
    final_norm: str | None
    tied: bool
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    experts: int  # 0: dense
    window: int | None  # of the blocks that have one
    vocabulary: int  # rows of the embedding
    positions: str | None = None  # learned position embedding
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0  # added to the norm's weight when it runs: 1 in Gemma
    parallel: bool = False  # attention and feed-forward read the same input
    head_bias: bool = False
    prefix: str = ""  # of everything but the head
    others: tuple[str, ...] = ()  # tensors outside the blocks beyond those named above

    @property
    def linears(self) -> tuple[Linear, ...]:
        """Those of all blocks, in order."""
        return tuple(linear for block in self.blocks for linear in block.linears)


@dataclass(frozen=True, slots=True)
class Family:
    """Where a family keeps its parts, below the model's prefix. `linears`: pattern below the block -> role."""

    blocks: str
    embedding: str
    final_norm: str
    linears: dict[str, Role]
    norms: tuple[str, ...]
    prefix: str = "model."
    positions: str | None = None
    norm_kind: Literal["rms", "layer"] = "rms"
    norm_offset: float = 0.0
    transposed: bool = False
    parallel: bool = False
    others: tuple[str, ...] = field(default=())


def _roles(form: str, *roles: Role) -> dict[str, Role]:
    return {form.format(role): role for role in roles}


_QKV, _QKVO = _roles("self_attn.{}_proj", "q", "k", "v"), _roles("self_attn.{}_proj", "q", "k", "v", "o")
_GATED = _roles("mlp.{}_proj", "gate", "up", "down")
_TWO = ("input_layernorm", "post_attention_layernorm")
_FOUR = (*_TWO, "pre_feedforward_layernorm", "post_feedforward_layernorm")
_HEADS = ("self_attn.q_norm", "self_attn.k_norm")
_LLAMA = Family("layers", "embed_tokens", "norm", _QKVO | _GATED, _TWO)
_GEMMA = Family("layers", "embed_tokens", "norm", _QKVO | _GATED, (*_FOUR, *_HEADS), norm_offset=1.0)
_FAMILIES: dict[str, Family] = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "granite", "smollm3"), _LLAMA),
    "qwen3": Family("layers", "embed_tokens", "norm", _QKVO | _GATED, (*_TWO, *_HEADS)),
    **dict.fromkeys(("gemma2", "gemma3_text"), _GEMMA),
    "phi": Family(
        *("layers", "embed_tokens", "final_layernorm"),
        _QKV | {"self_attn.dense": "o", "mlp.fc1": "up", "mlp.fc2": "down"},
        ("input_layernorm", "self_attn.q_layernorm", "self_attn.k_layernorm"),
        norm_kind="layer",
        parallel=True,
    ),
    "phi3": Family(
        *("layers", "embed_tokens", "norm"),
        {
            "self_attn.qkv_proj": "qkv",
            "self_attn.o_proj": "o",
            "mlp.gate_up_proj": "gate_up",
            "mlp.down_proj": "down",
        },
        _TWO,
    ),
    "phimoe": Family(
        *("layers", "embed_tokens", "norm"),
        _QKVO
        | {
            "block_sparse_moe.gate": "router",
            r"block_sparse_moe.experts.(\d+).w1": "gate",
            r"block_sparse_moe.experts.(\d+).w3": "up",
            r"block_sparse_moe.experts.(\d+).w2": "down",
        },
        _TWO,
        norm_kind="layer",
    ),
    "falcon": Family(
        *("h", "word_embeddings", "ln_f"),
        {
            "self_attention.query_key_value": "qkv",
            "self_attention.dense": "o",
            "mlp.dense_h_to_4h": "up",
            "mlp.dense_4h_to_h": "down",
        },
        ("input_layernorm", "ln_attn", "ln_mlp", "post_attention_layernorm"),
        prefix="transformer.",
        norm_kind="layer",
        parallel=True,
    ),
    "gpt2": Family(
        *("h", "wte", "ln_f"),
        {"attn.c_attn": "qkv", "attn.c_proj": "o", "mlp.c_fc": "up", "mlp.c_proj": "down"},
        ("ln_1", "ln_2"),
        prefix="transformer.",
        positions="wpe",
        norm_kind="layer",
        transposed=True,
    ),
    "opt": Family(
        *("layers", "embed_tokens", "final_layer_norm"),
        _QKV | {"self_attn.out_proj": "o", "fc1": "up", "fc2": "down"},
        ("self_attn_layer_norm", "final_layer_norm"),
        prefix="model.decoder.",
        positions="embed_positions",
        norm_kind="layer",
        others=("project_in", "project_out"),
    ),
}
FAMILIES = tuple(_FAMILIES)
EMBEDDINGS = frozenset(family.embedding for family in _FAMILIES.values())


def layout_of(folder: Path | str) -> Layout:
    """The parts of a checkpoint by role.

    Args:
        folder: a checkpoint with config.json and safetensors; weights are not read.

    Raises:
        BadModel: no checkpoint, a matrix is missing or has a shape that contradicts config.json.
        Unsupported: the family is none of `FAMILIES`, or its files hold a matrix without a known role.
    """
    folder = Path(folder)
    config = read_config(folder)
    return _Reader(folder.name, config, family_of(config.model_type), _headers(folder)).read()


def family_of(model_type: str) -> Family:
    """The row of a family, by config's model_type.

    Raises:
        Unsupported: there is no such row.
    """
    if model_type not in _FAMILIES:
        raise Unsupported(f"the parts of family {model_type!r} are not known; known: {', '.join(FAMILIES)}")
    return _FAMILIES[model_type]


def fused_rows(config: Any, role: str) -> Rows:
    """The parts of a fused matrix in the order of its output rows, from a configuration of transformers."""
    if role == "gate_up":
        return (("gate", config.intermediate_size), ("up", config.intermediate_size))
    if role != "qkv":
        return ()
    heads, kv_heads, width = config.num_attention_heads, kv_heads_of(config), head_dim_of(config)
    interleaved = config.model_type == "falcon" and (config.new_decoder_architecture or not config.multi_query)
    groups = kv_heads if interleaved else 1
    shared = kv_heads // groups * width
    return (("q", heads // groups * width), ("k", shared), ("v", shared)) * groups


def read_config(folder: Path) -> Any:
    """The checkpoint's configuration as transformers sees it: defaults filled in, old names translated.

    Raises:
        BadModel: transformers cannot read it.
    """
    from transformers import AutoConfig

    inspect_checkpoint(folder)  # refuses code of the model's own, and folders that are no checkpoint
    try:
        config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, KeyError, OSError, TypeError, AttributeError) as error:
        line = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BadModel(f"{folder.name}: config.json cannot be understood: {line[:300]}") from error
    return config


def _headers(folder: Path) -> dict[str, Tensor]:
    """All tensors; a matrix in a small form as the one that it stands for."""
    info = inspect_checkpoint(folder)
    files = [path for name, path in info.files.items() if name.endswith(".safetensors")]
    found = {name: tensor for path in files for name, tensor in read_safetensors_header(path).items()}
    for module, matrix in info.packed.items():
        found[f"{module}.weight"] = Tensor(info.base_dtype, matrix.stored_shape, 0, 0)
    small = {f"{module}.{part}" for module in info.packed for part in SUFFIXES}
    return {name: tensor for name, tensor in found.items() if name not in small}


class _Reader:
    """Finds a family's parts among the names of the files."""

    def __init__(self, what: str, config: Any, family: Family, tensors: dict[str, Tensor]) -> None:
        self.what, self.config, self.family, self.tensors = what, config, family, tensors
        self.heads: int = config.num_attention_heads
        self.head_dim = head_dim_of(config)
        self.kv_heads = kv_heads_of(config)
        # checkpoints of the bare decoder leave out the first part of every name ("h.0..." in GPT-2's own files)
        shorter = family.prefix.partition(".")[2]
        sits = f"{family.prefix}{family.embedding}.weight" in tensors
        self.prefix = family.prefix if sits else shorter

    def read(self) -> Layout:
        """The layout, after checking that nothing is missing and nothing unknown."""
        config, family = self.config, self.family
        blocks = tuple(self._block(index) for index in range(config.num_hidden_layers))
        embedding = self._need(self.prefix + family.embedding)
        tied = bool(getattr(config, "tie_word_embeddings", False))
        head = None if tied else self._need("lm_head").removesuffix(".weight")
        final = self.prefix + family.final_norm
        positions = self.prefix + family.positions if family.positions else None
        outside = [name for name in self.tensors if not name.startswith(f"{self.prefix}{family.blocks}.")]
        named = {embedding, f"{final}.weight", f"{final}.bias", "lm_head.weight", "lm_head.bias", f"{positions}.weight"}
        rest = tuple(name for name in outside if name not in named)
        self._check_rest(rest)
        return Layout(
            family=config.model_type,
            blocks=blocks,
            embedding=embedding.removesuffix(".weight"),
            head=head,
            final_norm=final if f"{final}.weight" in self.tensors else None,
            tied=tied,
            hidden=config.hidden_size,
            heads=self.heads,
            kv_heads=self.kv_heads,
            head_dim=self.head_dim,
            ffn=blocks[0].of("down")[0].shape[1],
            experts=len(blocks[0].of("router")) and blocks[0].of("router")[0].shape[0],
            window=next((block.window for block in blocks if block.window), None),
            vocabulary=self.tensors[embedding].shape[0],
            positions=positions,
            norm_kind=family.norm_kind,
            norm_offset=family.norm_offset,
            parallel=family.parallel and getattr(config, "parallel_attn", True),
            head_bias="lm_head.bias" in self.tensors,
            prefix=self.prefix,
            others=rest,
        )

    def _need(self, name: str) -> str:
        if f"{name}.weight" not in self.tensors:
            raise BadModel(f"{self.what}: {name}.weight is missing; get the checkpoint again")
        return f"{name}.weight"

    def _check_rest(self, rest: tuple[str, ...]) -> None:
        known = tuple(f"{self.prefix}{name}." for name in self.family.others)
        for name in rest:
            if len(self.tensors[name].shape) == 2 and not name.startswith(known or ("\0",)):
                raise Unsupported(f"{self.what}: nothing is known of the matrix {name} in {self.config.model_type}")

    def _block(self, index: int) -> Block:
        prefix = f"{self.prefix}{self.family.blocks}.{index}"
        inside = [name.removeprefix(prefix + ".") for name in self.tensors if name.startswith(prefix + ".")]
        linears: list[Linear] = []
        for short in sorted(inside):
            if short.endswith(".weight") and len(self.tensors[f"{prefix}.{short}"].shape) == 2:
                linears.append(self._linear(prefix, short.removesuffix(".weight")))
        order = {role: place for place, role in enumerate(self.family.linears.values())}
        linears.sort(key=lambda linear: (linear.expert if linear.expert is not None else -1, order[linear.role]))
        missing = set(order) - {linear.role for linear in linears}
        if missing:
            raise BadModel(f"{self.what}: {prefix} has no matrix for {', '.join(sorted(missing))}")
        norms = tuple(f"{prefix}.{name}" for name in self.family.norms if f"{name}.weight" in inside)
        return Block(index, prefix, tuple(linears), norms, _window(self.config, index))

    def _linear(self, prefix: str, short: str) -> Linear:
        patterns = self.family.linears
        found = next((name for name in patterns if re.fullmatch(name, short)), None)
        match = re.fullmatch(found, short) if found else None
        if not found or not match:
            raise Unsupported(f"{self.what}: nothing is known of the matrix {prefix}.{short}")
        role = patterns[found]
        expert = int(match.group(1)) if match.groups() else None
        first, second = self.tensors[f"{prefix}.{short}.weight"].shape
        shape = (second, first) if self.family.transposed else (first, second)
        rows = fused_rows(self.config, role)
        if rows and sum(count for _, count in rows) != shape[0]:
            raise BadModel(f"{self.what}: {prefix}.{short} has {shape[0]} rows, config.json says {rows}")
        bias = f"{prefix}.{short}.bias" in self.tensors
        return Linear(f"{prefix}.{short}", role, expert, self.family.transposed, bias, rows, shape)


def head_dim_of(config: Any) -> int:
    """Width of one head."""
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def kv_heads_of(config: Any) -> int:
    """How many heads have keys and values of their own."""
    if config.model_type == "falcon":
        if config.new_decoder_architecture:
            return int(config.num_kv_heads)
        return 1 if config.multi_query else int(config.num_attention_heads)
    return int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)


def _window(config: Any, index: int) -> int | None:
    """How many tokens a layer looks back; None: all."""
    window = getattr(config, "sliding_window", None)
    kinds = getattr(config, "layer_types", None)
    if not window or (kinds and kinds[index] != "sliding_attention"):
        return None
    if getattr(config, "use_sliding_window", True) is False:
        return None
    return int(window)


def count_parameters(layout: Layout) -> int:
    """Weights of the blocks' matrices, biases and norms left out."""
    return sum(math.prod(linear.shape) for linear in layout.linears)
