"""An Ollama or OCI registry: a manifest, then its blobs, each resumed where it broke off and checked."""

import hashlib
import os
import time

import httpx

from sizewise.core.digests import canonical
from sizewise.core.errors import (
    BadModel,
    DigestMismatch,
    UnknownName,
    Unreachable,
    UsageError,
)
from sizewise.core.events import Listener, Progress
from sizewise.core.references import NameRef, OllamaRef
from sizewise.load.facts import facts_of_gguf
from sizewise.load.models import FILE_TYPE, OLLAMA, base_url
from sizewise.load.sources.web import Web, read_limited
from sizewise.load.store import atomic
from sizewise.load.store.manifest import MANIFEST_TYPE, Layer, Manifest, layers_of, parse_manifest
from sizewise.load.store.store import Store

_ACCEPT = f"{MANIFEST_TYPE}, application/vnd.oci.image.manifest.v1+json"
_WEIGHTS = OLLAMA + "model"
_TRIES = 6  # in a row without a single new byte
_WAIT_S = 0.5  # before the second try; doubles


def registry(
    reference: OllamaRef, target: NameRef, store: Store, *, insecure: bool = False, listen: Listener
) -> Manifest:
    """Pull a model. The manifest is stored as it came, so that Ollama shows the same ID for it.

    Raises:
        Unreachable: the registry does not answer, or not as its protocol says.
        UnknownName: it has no such model.
        Unsafe: it names a path as a digest, or sends us where we do not go.
        DigestMismatch: the data is not what the manifest says.
        DiskFull: there is no room.
    """
    web = Web(base_url(reference.host, insecure))
    try:
        with store.writing():
            data = _manifest(reference, web)
            layers = [*dict.fromkeys(layers_of(parse_manifest(data, str(reference))))]
            if not any(layer.media_type in (_WEIGHTS, FILE_TYPE) for layer in layers):
                raise BadModel(f"{reference}: holds nothing that sizewise can run (no GGUF and no checkpoint)")
            missing = [layer for layer in layers if not store.has(layer)]
            if not missing:
                total = sum(layer.size for layer in layers)
                listen(Progress(f"{target} is already here", total, total, "bytes"))
            for layer in (layer for layer in layers if layer not in missing):
                listen(Progress(f"pulling {layer.digest[7:19]}", layer.size, layer.size, "bytes", layer.digest))
            atomic.require_space(store.layout.blobs, sum(layer.size - _have(layer, store) for layer in missing))
            for layer in missing:
                _Blob(reference, layer, store, web, listen).pull()
            _check_weights(layers, store)
            manifest = store.put_bytes(target, data)
            atomic.write_atomic(store.layout.note("source", manifest.digest), [canonical({"source": str(reference)})])
            return manifest
    finally:
        web.close()


def _manifest(reference: OllamaRef, web: Web) -> bytes:
    name = reference.name
    path = f"/v2/{name.namespace}/{name.model}/manifests/{name.tag}"
    for attempt in range(2):
        with web.get(path, {"Accept": _ACCEPT}) as answer:
            status = answer.status_code
            if status == 200:
                return read_limited(answer, str(reference))
            challenge = answer.headers.get("www-authenticate", "")
        if status == 401 and attempt == 0 and web.authenticate(challenge):
            continue
        break
    if status == 404:
        raise UnknownName(f"model at {reference.host}", f"{name.namespace}/{name.model}:{name.tag}")
    if status in (401, 403):
        raise UsageError(f"{reference}: the registry wants a login, which sizewise does not do; use an open one")
    raise Unreachable(f"{reference}: the registry answers with status {status}; try again later")


def _have(layer: Layer, store: Store) -> int:
    partial = store.layout.partial(layer.digest)
    return min(partial.stat().st_size, layer.size) if partial.exists() else 0


def _check_weights(layers: list[Layer], store: Store) -> None:
    """Refuse a model whose weights are no GGUF before it gets a name; what we fetched for it goes."""
    for layer in layers:
        if layer.media_type == _WEIGHTS:
            try:
                facts_of_gguf(store.blob(layer.digest))
            except BadModel:
                if layer.digest not in store.used_digests():
                    store.drop(layer.digest)
                raise


