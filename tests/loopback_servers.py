"""Servers on this machine that speak the real protocols: an Ollama/OCI registry and a Hugging Face hub, with faults."""

import contextlib
import hashlib
import json
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

CHUNK = 4096


@dataclass
class Server:
    """What a server holds, how it misbehaves, and what it was asked."""

    faults: set[str] = field(default_factory=set)
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)  # method, path, headers
    elsewhere: str = ""  # where redirects and foreign realms lead
    sent: int = 0  # bytes of bodies
    cuts: int = 0  # how many bodies were broken off
    stop_after: int | None = None  # bytes after which the fault "cut" breaks a body off
    release: threading.Event = field(default_factory=threading.Event)
    url: str = ""

    def answer(self, handler: "Handler") -> None:
        """Answer one request."""
        raise LookupError(handler.path)

    @property
    def host(self) -> str:
        """Host and port."""
        return urlsplit(self.url).netloc


class Handler(BaseHTTPRequestHandler):
    """Bodies with ranges, and the faults that any server of files can have."""

    protocol_version = "HTTP/1.1"
    owner: Server

    def do_GET(self) -> None:
        self.owner.asked.append((self.command, self.path, dict(self.headers)))
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.owner.answer(self)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        return

    def reply(self, status: int, body: bytes = b"", headers: dict[str, str] | None = None) -> None:
        """A whole answer."""
        self.send_response(status)
        for key, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def file(self, data: bytes, headers: dict[str, str] | None = None) -> None:
        """Part or all of a file, as the Range header and the server's faults want it."""
        owner, start = self.owner, 0
        wanted = self.headers.get("Range", "")
        if wanted.startswith("bytes=") and "no_range" not in owner.faults:
            start = int(wanted[6:].split("-")[0])
            if start >= len(data):
                self.reply(416, headers={"Content-Range": f"bytes */{len(data)}"})
                return
        if "wrong_bytes" in owner.faults:
            data = bytes(byte ^ 1 for byte in data)
        if "short" in owner.faults:
            data = data[:-1]
        if "long" in owner.faults:
            data += b"x"
        body = data[start:]
        self.send_response(206 if start else 200)
        extra = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if start else {}
        for key, value in ({"Content-Length": str(len(body))} | extra | (headers or {})).items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "GET":
            self._send(body)

    def _send(self, body: bytes) -> None:
        owner = self.owner
        limit = len(body)
        if "cut_always" in owner.faults or ("cut" in owner.faults and owner.cuts == 0):
            limit = owner.stop_after if owner.stop_after is not None else len(body) // 2
        for place in range(0, min(limit, len(body)), CHUNK):
            piece = body[place : min(place + CHUNK, limit)]
            self.wfile.write(piece)
            self.wfile.flush()
            owner.sent += len(piece)
        if limit < len(body):
            owner.cuts += 1
            if "stall" in owner.faults:
                owner.release.wait(20)
            self.close_connection = True


