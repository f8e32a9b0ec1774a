"""Models as Ollama's API lists and shows them."""

import json
from collections.abc import Iterable
from dataclasses import replace
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any

from sizewise.core.model import Model
from sizewise.load.facts import config_of
from sizewise.load.modelfile import parameter_pairs, write
from sizewise.load.store.manifest import Manifest

FOR_EVER = "9999-12-31T23:59:59Z"


def details(model: Model) -> dict[str, Any]:
    """What kind of model it is, in Ollama's words."""
    facts = {
        "architecture": model.architecture,
        "parameters": model.parameters,
        "quantization": model.quantization,
    }
    config = config_of(model.kind, facts)
    return {
        "parent_model": model.lineage.parent_name or "",
        "format": config["model_format"],
        "family": config["model_family"],
        "families": config["model_families"],
        "parameter_size": config["model_type"],
        "quantization_level": config["file_type"],
    }


def listed(capabilities: Iterable[str]) -> list[str]:
    """Capabilities in Ollama's sense: there, "embedding" says that a model is for nothing else."""
    known = {"completion", "tools", "insert", "vision", "embedding", "thinking"}.intersection(capabilities)
    return sorted(known - {"embedding"} if "completion" in known else known)


def tags_entry(manifest: Manifest, model: Model, capabilities: Iterable[str]) -> dict[str, Any]:
    """One model of /api/tags."""
    name = str(manifest.name)
    return {
        "name": name,
        "model": name,
        "modified_at": moment(manifest.modified_at),
        "size": model.size_bytes,
        "digest": hex_of(manifest.digest),
        "details": details(model),
        "capabilities": listed(capabilities),
    }


def ps_entry(
    name: str, model: Model, digest: str, *, memory: int, expires_at: datetime | None, context: int
) -> dict[str, Any]:
    """One model of /api/ps. `memory`: bytes; none of them on a graphics card, which this engine build does not use."""
    return {
        "name": name,
        "model": name,
        "size": memory,
        "digest": hex_of(digest),
        "details": details(model),
        "expires_at": FOR_EVER if expires_at is None else expires_at.isoformat().replace("+00:00", "Z"),
        "size_vram": 0,
        "context_length": context,
    }


def show_body(manifest: Manifest, model: Model, capabilities: Iterable[str], *, verbose: bool) -> dict[str, Any]:
    """The answer of /api/show. `model_info` is always there: the official client refuses an answer without."""
    template = template_of(model) or ""
    body: dict[str, Any] = {
        "license": model.license,
        "modelfile": write(replace(model, template=template or None), str(manifest.name)),
        "parameters": parameters_text(model.defaults),
        "template": template,
        "system": model.system,
        "details": details(model),
        "model_info": model_info(model, verbose=verbose),
        "capabilities": listed(capabilities),
        "modified_at": moment(manifest.modified_at),
    }
    if model.messages:
        body["messages"] = [{"role": turn.role, "content": turn.content} for turn in model.messages]
    if verbose and model.kind == "gguf":
        body["tensors"] = [
            {"name": tensor.name, "type": tensor.type.name, "shape": list(tensor.shape)} for tensor in _header(model)[2]
        ]
    return body


def model_info(model: Model, *, verbose: bool = False) -> dict[str, Any]:
    """The header of a GGUF file, without its long lists unless `verbose`; of other models, the same few keys."""
    family = model.architecture or "unknown"
    known = {
        "general.architecture": family,
        "general.parameter_count": model.parameters,
        f"{family}.context_length": model.context_length,
        f"{family}.embedding_length": model.embedding_length,
    }
    info = {key: value for key, value in known.items() if value is not None}
    if model.kind == "gguf":
        for key, value in _header(model)[0].items():
            if isinstance(value, list) and not verbose:
                value = None
            if key != "tokenizer.chat_template":
                info.setdefault(key, value)
    return info


def template_of(model: Model) -> str | None:
    """The chat template that is used: the one stored with the model, else the one in its file."""
    return model.template or (_header(model)[1] if model.kind == "gguf" else None)


def parameters_text(defaults: dict[str, Any]) -> str:
    """The stored parameters, one a line; each text of a list has its own."""
    lines = []
    for name, value in parameter_pairs(defaults):
        text = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value).lower()
        lines.append(f"{name:<30} {text}")
    return "\n".join(lines)


def hex_of(digest: str) -> str:
    """A digest as Ollama's lists write it, without `sha256:`."""
    return digest.removeprefix("sha256:")


def moment(seconds: float) -> str:
    """Seconds since 1970 as RFC 3339 writes them."""
    return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")


def _header(model: Model) -> tuple[dict[str, Any], str | None, tuple[Any, ...]]:
    return _read_header(str(model.files["model.gguf"]), model.digest)


@lru_cache(maxsize=64)
def _read_header(path: str, digest: str) -> tuple[dict[str, Any], str | None, tuple[Any, ...]]:
    """Metadata, chat template and tensors. A digest names content that never changes, so each is read once."""
    from sizewise.load.gguf.file import ArrayRef, read_gguf

    info = read_gguf(path)
    values = {key: None if isinstance(value, ArrayRef) else value for key, value in info.metadata.items()}
    return values, info.template, info.tensors