class _Blob:
    """The download of one blob into `blobs/sha256-....partial`."""

    def __init__(self, reference: OllamaRef, layer: Layer, store: Store, web: Web, listen: Listener) -> None:
        self.layer, self.store, self.web, self.listen = layer, store, web, listen
        self.partial = store.layout.partial(layer.digest)
        self.path = f"/v2/{reference.name.namespace}/{reference.name.model}/blobs/{layer.digest}"
        self.label = f"pulling {layer.digest[7:19]}"
        self.what = f"{reference} {layer.media_type.rpartition('.')[2]} {layer.digest[7:19]}"

    def pull(self) -> None:
        """Fetch, check and publish. A second process waits here and then finds the blob."""
        with atomic.locked(self.partial, exclusive=True, wait_s=86400.0), atomic.storage_errors(self.partial):
            try:
                if not self.store.has(self.layer):
                    self._fetch_and_check()
            finally:
                if self._size() == 0:
                    self.partial.unlink(missing_ok=True)

    def _fetch_and_check(self) -> None:
        resumed = self._fetch()
        if self._digest() != self.layer.digest and resumed:
            self._restart()  # what an earlier run left may be to blame
            self._fetch()
        if self._digest() != self.layer.digest:
            self._restart()
            raise DigestMismatch(f"{self.what}: the data has another sha256 than the manifest says; not kept")
        self._publish()

    def _fetch(self) -> bool:
        """Bring the partial file to its full size. True if bytes of an earlier run are part of it."""
        self.partial.touch()
        resumed = self._size() > 0
        failures, wait_s = 0, _WAIT_S
        while self._size() < self.layer.size:
            before = self._size()
            try:
                self._fetch_once(before)
            except Unreachable:
                failures = failures + 1 if self._size() <= before else 1
                if failures >= _TRIES:
                    raise
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 10.0)
        return resumed

    def _fetch_once(self, start: int) -> None:
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={start}-"} if start else {})
        with self.web.get(self.path, headers) as answer:
            if answer.status_code == 416:
                self._restart()
                raise Unreachable(f"{self.what}: the registry has nothing from byte {start}")
            if answer.status_code not in (200, 206):
                raise Unreachable(f"{self.what}: the registry answers with status {answer.status_code}")
            begins = answer.headers.get("content-range", "").startswith(f"bytes {start}-")
            if start and (answer.status_code == 200 or not begins):
                self._restart()  # the range was ignored: what comes is the whole file
                start = 0
                if answer.status_code == 206:
                    raise Unreachable(f"{self.what}: the registry sent another part than it was asked for")
            self._append(answer, start)

    def _append(self, answer: httpx.Response, done: int) -> None:
        with open(self.partial, "r+b") as file:
            file.seek(done)
            for chunk in answer.iter_raw():
                atomic.fault("write")
                done += len(chunk)
                if done > self.layer.size:
                    file.close()
                    self._restart()
                    raise DigestMismatch(f"{self.what}: more than the {self.layer.size} bytes that the manifest says")
                file.write(chunk)
                self.listen(Progress(self.label, done, self.layer.size, "bytes", self.layer.digest))
        if done < self.layer.size:
            raise Unreachable(f"{self.what}: ended after {done} of {self.layer.size} bytes; run the same command again")

    def _publish(self) -> None:
        with open(self.partial, "rb") as file:
            atomic.fault("fsync")
            os.fsync(file.fileno())
        self.partial.chmod(0o644)
        atomic.publish(self.partial, self.store.blob(self.layer.digest))

    def _restart(self) -> None:
        os.truncate(self.partial, 0)

    def _size(self) -> int:
        return self.partial.stat().st_size if self.partial.exists() else 0

    def _digest(self) -> str:
        sha = hashlib.sha256()
        for chunk in atomic.read_chunks(self.partial):
            sha.update(chunk)
        return "sha256:" + sha.hexdigest()