class _Http(ThreadingHTTPServer):
    daemon_threads = True

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that was killed or gave up is no error of ours; anything else is printed by the parent class."""
        if not isinstance(sys.exc_info()[1], ConnectionError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


@contextlib.contextmanager
def running(server: Server) -> Iterator[Server]:
    """The server on a free port of this machine, until the end of the block."""
    handler = type("Bound", (Handler,), {"owner": server})
    http = _Http(("127.0.0.1", 0), handler)
    server.url = f"http://127.0.0.1:{http.server_address[1]}"
    thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        http.shutdown()
        http.server_close()
        thread.join()


def sha256(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()


@dataclass
class RegistryServer(Server):
    """`/v2/<namespace>/<model>/manifests/<tag>` and `/v2/<namespace>/<model>/blobs/<digest>`."""

    manifests: dict[str, bytes] = field(default_factory=dict)
    blobs: dict[str, bytes] = field(default_factory=dict)
    token: bytes = b'{"token": "secret-token"}'

    def add(self, name: str, parts: dict[str, bytes], tag: str = "latest") -> dict[str, Any]:
        """A model `library/<name>:<tag>` of these layers; returns its manifest, which may be changed and set again."""

        def layer(kind: str, data: bytes) -> dict[str, Any]:
            self.blobs[sha256(data)] = data
            return {"mediaType": kind, "digest": sha256(data), "size": len(data)}

        config = json.dumps({"model_format": "gguf", "model_family": "llama"}).encode()
        body = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": layer("application/vnd.docker.container.image.v1+json", config),
            "layers": [layer(f"application/vnd.ollama.image.{kind}", data) for kind, data in parts.items()],
        }
        self.manifests[f"library/{name}/{tag}"] = json.dumps(body).encode()
        return body

    def answer(self, handler: Handler) -> None:
        path = urlsplit(handler.path).path
        if path == "/token":
            handler.reply(200, self.token)
            return
        if {"auth", "foreign_auth"} & self.faults and handler.headers.get("Authorization") != "Bearer secret-token":
            realm = (self.elsewhere if "foreign_auth" in self.faults else self.url) + "/token"
            handler.reply(401, headers={"WWW-Authenticate": f'Bearer realm="{realm}",service="r",scope="pull"'})
            return
        if "status_500" in self.faults:
            handler.reply(500)
            return
        kind, _, last = path.removeprefix("/v2/").rpartition("/")
        if kind.endswith("/manifests"):
            name = f"{kind.removesuffix('/manifests')}/{last}"
            data = b" " * 5_000_000 if "huge_manifest" in self.faults else self.manifests.get(name)
            handler.reply(200, data) if data is not None else handler.reply(404)
        elif "redirect" in self.faults:
            handler.reply(307, headers={"Location": f"{self.elsewhere}{path}"})
        elif last in self.blobs:
            handler.file(self.blobs[last])
        else:
            handler.reply(404)


@dataclass
class HubServer(Server):
    """`/api/models/<repo>/revision/<revision>` and `/<repo>/resolve/<revision>/<file>`."""

    repos: dict[str, dict[str, bytes]] = field(default_factory=dict)
    gated: set[str] = field(default_factory=set)
    commit: str = "c" * 40

    def answer(self, handler: Handler) -> None:
        if "status_500" in self.faults:
            handler.reply(500)
            return
        split = urlsplit(handler.path)
        if split.path.startswith("/api/models/"):
            repo, _, revision = split.path.removeprefix("/api/models/").partition("/revision/")
            self._info(handler, repo, revision, "blobs" in parse_qs(split.query))
            return
        repo, _, rest = split.path.removeprefix("/").partition("/resolve/")
        revision, _, name = rest.partition("/")
        data = self.repos.get(repo, {}).get(name)
        if data is None or revision not in (self.commit, "main"):
            code = "EntryNotFound" if repo in self.repos else "RepoNotFound"
            handler.reply(404, headers={"X-Error-Code": code})
            return
        headers = {"X-Repo-Commit": self.commit, "ETag": f'"{self._etag(name, data)}"', "Accept-Ranges": "bytes"}
        handler.file(data, headers)

    def _info(self, handler: Handler, repo: str, revision: str, sizes: bool) -> None:
        if repo in self.gated and "Authorization" not in handler.headers:
            handler.reply(403, headers={"X-Error-Code": "GatedRepo"})
        elif repo not in self.repos:
            handler.reply(404, headers={"X-Error-Code": "RepoNotFound"})
        elif revision not in (self.commit, "main"):
            handler.reply(404, headers={"X-Error-Code": "RevisionNotFound"})
        else:
            siblings = [self._sibling(name, data, sizes) for name, data in self.repos[repo].items()]
            card = {"license": "mit"}
            body = {
                "id": repo,
                "sha": self.commit,
                "siblings": siblings,
                "tags": [],
                "cardData": card,
                "private": False,
            }
            handler.reply(200, json.dumps(body).encode(), {"Content-Type": "application/json"})

    def _sibling(self, name: str, data: bytes, sizes: bool) -> dict[str, Any]:
        large = name.endswith((".gguf", ".safetensors", ".bin"))
        facts: dict[str, Any] = {"rfilename": name}
        if sizes:
            facts |= {"size": len(data), "blobId": self._etag(name, data)}
            facts |= {"lfs": {"sha256": sha256(data)[7:], "size": len(data), "pointerSize": 130}} if large else {}
        return facts

    @staticmethod
    def _etag(name: str, data: bytes) -> str:
        return sha256(data)[7:] if name.endswith((".gguf", ".safetensors")) else hashlib.sha1(data).hexdigest()
