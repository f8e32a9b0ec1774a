"""The store: content-addressed blobs and named manifests, in the layout that Ollama uses, shared with it both ways.

A blob is published before the manifest that names it, and a manifest goes before its blobs, so whoever reads at any
moment finds either no model or a whole one. Two processes may write at once: temporary names are unique, equal
content has one place, and the lock only keeps the collection of garbage away from writers.
"""

import builtins
import contextlib
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from sizewise.core.digests import canonical, digest_of_bytes
from sizewise.core.errors import BadModel, DigestMismatch, SizewiseError, StorageError, UnknownName
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.references import NameRef
from sizewise.load.home import models_folder
from sizewise.load.store import atomic
from sizewise.load.store.layout import MANIFEST_LIMIT, Layout, check_digest
from sizewise.load.store.manifest import (
    CONFIG_TYPE,
    LIST_TYPE,
    MANIFEST_TYPE,
    Layer,
    Manifest,
    Problem,
    layers_of,
    parse_manifest,
    read_json,
)

__all__ = ["CONFIG_TYPE", "GRACE_S", "Layer", "Manifest", "Problem", "Store"]
GRACE_S = 3600.0  # garbage younger than this may belong to somebody at work


class Store:
    """One store. Without a folder: `$SIZEWISE_MODELS`, else `$OLLAMA_MODELS`, else `models` in sizewise's home."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root or models_folder()).expanduser().absolute()
        self.layout = Layout(self.root)

    def list(self) -> list[Manifest]:
        """All models whose manifest can be read, by name. `doctor` tells about the others."""
        found = []
        for name, _ in self.layout.names():
            with contextlib.suppress(SizewiseError):  # one torn manifest must not hide the other models
                found.append(self.get(name))
        return sorted(found, key=lambda manifest: str(manifest.name))

    def get(self, name: NameRef) -> Manifest:
        """The manifest of that name.

        Raises:
            UnknownName: the store has no such name.
            BadModel: its manifest is damaged.
        """
        return self._manifest(name, *self._read(name))

    def manifest_bytes(self, name: NameRef) -> bytes:
        """The manifest of that name as it is written.

        Raises:
            UnknownName: the store has no such name.
        """
        return self._read(name)[0]

    def blob(self, digest: str) -> Path:
        """The path of a blob, whether or not it is there."""
        return self.layout.blob(digest)

    def has(self, layer: Layer) -> bool:
        """True where the layer's blob is there with the right size and, if used in place, unchanged."""
        return self.fault_of(layer) is None

    def fault_of(self, layer: Layer) -> str | None:
        """What is wrong with a layer's blob, as far as can be seen without reading it; None = nothing."""
        path = self.blob(layer.digest)
        try:
            facts = path.stat()
        except OSError:
            return "the file it is linked to is gone" if path.is_symlink() else "its data is missing"
        if facts.st_size != layer.size:
            return f"its data has {facts.st_size} bytes where {layer.size} belong"
        record = read_json(self.layout.link_record(layer.digest)) if path.is_symlink() else None
        if record and record.get("mtime_ns") != facts.st_mtime_ns:
            return f"the file it is linked to ({record.get('target')}) has changed"
        return None

    def add_file(
        self,
        path: Path,
        *,
        link: bool = False,
        move: bool = False,
        expected: str | None = None,
        listen: Listener = silent,
    ) -> tuple[str, int]:
        """Take a file in.

        Args:
            path: the file.
            link: refer to it where it lies instead of copying it; a later change of it is noticed.
            move: take it away from where it lies, without copying where the disk is the same.
            expected: the digest it must have.
            listen: hears the bytes read.

        Returns:
            Digest and size in bytes.

        Raises:
            BadModel: it is no regular file.
            DigestMismatch: it has another digest than `expected`, or changed while it was read.
            DiskFull: there is no room for a copy.
        """
        with self.writing(), atomic.storage_errors(path):
            source = path.resolve()
            size = source.stat().st_size
            if not link and not move:
                return self._copy(source, size, expected, listen)
            digest = _hash(source, listen) if move else self.digest_file(source, listen)
            if expected and digest != expected:
                raise DigestMismatch(f"{path}: its digest is {digest}, expected {expected}; get the file again")
            if self._keep(Layer("", digest, size)):
                return digest, size
            if link:
                self._link(source, digest)
            else:
                self._move(source, digest)
        return digest, size

    def add_bytes(self, data: bytes) -> tuple[str, int]:
        """Take bytes in. Returns digest and size."""
        digest = digest_of_bytes(data)
        with self.writing():
            if not self._keep(Layer("", digest, len(data))):
                atomic.write_atomic(self.blob(digest), [data], expected=digest)
        return digest, len(data)

    def put(self, name: NameRef, config: dict[str, Any], layers: Iterable[Layer]) -> Manifest:
        """Give a name to blobs that are already here.

        Raises:
            StorageError: a blob is missing or has another size than its layer says.
        """
        layers = tuple(layers)
        with self.writing():
            digest, size = self.add_bytes(canonical(config))
            body = {
                "schemaVersion": 2,
                "mediaType": MANIFEST_TYPE,
                "config": Layer(CONFIG_TYPE, digest, size).as_json(),
                "layers": [layer.as_json() for layer in layers],
            }
            return self.put_bytes(name, json.dumps(body, separators=(",", ":")).encode())

    def put_bytes(self, name: NameRef, data: bytes) -> Manifest:
        """Give a name to blobs that are already here, by the bytes of a manifest.

        Raises:
            StorageError: a blob is missing or has another size than its layer says.
        """
        with self.writing():
            manifest = self._manifest(name, data, time.time())
            for layer in manifest.blobs:
                wrong = self.fault_of(layer)
                if wrong:
                    raise StorageError(f"{name}: layer {layer.title or layer.digest}: {wrong}")
            target = self.layout.manifest(name)
            atomic.write_atomic(target, [data], temp_folder=self.layout.manifests)
            # What the name meant before, spelled otherwise or by a newer Ollama, would hide the new manifest.
            for path in self.layout.entries(name):
                if path != target:
                    path.unlink(missing_ok=True)
        return manifest

    def copy(self, source: NameRef, target: NameRef) -> Manifest:
        """Give the model a second name. The data is shared.

        Raises:
            UnknownName: the store has no such name as `source`.
        """
        return self.put_bytes(target, self.manifest_bytes(source))

    def remove(self, name: NameRef) -> None:
        """Take a name away, and the blobs that no other name uses unless somebody is writing just now.

        Raises:
            UnknownName: the store has no such name.
        """
        entries = self.layout.entries(name)
        if not entries:
            self.get(name)
        layers: tuple[Layer, ...] = ()
        with contextlib.suppress(SizewiseError):  # a damaged manifest can still be removed
            layers = self.get(name).blobs
        with atomic.storage_errors(entries[0]):
            for path in entries:
                atomic.fault("unlink")
                path.unlink(missing_ok=True)
                atomic.sync_folder(path.parent)
                _prune(path.parent, self.root)
        with contextlib.suppress(SizewiseError), atomic.locked(self.layout.lock, exclusive=True, wait_s=0.2):
            used = self.used_digests()
            for layer in layers:
                if layer.digest not in used:
                    self.drop(layer.digest)

    def collect_garbage(self, *, grace_s: float = GRACE_S) -> builtins.list[Path]:
        """Remove blobs that no name uses and what broken-off work left behind, unless younger than `grace_s`.

        Raises:
            BadModel: a manifest cannot be read, so what it uses is unknown; nothing is removed.
            Locked: another process is writing.
        """
        from sizewise.load.store.audit import leftovers

        with atomic.locked(self.layout.lock, exclusive=True):
            paths = leftovers(self, grace_s=grace_s)
            with atomic.storage_errors(self.layout.blobs):
                for path in paths:
                    _remove(path)
        return paths

    def verify(self, deep: bool = True) -> builtins.list[Problem]:
        """Everything wrong in the store; `deep` reads all data to compare digests."""
        from sizewise.load.store.audit import audit

        return audit(self, deep=deep)

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While open, no process collects garbage: wrap all of a job that adds blobs and then a name."""
        with atomic.locked(self.layout.lock, exclusive=False):
            yield

    def digest_file(self, path: Path, listen: Listener = silent) -> str:
        """The digest of a file anywhere, remembered for as long as the file does not change.

        Raises:
            DigestMismatch: the file changed while it was read.
        """
        before = _stamp(path)
        note = self.layout.note("digest", str(path.resolve()))
        seen = read_json(note)
        if seen and seen.get("stamp") == list(before):
            return check_digest(seen.get("digest"))
        digest = _hash(path, listen)
        if _stamp(path) != before:
            raise DigestMismatch(f"{path}: the file changed while it was read; try again when nobody writes to it")
        if time.time_ns() - before[1] > 2 * 10**9:  # a younger file could change again within one tick of its clock
            with contextlib.suppress(StorageError):  # a store that cannot be written to only costs time
                atomic.write_atomic(note, [canonical({"digest": digest, "path": str(path), "stamp": before})])
        return digest

    def used_digests(self) -> set[str]:
        """Digests of all blobs that any manifest needs.

        Raises:
            BadModel: a manifest cannot be read.
        """
        used = set()
        for path in self.layout.manifest_files():
            try:
                data = path.read_bytes()
            except FileNotFoundError:  # its name was removed meanwhile
                continue
            used |= {digest_of_bytes(data)}  # a newer Ollama keeps manifests as blobs, too
            body = parse_manifest(data, str(path))
            for child in body.get("manifests", []):
                used.add(check_digest(child["digest"]))
                with contextlib.suppress(FileNotFoundError):
                    body = parse_manifest(self.blob(child["digest"]).read_bytes(), str(path))
                    used |= {layer.digest for layer in layers_of(body)}
            used |= {layer.digest for layer in layers_of(body)}
        return used

    def drop(self, digest: str) -> None:
        """Remove a blob and what is known of it."""
        for path in (self.blob(digest), self.layout.link_record(digest)):
            atomic.fault("unlink")
            path.unlink(missing_ok=True)

    def _read(self, name: NameRef) -> tuple[bytes, float]:
        for path in self.layout.entries(name):
            with contextlib.suppress(FileNotFoundError):
                return self._manifest_bytes(path)
        known = [str(found) for found, _ in self.layout.names()]
        raise UnknownName("model", str(name), known, remedy=f"`sizewise pull {name}` gets it")

    def _manifest_bytes(self, path: Path) -> tuple[bytes, float]:
        """A manifest's bytes and age; of a list of several builds, those of the build in GGUF."""
        if path.stat().st_size > MANIFEST_LIMIT:
            raise BadModel(f"{path}: too large for a manifest")
        data, modified = path.read_bytes(), path.stat().st_mtime
        body = parse_manifest(data, str(path))
        if body.get("mediaType") == LIST_TYPE:
            order = {"ggml": 0, "llamacpp": 1}
            children = sorted(body["manifests"], key=lambda child: order.get(str(child.get("runner")), 2))
            data = self.blob(children[0]["digest"]).read_bytes()
        return data, modified

    def _manifest(self, name: NameRef, data: bytes, modified: float) -> Manifest:
        body = parse_manifest(data, str(name))
        *layers, config_layer = layers_of(body)
        config = read_json(self.blob(config_layer.digest)) or {}
        return Manifest(name, digest_of_bytes(data), config, tuple(layers), modified, config_layer)

    def _keep(self, layer: Layer) -> bool:
        """True where the blob is there already; it then counts as new, so that no collection takes it."""
        if not self.has(layer):
            return False
        with contextlib.suppress(OSError):
            os.utime(self.blob(layer.digest), follow_symlinks=False)
        return True

    def _copy(self, source: Path, size: int, expected: str | None, listen: Listener) -> tuple[str, int]:
        if expected and self._keep(Layer("", expected, size)) and self.digest_file(source, listen) == expected:
            return expected, size
        atomic.require_space(self.layout.blobs, size)
        before = _stamp(source)
        chunks = atomic.read_chunks(source, lambda done: listen(Progress(source.name, done, size, "bytes")))

        def place(digest: str) -> Path:
            if _stamp(source) != before:
                raise DigestMismatch(f"{source}: the file changed while it was copied; try again")
            if expected and digest != expected:
                raise DigestMismatch(f"{source}: its digest is {digest}, expected {expected}; get the file again")
            return self.blob(digest)

        return atomic.write_blob(self.layout.blobs, chunks, place)

    def _move(self, source: Path, digest: str) -> None:
        """Publish a file that we own; from another disk it is copied first."""
        _made(self.layout.blobs)
        if source.stat().st_dev != self.layout.blobs.stat().st_dev:
            self._copy(source, source.stat().st_size, digest, silent)
            source.unlink()
            return
        with open(source, "rb") as file:
            os.fsync(file.fileno())
        source.chmod(0o644)
        atomic.publish(source, self.blob(digest))

    def _link(self, source: Path, digest: str) -> None:
        size, mtime_ns, inode, _ = _stamp(source)
        record = {"target": str(source), "size": size, "mtime_ns": mtime_ns, "inode": inode}
        atomic.write_atomic(self.layout.link_record(digest), [canonical(record)])
        temp = atomic.temporary(_made(self.layout.blobs))
        temp.symlink_to(source)
        atomic.publish(temp, self.blob(digest))


def _stamp(path: Path) -> tuple[int, int, int, int]:
    """What changes when a file's content changes: size, time of change in ns, inode, time of any change in ns."""
    facts = path.stat()
    return facts.st_size, facts.st_mtime_ns, facts.st_ino, facts.st_ctime_ns


def _hash(path: Path, listen: Listener) -> str:
    sha, total = hashlib.sha256(), path.stat().st_size
    for chunk in atomic.read_chunks(path, lambda done: listen(Progress(f"reading {path.name}", done, total, "bytes"))):
        sha.update(chunk)
    return "sha256:" + sha.hexdigest()


def _made(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _prune(folder: Path, root: Path) -> None:
    """Remove a folder and those above it as far as they are empty; a full one stops it."""
    with contextlib.suppress(OSError):
        while folder.parent not in (root, folder):
            folder.rmdir()
            folder = folder.parent


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
