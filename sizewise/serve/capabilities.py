"""What a model can do, told from its files before it is loaded."""

from functools import lru_cache
from pathlib import Path

from sizewise.core.model import Model
from sizewise.load.facts import GGUF_FILE
from sizewise.load.gguf.file import ArrayRef, GgufInfo, read_gguf
from sizewise.load.gguf.raw import mapped
from sizewise.load.llama.server import PROJECTOR_FILE
from sizewise.load.runners.llamacpp import ENCODERS
from sizewise.load.templates import prompt_form
from sizewise.serve.session import Capability

# A template that can write its model's thoughts, or leave them out, names one of these.
_THINKS = ("enable_thinking", "<think>", "reasoning_effort", "<|channel|>analysis", "reasoning_content", ".thinking")
_RANK = 4  # the pooling of a model that scores pairs of texts
# The tokens between which a gap is filled, as families spell the first of them.
_FIM = (b"fim_prefix", b"fim-prefix", b"fim\xe2\x96\x81begin", b"<PRE>")


def capabilities_of(model: Model) -> frozenset[Capability]:
    """What a model was made for, as Ollama's API lists it.

    A session can do a little more: any causal model gives log-probabilities and, from its last states, embeddings.

    Raises:
        BadModel: its GGUF file is damaged.
    """
    if model.kind == "encoder":
        return frozenset(("embedding",))
    if model.kind != "gguf":
        return frozenset(("completion",))
    path = model.files.get(GGUF_FILE) or next(iter(model.files.values()))
    return _of_gguf(path, model.digest, model.template, model.name, PROJECTOR_FILE in model.files)


@lru_cache(maxsize=256)
def _of_gguf(path: Path, digest: str, own: str | None, name: str, projector: bool) -> frozenset[Capability]:
    """Read once: what a digest names never changes."""
    info = read_gguf(path)
    pooling = info.metadata.get(f"{info.architecture}.pooling_type")
    if pooling or info.architecture in ENCODERS:
        return frozenset(("rerank",) if pooling == _RANK else ("embedding",))
    found: set[Capability] = {"completion"}
    template = own or info.template
    # Any model that was taught to converse can be asked for calls: where its template has no form for them, `tools.py`
    # describes the functions in words and a grammar keeps the call well-formed. How wisely it calls is the model's own.
    if template or prompt_form(name) or prompt_form(info.architecture):
        found.add("tools")
    if template and any(word in template for word in _THINKS):
        found.add("thinking")
    if projector:
        found.add("vision")
    if _fills_gaps(info):
        found.add("insert")
    return frozenset(found)


def _fills_gaps(info: GgufInfo) -> bool:
    """Whether the vocabulary has the tokens that stand around a gap."""
    named = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
    if any(key in info.metadata for key in named):
        return True
    tokens = info.metadata.get("tokenizer.ggml.tokens")
    if isinstance(tokens, list):
        return any(mark in str(token).encode() for token in tokens for mark in _FIM)
    if not isinstance(tokens, ArrayRef):
        return False
    with mapped(info.path) as data:
        return any(data.find(mark, tokens.start, tokens.end) >= 0 for mark in _FIM)
