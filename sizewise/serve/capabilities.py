"""What a model can do, told from its files without loading it: for lists of models. A session knows more exactly."""

from functools import lru_cache

from sizewise.core.model import Model
from sizewise.serve.session import Capability

_FOR_INFILL = ("tokenizer.ggml.fim_pre_token_id", "tokenizer.ggml.prefix_token_id")
_FOR_THINKING = ("<think>", "enable_thinking", "reasoning_content", "reasoning_effort", ".thinking")
_RANK = 4  # the pooling of a model that scores pairs of texts


def capabilities_of(model: Model) -> frozenset[Capability]:
    """The capabilities that Ollama's API lists.

    Raises:
        BadModel: its GGUF file is damaged.
    """
    if model.kind == "encoder":
        return frozenset(("embedding",))
    if model.kind != "gguf":
        return frozenset(("completion",)) | _of_template(model.template or "")
    found = _of_gguf(str(model.files["model.gguf"]), model.digest, model.template)
    return found | {"vision"} if "projector.gguf" in model.files else found


@lru_cache(maxsize=256)
def _of_gguf(path: str, digest: str, template: str | None) -> frozenset[Capability]:
    """Read once: what a digest names never changes."""
    from sizewise.load.gguf.file import read_gguf

    info = read_gguf(path)
    pooling = info.metadata.get(f"{info.architecture}.pooling_type")
    if pooling:
        return frozenset(("rerank",) if pooling == _RANK else ("embedding",))
    found: set[Capability] = {"completion"}
    if any(key in info.metadata for key in _FOR_INFILL):
        found.add("insert")
    return frozenset(found) | _of_template(template or info.template or "")


def _of_template(template: str) -> frozenset[Capability]:
    found: set[Capability] = set()
    if "tools" in template:
        found.add("tools")
    if any(word in template for word in _FOR_THINKING):
        found.add("thinking")
    return frozenset(found)
