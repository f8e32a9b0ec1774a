"""What is known of a model from its own files, and models that need no store: files used in place, and endpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from sizewise.core.digests import canonical, digest_of_json
from sizewise.core.errors import BadModel, SizewiseError
from sizewise.core.model import Model, ModelKind
from sizewise.core.recipe import Lineage
from sizewise.load.store import atomic
from sizewise.load.store.manifest import read_json
from sizewise.load.store.store import Store

GGUF_FILE, ADAPTER_FILE, PROJECTOR_FILE = "model.gguf", "adapter.gguf", "projector.gguf"
FACTS = ("architecture", "parameters", "quantization", "context_length", "embedding_length")


def facts_of_gguf(path: Path) -> dict[str, Any]:
    """Architecture, parameters, quantization and lengths, as the header says.

    Raises:
        BadModel: the file is no GGUF, is cut short, or is of an unknown architecture.
    """
    from sizewise.load.gguf.file import read_gguf

    info = read_gguf(path)
    return {key: getattr(info, key) for key in FACTS}


def license_of_gguf(path: Path) -> str:
    """The licence that the header names, or nothing."""
    from sizewise.load.gguf.file import read_gguf

    text = read_gguf(path).metadata.get("general.license")
    return text if isinstance(text, str) else ""


def facts_of_folder(folder: Path) -> tuple[ModelKind, dict[str, Path], dict[str, Any]]:
    """A checkpoint folder's kind, files and facts.

    Raises:
        BadModel: no checkpoint is there.
        Unsafe: only pickled weights, or code of its own.
    """
    from sizewise.load.checkpoint.folder import inspect_checkpoint

    info = inspect_checkpoint(folder)
    facts = {key: getattr(info, key, None) for key in FACTS} | {"quantization": info.dtype}
    return ("encoder" if info.is_encoder else "checkpoint"), dict(info.files), facts


def facts_of_files(kind: ModelKind, files: dict[str, Path]) -> dict[str, Any]:
    """The facts that files tell by themselves; those of a linear model are told by whoever makes it.

    Raises:
        BadModel: a GGUF file is damaged or of an unknown architecture.
    """
    if kind == "gguf":
        return facts_of_gguf(next(iter(files.values())))
    root = root_of(files)
    return facts_of_folder(root)[2] if kind in ("checkpoint", "encoder") and root else {}


def root_of(files: dict[str, Path]) -> Path | None:
    """The folder in which every file lies under its own name, if there is one."""
    if not all(str(path).endswith("/" + title) for title, path in files.items()):
        return None
    roots = {str(path).removesuffix("/" + title) for title, path in files.items()}
    return Path(roots.pop()) if len(roots) == 1 else None


def remembered(store: Store, digest: str, read: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Facts of a blob that somebody else wrote, read once."""
    note = store.layout.note("facts", digest)
    known = read_json(note)
    if known is None:
        known = read()
        try:
            atomic.write_atomic(note, [canonical(known)])
        except SizewiseError:  # a store that cannot be written to only costs time
            return known
    return known


def config_of(kind: ModelKind, facts: dict[str, Any]) -> dict[str, Any]:
    """The config blob: the keys that Ollama reads, and ours."""
    family = facts.get("architecture") or ""
    return {
        "model_format": "gguf" if kind == "gguf" else "safetensors",
        "model_family": family,
        "model_families": [family] if family else [],
        "model_type": _parameter_size(facts.get("parameters")),
        "file_type": facts.get("quantization") or "",
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": []},
        **{key: facts[key] for key in ("context_length", "embedding_length") if facts.get(key)},
        "sizewise": {"kind": kind} | {key: value for key, value in facts.items() if value},
    }


def content_digest(parts: dict[str, str]) -> str:
    """The digest of a model: of its only part, or of all of them with their names."""
    return next(iter(parts.values())) if len(parts) == 1 else digest_of_json(parts)


def in_place(path: Path, store: Store) -> Model:
    """A GGUF file or checkpoint folder, used where it lies. Its digest is remembered while the files do not change.

    Raises:
        BadModel: there is no model.
    """
    if not path.exists():
        raise BadModel(f"{path}: there is no such file or folder")
    kind: ModelKind = "gguf"
    with atomic.storage_errors(path):
        if path.is_dir():
            kind, files, facts = facts_of_folder(path)
        else:
            files, facts = {GGUF_FILE: path.absolute()}, facts_of_gguf(path)
        parts = {title: store.digest_file(file) for title, file in sorted(files.items())}
        size = sum(file.stat().st_size for file in files.values())
    return Model(
        name=str(path), kind=kind, digest=content_digest(parts), files=files, size_bytes=size,
        architecture=facts["architecture"] or "", parameters=facts["parameters"],
        quantization=facts["quantization"] or "", context_length=facts["context_length"],
        embedding_length=facts["embedding_length"], lineage=Lineage(recipe=None, source=str(path)),
    )  # fmt: skip


def endpoint(name: str, url: str, remote: str) -> Model:
    """A model behind an address. Its digest is that of the address: what answers there may change."""
    digest = digest_of_json({"remote": remote, "url": url})
    return Model(name=name, kind="endpoint", digest=digest, files={}, size_bytes=0, url=url, remote=remote)


def _parameter_size(parameters: int | None) -> str:
    """The number of weights as Ollama writes it: `134.52M`."""
    if not parameters:
        return ""
    for unit, size in (("B", 10**9), ("M", 10**6), ("K", 10**3)):
        if parameters >= size:
            return f"{parameters / size:.2f}".rstrip("0").rstrip(".") + unit
    return str(parameters)
