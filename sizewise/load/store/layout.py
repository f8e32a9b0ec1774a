"""Where things lie in a store. The only file that joins store paths, and the only judge of digests and file names.

    blobs/sha256-<hex>                               content, named by its sha256 (a symbolic link where used in place)
    blobs/sha256-<hex>.partial                       a download that can be resumed
    manifests/<host>/<namespace>/<model>/<tag>       a name: JSON that lists blobs; every Ollama reads it
    manifests-v2/...                                 the same, as Ollama 0.40 writes it: links to manifest blobs
    sizewise/                                        ours: lock, notes on files used in place, unfinished downloads

Ollama 0.40 calls its public host `ollama.com` where older ones say `registry.ollama.ai`; both mean one host here.
"""

import hashlib
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sizewise.core.errors import SizewiseError, Unsafe
from sizewise.core.references import DEFAULT_HOST, NameRef, parse_name

MANIFEST_LIMIT = 4 * 10**6  # bytes; a manifest or config is a few kB, so more is an attack or an accident
_DIGEST = re.compile(r"sha256[:-]([0-9a-fA-F]{64})")
_V2_HOST = "ollama.com"
_RESERVED = re.compile(r"[\x00-\x1f\x7f\\:*?\"<>|]")


def check_digest(text: object) -> str:
    """The digest in its one form, `sha256:` and 64 lower-case hex digits.

    Raises:
        Unsafe: it is anything else, for example a path.
    """
    match = _DIGEST.fullmatch(text) if isinstance(text, str) else None
    if not match:
        raise Unsafe(f"refused {str(text)[:100]!r}: a digest is sha256: and 64 hex digits")
    return "sha256:" + match.group(1).lower()


def check_file_name(text: str) -> str:
    """A file's name inside a model, such as `config.json` or `1_Pooling/config.json`.

    Raises:
        Unsafe: it is absolute, leaves its folder or holds characters that file names cannot have everywhere.
    """
    parts = text.split("/")
    bad = len(text) > 255 or _RESERVED.search(text) or any(part in ("", ".", "..") for part in parts)
    if bad or PurePosixPath(text).is_absolute():
        raise Unsafe(f"refused file name {text[:100]!r}: it must be relative and stay inside its folder")
    return text


class Layout:
    """The paths of one store."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.blobs = root / "blobs"
        self.own = root / "sizewise"
        self.lock = self.own / "lock"
        self.links = self.own / "links"
        self.notes = self.own / "notes"
        self.incoming = self.own / "incoming"
        self.manifests = root / "manifests"
        self.manifests_v2 = root / "manifests-v2"

    def blob(self, digest: str) -> Path:
        """Where the content of that digest lies or would lie."""
        return self.blobs / check_digest(digest).replace(":", "-")

    def partial(self, digest: str) -> Path:
        """Where an unfinished download of that digest lies."""
        return self.blobs / (check_digest(digest).replace(":", "-") + ".partial")

    def link_record(self, digest: str) -> Path:
        """What is known of a file that is used in place."""
        return self.links / (check_digest(digest).replace(":", "-") + ".json")

    def source_lock(self, source: str) -> Path:
        """What one process at a time holds while it fetches from a source."""
        return self.own / "locks" / hashlib.sha256(source.encode()).hexdigest()

    def note(self, kind: str, key: str) -> Path:
        """A small remembered fact, such as the digest of a file outside the store."""
        return self.notes / f"{kind}-{hashlib.sha256(key.encode()).hexdigest()}.json"

    def manifest(self, name: NameRef) -> Path:
        """Where we write the manifest of that name: lower case, in the place that every Ollama reads."""
        checked = parse_name(f"{name.host}/{name.namespace}/{name.model}:{name.tag}")
        return self.manifests / checked.host / checked.namespace / checked.model / checked.tag

    def entries(self, name: NameRef) -> list[Path]:
        """All files that now define the name, in whatever case they are written; the one that counts first."""
        v2_host = _V2_HOST if name.host == DEFAULT_HOST else name.host.replace(":", "%3A")
        found = self._matches(self.manifests_v2, (v2_host, name.namespace, name.model, name.tag))
        hosts = (DEFAULT_HOST, _V2_HOST) if name.host == DEFAULT_HOST else (name.host,)
        for host in hosts:
            found += self._matches(self.manifests, (host, name.namespace, name.model, name.tag))
        return found

    def names(self) -> Iterator[tuple[NameRef, Path]]:
        """Every name in the store with the file that defines it. Files that cannot be a name are passed over."""
        seen: set[NameRef] = set()
        for root in (self.manifests_v2, self.manifests):
            for path in _four_deep(root):
                name = self.name_of(root, path)
                entries = self.entries(name) if name and name not in seen and path.is_file() else ()
                if name and entries:  # none where the name was removed meanwhile
                    seen.add(name)
                    yield name, entries[0]

    def manifest_files(self) -> Iterator[Path]:
        """Every manifest file of either kind, also those that a newer one hides."""
        for root in (self.manifests_v2, self.manifests):
            for path in _four_deep(root):
                if self.name_of(root, path) and path.is_file():
                    yield path

    def name_of(self, root: Path, path: Path) -> NameRef | None:
        """The name that a manifest's path spells, or None."""
        host, namespace, model, tag = path.relative_to(root).parts
        host = re.sub("%3a", ":", host, flags=re.IGNORECASE) if root == self.manifests_v2 else host
        try:
            name = parse_name(f"{host}/{namespace}/{model}:{tag}")
        except SizewiseError:
            return None
        return NameRef(name.model, name.tag, name.namespace) if name.host == _V2_HOST else name

    @staticmethod
    def _matches(root: Path, parts: tuple[str, ...]) -> list[Path]:
        folders = [root]
        for part in parts:
            folders = [child for folder in folders for child in _children(folder, part)]
        return [path for path in folders if path.is_file()]


def _children(folder: Path, wanted: str) -> list[Path]:
    """Entries of a folder whose name is `wanted` in any case, the lower-case one first."""
    names = [name for name in _listed(folder) if name.lower() == wanted.lower()]
    return [folder / name for name in sorted(names, key=lambda name: (name != name.lower(), name))]


def _four_deep(root: Path) -> list[Path]:
    """All of host/namespace/model/tag below a folder, sorted. Not by glob, which stumbles over folders that go away."""
    folders = [root]
    for _ in range(4):
        folders = [folder / name for folder in folders for name in _listed(folder)]
    return sorted(folders)


def _listed(folder: Path) -> list[str]:
    try:
        return os.listdir(folder)
    except OSError:  # it is not there, not any more, or is a file: nothing in it
        return []
