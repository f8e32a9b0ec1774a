"""A model goes to an Ollama or OCI registry: the blobs it does not have yet, in parts, then the manifest as it is."""

import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from sizewise.core.errors import StorageError, Unreachable, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.references import NameRef, OllamaRef, parse_name, parse_reference
from sizewise.load.models import base_url
from sizewise.load.pull import without_scheme
from sizewise.load.sources.web import Web
from sizewise.load.store.manifest import MANIFEST_TYPE, Layer
from sizewise.load.store.store import Store

_PART = 16 << 20  # bytes sent in one request: what a broken connection costs at most
_PIECE = 1 << 16
_TRIES = 6  # in a row without a single new byte
_WAIT_S = 0.5  # before the second try; doubles


def push(
    name: str,
    *,
    to: str | None = None,
    store: Store | None = None,
    insecure: bool = False,
    listen: Listener = silent,
) -> OllamaRef:
    """Send a model to a registry.

    Args:
        name: a name in the store.
        to: where to, as `ollama://host/namespace/name:tag`; None = as its name says, `host/namespace/name:tag`.
        store: None = the user's store.
        insecure: speak plain HTTP with another machine.
        listen: hears the bytes sent.

    Returns:
        Where the model is now.

    Raises:
        UnknownName: the store has no such model.
        UsageError: the registry wants a login.
        Unreachable: the registry does not answer, or not as its protocol says.
        Unsafe: it sends us where we do not go.
        StorageError: data of the model is missing.
    """
    own, store = parse_name(without_scheme(name, insecure)), store or Store()
    target = parse_reference(to) if to else OllamaRef(own.host, own)
    if not isinstance(target, OllamaRef):
        raise UsageError(f"{to}: a model is pushed to ollama://host[:port]/[namespace/]name[:tag]")
    with store.writing():  # until the end nobody collects what is being sent
        manifest, data = store.get(own), store.manifest_bytes(own)
        listen(Progress("retrieving manifest", 0, None, ""))
        for layer in manifest.blobs:
            wrong = store.fault_of(layer)
            if wrong:
                raise StorageError(f"{own}: {layer.title or layer.digest[:19]}: {wrong}; `sizewise pull` it again")
        web = Web(base_url(target.host, insecure))
        try:
            for layer in dict.fromkeys(manifest.blobs):
                _Upload(target, layer, store.blob(layer.digest), web, listen).push()
            listen(Progress("pushing manifest", 0, None, ""))
            _put_manifest(target, data, web)
        finally:
            web.close()
    return target


def _base(name: NameRef) -> str:
    return f"/v2/{name.namespace}/{name.model}"


def _asked(web: Web, what: str, method: str, url: str, headers: dict[str, str], content: bytes = b"") -> httpx.Response:
    """One small request; where the registry wants a token, the anonymous one that it gives."""
    for attempt in range(2):
        answer = web.send(method, url, headers, content)
        if answer.status_code != 401 or attempt or not web.authenticate(answer.headers.get("www-authenticate", "")):
            break
    if answer.status_code in (401, 403):
        raise UsageError(f"{what}: the registry wants a login, which sizewise does not do; use an open one")
    return answer


def _put_manifest(target: OllamaRef, data: bytes, web: Web) -> None:
    url = f"{_base(target.name)}/manifests/{target.name.tag}"
    answer = _asked(web, str(target), "PUT", url, {"Content-Type": MANIFEST_TYPE}, data)
    if answer.status_code not in (200, 201, 202):
        said = answer.extensions["body"][:200].decode(errors="replace")
        raise Unreachable(f"{target}: the registry refuses the manifest with status {answer.status_code}: {said}")


