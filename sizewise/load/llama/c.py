"""The C functions of llama.cpp, called through ctypes in the shared object that xllamacpp brings.

xllamacpp's own Python classes serve text; they give no logits. Scoring needs logits, so the few C functions for it are
called directly. No header ships with the library and its structs change between versions: the layouts here belong to
one version, `WANTED`, and are checked when the library is opened (defaults at their offsets) and again whenever a
context is made (what was set is what the library reports). Anything else is refused in one line.
"""

import ctypes
import importlib.metadata
import importlib.util
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from ctypes import POINTER, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_uint32, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sizewise.core.errors import EngineFailed, StateError, UsageError

WANTED = "2026.10.11549"
_LOG = ctypes.CFUNCTYPE(None, c_int32, c_char_p, c_void_p)


class ModelParams(ctypes.Structure):
    """`llama_model_params`."""

    _fields_ = [
        ("devices", c_void_p),
        ("tensor_buft_overrides", c_void_p),
        ("n_gpu_layers", c_int32),
        ("split_mode", c_int32),
        ("load_mode", c_int32),
        ("lazy_mode", c_int32),
        ("main_gpu", c_int32),
        ("tensor_split", c_void_p),
        ("progress_callback", c_void_p),
        ("progress_callback_user_data", c_void_p),
        ("kv_overrides", c_void_p),
        ("vocab_only", c_bool),
        ("check_tensors", c_bool),
        ("use_extra_bufts", c_bool),
        ("no_host", c_bool),
        ("no_alloc", c_bool),
        ("load_mtp", c_bool),
    ]


class ContextParams(ctypes.Structure):
    """`llama_context_params`."""

    _fields_ = [
        ("n_ctx", c_uint32),
        ("n_batch", c_uint32),
        ("n_ubatch", c_uint32),
        ("n_seq_max", c_uint32),
        ("n_rs_seq", c_uint32),
        ("n_outputs_max", c_uint32),
        ("n_outputs_max_per_seq", c_uint32),
        ("n_threads", c_int32),
        ("n_threads_batch", c_int32),
        ("ctx_type", c_int32),
        ("rope_scaling_type", c_int32),
        ("pooling_type", c_int32),
        ("attention_type", c_int32),
        ("flash_attn_type", c_int32),
        ("rope_freq_base", c_float),
        ("rope_freq_scale", c_float),
        ("yarn_ext_factor", c_float),
        ("yarn_attn_factor", c_float),
        ("yarn_beta_fast", c_float),
        ("yarn_beta_slow", c_float),
        ("yarn_orig_ctx", c_uint32),
        ("defrag_thold", c_float),
        ("cb_eval", c_void_p),
        ("cb_eval_user_data", c_void_p),
        ("type_k", c_int32),
        ("type_v", c_int32),
        ("callbacks", c_void_p * 3),  # left as the library sets them
        ("embeddings", c_bool),
        ("offload_kqv", c_bool),
        ("no_perf", c_bool),
        ("op_offload", c_bool),
        ("swa_full", c_bool),
        ("kv_unified", c_bool),
        ("samplers", c_void_p),
        ("n_samplers", c_size_t),
        ("ctx_other", c_void_p),
    ]


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = [
        ("n_tokens", c_int32),
        ("token", c_void_p),
        ("embd", c_void_p),
        ("pos", c_void_p),
        ("n_seq_id", c_void_p),
        ("seq_id", c_void_p),
        ("logits", c_void_p),
    ]


_MODEL_DEFAULTS = {"n_gpu_layers": -1, "split_mode": 1, "load_mode": -1, "lazy_mode": 1, "main_gpu": 0}
_MODEL_DEFAULTS |= {"vocab_only": False, "use_extra_bufts": True, "no_alloc": False}
_CONTEXT_DEFAULTS: dict[str, float] = {"n_ctx": 512, "n_batch": 2048, "n_ubatch": 512, "n_seq_max": 1, "n_threads": 4}
_CONTEXT_DEFAULTS |= {"pooling_type": -1, "flash_attn_type": -1, "yarn_ext_factor": -1.0, "type_k": 1, "type_v": 1}
_CONTEXT_DEFAULTS |= {"embeddings": False, "offload_kqv": True, "no_perf": True, "swa_full": True, "kv_unified": False}

