"""Memory: what a model will need, what its processes hold, and what the machine has left. All in bytes."""

import platform
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sizewise.core.errors import DoesNotFit
from sizewise.core.model import Model
from sizewise.core.units import format_bytes

if TYPE_CHECKING:
    from sizewise.load.gguf.file import GgufInfo

CGROUP = Path("/sys/fs/cgroup")
RESERVE = 128 * 2**20  # left to everything else
_PROCESS = 50 * 2**20  # a child with the engine in it, before any weights
_TORCH_PROCESS = 420 * 2**20
_TOKEN = 900  # of each entry of the vocabulary: its text, its merges and the tables that find them
_BATCH = 64  # prompt tokens that are computed together
_LEAST_CACHED = 1 << 20
SCORED = 512  # tokens that are scored together
_KV_UNKNOWN = 64 * 2**10  # of each token of context where the file does not say: a model of one billion weights
_REPACKED = ("Q4_0", "Q4_K", "IQ4_NL")  # the engine keeps these a second time, ordered for the processor


def estimate(model: Model, context: int, parallel: int) -> int:
    """The most that a model's processes will hold while they answer, weights included. Reads the file's header.

    What the engine keeps of earlier prompts comes on top (`prompts`), and a second process for scores and embeddings
    where somebody asks for such (`scorer`).

    Args:
        model: what would be loaded.
        context: tokens of one request.
        parallel: requests at the same time.
    """
    if model.kind == "endpoint":
        return 0
    if model.kind != "gguf":
        return model.size_bytes * (2 if model.kind == "checkpoint" else 1) + _TORCH_PROCESS
    info = _info(model)
    width = info.embedding_length or 4096
    told = info.metadata.get(f"{info.architecture}.feed_forward_length")
    hidden = told if isinstance(told, int) else 4 * width
    vocabulary = max((tensor.rows for tensor in info.tensors if tensor.name == "token_embd.weight"), default=0)
    cache = (info.kv_bytes_per_token or _KV_UNKNOWN) * context * parallel
    scratch = 4 * (_BATCH * (6 * width + 2 * hidden) + parallel * vocabulary)
    return model.size_bytes + _repacked(info) + cache + scratch + _TOKEN * vocabulary + _PROCESS


def prompts(model: Model, context: int, parallel: int) -> int:
    """The most that the engine may keep of prompts which no request uses any more: no more than requests can use."""
    if model.kind != "gguf":
        return 0
    from sizewise.load.llama.server import MOST_CACHED

    slots = (_info(model).kv_bytes_per_token or _KV_UNKNOWN) * context * parallel
    return min(MOST_CACHED, max(_LEAST_CACHED, slots))


def scorer(model: Model) -> int:
    """What a second process for scores and embeddings of a GGUF model takes beside the first one.

    The file's pages are shared; what the engine orders anew is not.
    """
    info = _info(model)
    vocabulary = max((tensor.rows for tensor in info.tensors if tensor.name == "token_embd.weight"), default=0)
    logits = 4 * SCORED * vocabulary
    cache = 4 * SCORED * (info.kv_bytes_per_token or _KV_UNKNOWN)
    return _repacked(info) + logits + cache + _TOKEN * vocabulary + _PROCESS


def check_scorer(model: Model) -> None:
    """Refuse to start that process where there is no room for it.

    Raises:
        DoesNotFit: the message holds both numbers.
    """
    need, have = scorer(model), available()
    if need > have:
        raise DoesNotFit(
            f"{model.name} needs {format_bytes(need)} of memory for scores and embeddings, but "
            f"{format_bytes(have)} are free: stop another model"
        )


def _info(model: Model) -> "GgufInfo":
    from sizewise.load.facts import GGUF_FILE
    from sizewise.load.gguf.file import read_gguf

    return read_gguf(model.files.get(GGUF_FILE) or next(iter(model.files.values())))


def _repacked(info: "GgufInfo") -> int:
    if platform.machine() not in ("x86_64", "AMD64", "aarch64", "arm64"):
        return 0
    matrices = (one for one in info.tensors if len(one.shape) == 2 and one.name != "token_embd.weight")
    return sum(one.end - one.start for one in matrices if one.type.name in _REPACKED)


def held(pids: Iterable[int]) -> int:
    """What processes and all that they started hold now; pages that several of them map count once."""
    from sizewise.measure.processes import process_tree

    family = process_tree(pids)
    return sum(_proportional(process.pid) for process in family)


def mapped(pids: Iterable[int]) -> int:
    """Of that, pages of files: the system counts them as available although the model reads them for every token."""
    total = 0
    for pid in pids:
        for line in _lines(Path(f"/proc/{pid}/status")):
            if line.startswith("RssFile:"):
                total += int(line.split()[1]) * 1024
    return total


def available(pids: Iterable[int] = ()) -> int:
    """What could be taken without pushing out the models of `pids`, within the limits of this container too."""
    import psutil

    free = int(psutil.virtual_memory().available)
    limit = _number(CGROUP / "memory.max")
    used = _number(CGROUP / "memory.current")
    if limit is not None and used is not None:
        cached = sum(int(line.split()[1]) for line in _lines(CGROUP / "memory.stat") if line.startswith(_CACHED))
        free = min(free, limit - used + cached)
    return max(0, free - mapped(pids) - RESERVE)


_CACHED = ("inactive_file ", "active_file ")


def does_not_fit(model: Model, need: int, have: int, context: int) -> DoesNotFit:
    """The error that names both numbers."""
    return DoesNotFit(
        f"{model.name} needs {format_bytes(need)} of memory with a context of {context} tokens, but "
        f"{format_bytes(have)} are free: ask for a smaller context, or stop another model"
    )


def _proportional(pid: int) -> int:
    for line in _lines(Path(f"/proc/{pid}/smaps_rollup")):
        if line.startswith("Pss:"):
            return int(line.split()[1]) * 1024
    return 0


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # the process has ended, or its pages are not ours to see
        return []


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # no such controller, or "max": no limit
        return None