class _Upload:
    """One blob on its way."""

    def __init__(self, target: OllamaRef, layer: Layer, path: Path, web: Web, listen: Listener) -> None:
        self.target, self.layer, self.path, self.web, self.listen = target, layer, path, web, listen
        self.what = f"pushing {layer.digest[7:19]}"
        self.url = ""  # where the next part goes

    def push(self) -> None:
        """Send the blob unless the registry has it; after a broken connection go on from what has arrived."""
        failures, wait_s, most = 0, _WAIT_S, -1
        while True:
            try:
                return self._push_once()
            except Unreachable:
                try:
                    reached = self._arrived()
                except Unreachable:
                    reached = -1
                failures = failures + 1 if reached <= most else 1
                most = max(most, reached)
                if failures >= _TRIES:
                    raise
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, 10.0)

    def _push_once(self) -> None:
        if self._is_there():
            self._tell(self.layer.size)
            return
        done = self._arrived()
        if done < 0:
            self._begin()
            done = 0
        while done < self.layer.size:
            done = self._part(done)
        answer = _asked(self.web, self.what, "PUT", self._with_digest(), {"Content-Length": "0"})
        if answer.status_code not in (201, 204):
            self.url = ""
            raise Unreachable(f"{self.target}: {self.what}: the registry answers with status {answer.status_code}")
        self._tell(self.layer.size)

    def _is_there(self) -> bool:
        url = f"{_base(self.target.name)}/blobs/{self.layer.digest}"
        status = _asked(self.web, str(self.target), "HEAD", url, {}).status_code
        if status not in (200, 202, 204, 307, 404):
            raise Unreachable(f"{self.target}: the registry answers with status {status}; try again later")
        return status != 404

    def _begin(self) -> None:
        url = f"{_base(self.target.name)}/blobs/uploads/"
        answer = _asked(self.web, str(self.target), "POST", url, {"Content-Length": "0"})
        if answer.status_code != 202 or "location" not in answer.headers:
            raise Unreachable(f"{self.target}: the registry takes no uploads (status {answer.status_code})")
        self._go_on_at(answer)

    def _part(self, start: int) -> int:
        """Send the bytes from `start` on, at most one part. Returns where the next one begins."""
        end = min(start + _PART, self.layer.size)
        headers = {
            "Content-Type": "application/octet-stream",
            "Content-Length": str(end - start),
            "Content-Range": f"{start}-{end - 1}",
        }
        answer = self.web.send("PATCH", self.url, headers, self._bytes(start, end))
        if answer.status_code not in (202, 204):
            if answer.status_code < 500:  # it knows this upload no more; in trouble of its own, it may later
                self.url = ""
            raise Unreachable(f"{self.target}: {self.what}: the registry answers with status {answer.status_code}")
        self._go_on_at(answer)
        return end

    def _bytes(self, start: int, end: int) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(start)
            while start < end and (piece := file.read(min(_PIECE, end - start))):
                start += len(piece)
                yield piece
                self._tell(start)

    def _arrived(self) -> int:
        """How many bytes of the upload under way have arrived; -1 where there is none to go on with.

        Raises:
            Unreachable: the registry does not say; it may still have them.
        """
        if not self.url:
            return -1
        answer = self.web.send("GET", self.url, {})
        if answer.status_code >= 500:
            raise Unreachable(f"{self.target}: {self.what}: the registry answers with status {answer.status_code}")
        said = answer.headers.get("range", "").removeprefix("bytes=").partition("-")[2]
        if answer.status_code != 204 or not said.isdecimal():
            self.url = ""
            return -1
        self._go_on_at(answer)
        return min(int(said) + 1 if int(said) else 0, self.layer.size)

    def _go_on_at(self, answer: httpx.Response) -> None:
        location = answer.headers.get("location")
        if location:
            self.url = self.web.redirect(str(answer.url), location)

    def _with_digest(self) -> str:
        return str(httpx.URL(self.url).copy_merge_params({"digest": self.layer.digest}))

    def _tell(self, done: int) -> None:
        self.listen(Progress(self.what, done, self.layer.size, "bytes", self.layer.digest))