_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (c_void_p, [c_char_p, ModelParams]),
    "llama_model_free": (None, [c_void_p]),
    "llama_init_from_model": (c_void_p, [c_void_p, ContextParams]),
    "llama_free": (None, [c_void_p]),
    "llama_model_get_vocab": (c_void_p, [c_void_p]),
    "llama_model_n_embd": (c_int32, [c_void_p]),
    "llama_model_n_embd_out": (c_int32, [c_void_p]),
    "llama_model_n_cls_out": (c_uint32, [c_void_p]),
    "llama_model_n_ctx_train": (c_int32, [c_void_p]),
    "llama_model_has_encoder": (c_bool, [c_void_p]),
    "llama_model_has_decoder": (c_bool, [c_void_p]),
    "llama_model_is_recurrent": (c_bool, [c_void_p]),
    "llama_model_is_hybrid": (c_bool, [c_void_p]),
    "llama_model_is_diffusion": (c_bool, [c_void_p]),
    "llama_model_meta_val_str": (c_int32, [c_void_p, c_char_p, c_char_p, c_size_t]),
    "llama_adapter_lora_init": (c_void_p, [c_void_p, c_char_p]),
    "llama_set_adapters_lora": (c_int32, [c_void_p, POINTER(c_void_p), c_size_t, POINTER(c_float)]),
    "llama_vocab_n_tokens": (c_int32, [c_void_p]),
    "llama_vocab_type": (c_int32, [c_void_p]),
    "llama_vocab_get_attr": (c_int32, [c_void_p, c_int32]),
    "llama_vocab_get_text": (c_char_p, [c_void_p, c_int32]),
    "llama_vocab_bos": (c_int32, [c_void_p]),
    "llama_vocab_eos": (c_int32, [c_void_p]),
    "llama_vocab_sep": (c_int32, [c_void_p]),
    "llama_vocab_get_add_bos": (c_bool, [c_void_p]),
    "llama_vocab_get_add_eos": (c_bool, [c_void_p]),
    "llama_vocab_get_add_sep": (c_bool, [c_void_p]),
    "llama_vocab_fim_pre": (c_int32, [c_void_p]),
    "llama_vocab_fim_suf": (c_int32, [c_void_p]),
    "llama_vocab_fim_mid": (c_int32, [c_void_p]),
    "llama_tokenize": (c_int32, [c_void_p, c_char_p, c_int32, c_void_p, c_int32, c_bool, c_bool]),
    "llama_detokenize": (c_int32, [c_void_p, c_void_p, c_int32, c_char_p, c_int32, c_bool, c_bool]),
    "llama_decode": (c_int32, [c_void_p, Batch]),
    "llama_get_logits": (POINTER(c_float), [c_void_p]),
    "llama_get_logits_ith": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_embeddings_seq": (POINTER(c_float), [c_void_p, c_int32]),
    "llama_get_memory": (c_void_p, [c_void_p]),
    "llama_memory_clear": (None, [c_void_p, c_bool]),
    "llama_memory_seq_rm": (c_bool, [c_void_p, c_int32, c_int32, c_int32]),
    "llama_memory_seq_cp": (None, [c_void_p, c_int32, c_int32, c_int32, c_int32]),
    "llama_n_ctx": (c_uint32, [c_void_p]),
    "llama_n_ctx_seq": (c_uint32, [c_void_p]),
    "llama_n_batch": (c_uint32, [c_void_p]),
    "llama_n_ubatch": (c_uint32, [c_void_p]),
    "llama_n_seq_max": (c_uint32, [c_void_p]),
    "llama_n_threads": (c_int32, [c_void_p]),
    "llama_n_threads_batch": (c_int32, [c_void_p]),
    "llama_pooling_type": (c_int32, [c_void_p]),
    "llama_log_set": (None, [_LOG, c_void_p]),
    "ggml_quantize_init": (None, [c_int32]),
    "ggml_quantize_requires_imatrix": (c_bool, [c_int32]),
    "ggml_quantize_chunk": (c_size_t, [c_int32, c_void_p, c_void_p, c_int64, c_int64, c_int64, c_void_p]),
    "ggml_row_size": (c_size_t, [c_int32, c_int64]),
    "ggml_blck_size": (c_int64, [c_int32]),
}


class Library(Protocol):
    """The opened library: one attribute for each function of `_SIGNATURES`, with its C types."""

    def __getattr__(self, name: str) -> Callable[..., Any]: ...


