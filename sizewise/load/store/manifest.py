"""What a manifest says: a model's config and layers, checked as they are read."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sizewise.core.errors import BadModel
from sizewise.core.references import NameRef
from sizewise.load.store.layout import MANIFEST_LIMIT, check_digest, check_file_name

MANIFEST_TYPE = "application/vnd.docker.distribution.manifest.v2+json"
LIST_TYPE = "application/vnd.ollama.manifest.list.v2+json"
CONFIG_TYPE = "application/vnd.docker.container.image.v1+json"
TITLE = "org.opencontainers.image.title"


@dataclass(frozen=True, slots=True)
class Layer:
    """One blob of a model; `title` is the file name it had."""

    media_type: str
    digest: str
    size: int  # bytes
    title: str = ""

    def as_json(self) -> dict[str, Any]:
        """The layer as a manifest writes it."""
        body: dict[str, Any] = {"mediaType": self.media_type, "digest": self.digest, "size": self.size}
        return body | ({"annotations": {TITLE: self.title}} if self.title else {})


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a name stands for."""

    name: NameRef
    digest: str  # of the manifest file
    config: dict[str, Any]
    layers: tuple[Layer, ...]
    modified_at: float  # seconds since 1970
    config_layer: Layer | None = None

    @property
    def blobs(self) -> tuple[Layer, ...]:
        """All blobs, the config's included."""
        return (*self.layers, self.config_layer) if self.config_layer else self.layers

    @property
    def size_bytes(self) -> int:
        """Bytes of all blobs."""
        return sum(layer.size for layer in self.blobs)


@dataclass(frozen=True, slots=True)
class Problem:
    """Something wrong in a store, and what to do about it."""

    kind: str  # "manifest", "missing", "size", "digest", "link", "orphan", "temporary", "ledger"
    where: str
    message: str
    remedy: str
    paths: tuple[Path, ...] = ()  # what a repair removes

    @property
    def what(self) -> str:
        """Where and what, in one line."""
        return f"{self.where}: {self.message}"

    def as_json(self) -> dict[str, Any]:
        """The problem as JSON."""
        return {"kind": self.kind, "where": self.where, "message": self.message, "remedy": self.remedy}


def parse_manifest(data: bytes, where: str) -> dict[str, Any]:
    """The JSON of a manifest or of a list of manifests, its shape and every digest and file name in it checked.

    Raises:
        BadModel: it is no manifest.
        Unsafe: a digest or file name in it is a path.
    """
    wrong = BadModel(f"{where}: the manifest is damaged; `sizewise rm` and `sizewise pull` put it right")
    if len(data) > MANIFEST_LIMIT:
        raise wrong
    try:
        body = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise wrong from error
    if not isinstance(body, dict):
        raise wrong
    children = body.get("manifests", [])
    if not isinstance(children, list) or (body.get("mediaType") == LIST_TYPE and not children):
        raise wrong
    for child in children:
        if not isinstance(child, dict):
            raise wrong
        check_digest(child.get("digest"))
    if body.get("mediaType") != LIST_TYPE:
        try:
            sizes = layers_of(body)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise wrong from error
        if len({layer.digest for layer in sizes}) != len({(layer.digest, layer.size) for layer in sizes}):
            raise BadModel(f"{where}: the manifest gives one digest two sizes; refused")
    return body


def layers_of(body: dict[str, Any]) -> list[Layer]:
    """The layers of a manifest, the config last; nothing for a list of manifests."""
    if body.get("mediaType") == LIST_TYPE:
        return []
    return [_layer(raw) for raw in (*(body.get("layers") or ()), body["config"])]


def _layer(raw: dict[str, Any]) -> Layer:
    size = raw["size"]
    if not isinstance(size, int) or isinstance(size, bool) or size < 0:
        raise ValueError("size")
    title = (raw.get("annotations") or {}).get(TITLE) or ""
    return Layer(str(raw["mediaType"]), check_digest(raw["digest"]), size, check_file_name(title) if title else "")


def read_json(path: Path) -> dict[str, Any] | None:
    """A small JSON object, or None where there is none or it is damaged."""
    try:
        if path.stat().st_size > MANIFEST_LIMIT:
            return None
        body = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
    return body if isinstance(body, dict) else None