@lru_cache(maxsize=1)
def library() -> Library:
    """Open the library and check that it is the one whose structs are described here.

    Raises:
        StateError: xllamacpp is missing, has another version, or its defaults are not where they should be.
    """
    path = str(_shared_object())
    try:
        opened: Library = ctypes.CDLL(path)
    except OSError as error:  # it needs libgomp, which small systems leave out
        raise StateError(f"the GGUF engine cannot be loaded: {error}; install that library (libgomp1)") from error
    for name, (result, arguments) in _SIGNATURES.items():
        try:
            function: Any = getattr(opened, name)
        except AttributeError:
            raise _mismatch(f"it has no function {name}") from None
        function.restype, function.argtypes = result, arguments
    check_defaults(opened.llama_model_default_params(), _MODEL_DEFAULTS)
    check_defaults(opened.llama_context_default_params(), _CONTEXT_DEFAULTS)
    return opened


def check_defaults(params: ctypes.Structure, expected: dict[str, Any]) -> None:
    """Compare fields of a struct that the library filled in with the values that this version is known to give.

    Raises:
        StateError: a field differs, so the layout here is not the library's.
    """
    for name, value in expected.items():
        if (found := getattr(params, name)) != value:
            raise _mismatch(f"default {name} is {found}, not {value}")


def _shared_object() -> Path:
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        raise _mismatch("it is not installed") from None
    if version != WANTED:
        raise _mismatch(f"version {version} is installed")
    # find_spec of a top-level package runs none of its code; the package itself takes longer to import
    spec = importlib.util.find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).glob("xllamacpp*.so")):
            return path
    raise _mismatch("its shared object is missing")


def _mismatch(what: str) -> StateError:
    return StateError(f"the GGUF engine must be xllamacpp {WANTED}, but {what}: pip install xllamacpp=={WANTED}")


_kept_callbacks: list[Any] = []  # the library keeps bare pointers to them for the life of the process


def log_to(listener: Callable[[int, str], None]) -> None:
    """Send the library's log to `listener(level, text)`; levels: 1 debug, 2 info, 3 warning, 4 error, 5 continued."""

    def forward(level: int, text: bytes, _: object) -> None:
        listener(level, text.decode("utf-8", "replace"))

    callback = _LOG(forward)
    _kept_callbacks.append(callback)
    library().llama_log_set(callback, None)


def quantize_rows(
    data: NDArray[np.float32], ggml_type: int, importance: NDArray[np.float32] | None = None, threads: int | None = None
) -> bytes:
    """Quantize a matrix to a ggml type, as llama.cpp's own tool does it.

    Args:
        data: (rows, cols) weights; cols must be a multiple of the type's block size.
        ggml_type: number of the type, such as `gguf.GGMLQuantizationType.Q4_K`.
        importance: (cols,) weight of each column's squared error; some types need it.
        threads: rows are shared among so many threads; None: one for each core.

    Returns:
        The blocks, row after row, as they stand in a GGUF file.

    Raises:
        UsageError: the shape does not fit the type, or the type needs importance and there is none.
    """
    lib = library()
    rows, cols = data.shape
    block: int = lib.ggml_blck_size(ggml_type)
    if block <= 0 or cols % block:
        raise UsageError(f"rows of {cols} weights cannot be cut into blocks of {block} (ggml type {ggml_type})")
    if importance is None and lib.ggml_quantize_requires_imatrix(ggml_type):
        raise UsageError(f"ggml type {ggml_type} needs the importance of each column: calibrate first")
    if importance is not None and importance.shape != (cols,):
        raise UsageError(f"importance has shape {importance.shape}, but the weights have {cols} columns")
    source = np.ascontiguousarray(data, np.float32)
    weights = None if importance is None else np.ascontiguousarray(importance, np.float32)
    out = np.zeros(rows * lib.ggml_row_size(ggml_type, cols), np.uint8)
    lib.ggml_quantize_init(ggml_type)

    def work(first: int, count: int) -> int:
        # the call finds its place in both buffers from the index of its first weight
        column_weights = None if weights is None else weights.ctypes.data
        done: int = lib.ggml_quantize_chunk(
            ggml_type, source.ctypes.data, out.ctypes.data, first * cols, count, cols, column_weights
        )
        return done

    step = max(1, -(-rows // (4 * (threads or os.cpu_count() or 1))))
    starts = range(0, rows, step)
    with ThreadPoolExecutor(threads or os.cpu_count() or 1) as pool:
        written = sum(pool.map(work, starts, (min(step, rows - start) for start in starts)))
    if written != out.nbytes:
        raise EngineFailed(f"quantizing wrote {written} bytes, not {out.nbytes}")
    return out.tobytes()
