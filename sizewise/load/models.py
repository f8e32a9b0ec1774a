"""From a reference to a `Model`: what is on this machine or behind an address, ready for a runner to open."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from sizewise import __version__
from sizewise.core.digests import canonical
from sizewise.core.errors import (
    BadModel,
    DigestMismatch,
    Locked,
    SizewiseError,
    StorageError,
    UnknownName,
    Unsupported,
    UsageError,
)
from sizewise.core.events import Listener, silent
from sizewise.core.model import Model, ModelKind
from sizewise.core.recipe import Lineage
from sizewise.core.references import (
    HubRef,
    NameRef,
    OllamaRef,
    OpenAIRef,
    PathRef,
    PypiRef,
    is_loopback,
    parse_name,
    parse_reference,
)
from sizewise.core.requests import ROLES, Message
from sizewise.load.facts import (
    ADAPTER_FILE,
    FACTS,
    GGUF_FILE,
    PROJECTOR_FILE,
    config_of,
    content_digest,
    endpoint,
    facts_of_files,
    facts_of_gguf,
    in_place,
    remembered,
)
from sizewise.load.store.manifest import Layer, Manifest, read_json
from sizewise.load.store.store import Store

OLLAMA, OURS = "application/vnd.ollama.image.", "application/vnd.sizewise."
FILE_TYPE, LINEAGE_TYPE, TEMPLATE_TYPE = OURS + "file", OURS + "lineage+json", OURS + "template"
_MADE_OF = (OLLAMA + "model", OLLAMA + "adapter", OLLAMA + "projector", OLLAMA + "tensor", FILE_TYPE)
_SETTINGS = (OLLAMA + "system", OLLAMA + "params", OLLAMA + "messages", TEMPLATE_TYPE)
_GGUF_PARTS = {OLLAMA + "model": GGUF_FILE, OLLAMA + "adapter": ADAPTER_FILE, OLLAMA + "projector": PROJECTOR_FILE}


def find_model(reference: str, store: Store | None = None) -> Model:
    """The model that a reference names. Nothing is downloaded.

    Args:
        reference: a name in the store, a checkpoint folder, a GGUF file, or an endpoint (`ollama://`, `openai://`).
        store: where names are looked up; None = the user's store.

    Raises:
        UnknownName: the store has no such name; the message holds the nearest one and how to get it.
        UsageError: the reference has no valid form, or it must be pulled before it can be used.
        BadModel: the file or folder holds no model.
        StorageError: some of the model's data is missing.
        DigestMismatch: a file that the store uses in place has changed.
    """
    parsed, store = parse_reference(reference), store or Store()
    if isinstance(parsed, PathRef):
        return in_place(Path(parsed.path).expanduser(), store)
    if isinstance(parsed, OpenAIRef):
        return endpoint(str(parsed), parsed.base_url, f"openai:{parsed.model}")
    if isinstance(parsed, OllamaRef):
        return endpoint(str(parsed), base_url(parsed.host), f"ollama:{_short(parsed.name)}")
    if isinstance(parsed, (HubRef, PypiRef)):
        return _pulled_from(str(parsed), store)
    return find_stored(parsed, store)


def find_stored(name: NameRef, store: Store) -> Model:
    """The model of that name in the store; raises as `find_model` does."""
    return _stored(_known(name, store), store)


def save_model(
    name: str,
    kind: ModelKind,
    files: dict[str, Path],
    *,
    architecture: str = "",
    parameters: int | None = None,
    quantization: str = "",
    context_length: int | None = None,
    embedding_length: int | None = None,
    template: str | None = None,
    system: str = "",
    license: str = "",
    defaults: dict[str, Any] | None = None,
    lineage: Lineage,
    store: Store | None = None,
    link: bool = False,
    move: bool = False,
    digests: dict[str, str] | None = None,
    listen: Listener = silent,
) -> Model:
    """Put a model into the store under a name. What the caller does not say is read from the files.

    Args:
        name: `[host/][namespace/]model[:tag]`; an existing model of that name is replaced.
        kind: what it is; no endpoint.
        files: file name in the model -> path; of a gguf model, one file under any name.
        architecture: family of the network: "llama", "bert", "tfidf".
        parameters: number of weights.
        quantization: type that most weights have: "Q4_1", "BF16".
        context_length: most tokens that it takes.
        embedding_length: width of its embeddings.
        license: text or name of its licence.
        template: Jinja chat template that overrides the one in the files.
        system: system prompt to use where the caller gives none.
        defaults: sampling parameters to use where the caller gives none.
        lineage: where it came from.
        store: None = the user's store.
        link: refer to the files where they lie instead of copying them.
        move: take the files away from where they lie.
        digests: file name in the model -> digest that the file must have.
        listen: hears the bytes read.

    Raises:
        UsageError: the name has no valid form, or a gguf model has not exactly one file.
        BadModel, DigestMismatch: a file is not what its kind or `digests` say.
        DiskFull: there is no room; what the name meant before is still there.
    """
    target, store = parse_name(name), store or Store()
    if kind == "endpoint" or not files or (kind == "gguf" and len(files) != 1):
        raise UsageError(f"{name}: a {kind} model cannot be stored from {len(files)} files")
    facts = _facts(kind, files, (architecture, parameters, quantization, context_length, embedding_length))
    texts = {TEMPLATE_TYPE: template, OLLAMA + "system": system, OLLAMA + "license": license}
    with store.writing():
        layers, wanted = [], digests or {}
        for title, path in sorted(files.items()):
            blob = store.add_file(path, link=link, move=move, expected=wanted.get(title), listen=listen)
            layers.append(Layer(OLLAMA + "model", *blob) if kind == "gguf" else Layer(FILE_TYPE, *blob, title))
        layers += _small_layers(store, texts, defaults, lineage)
        return _model(store.put(target, config_of(kind, facts), layers), store)


def add_figures(model: Model, figures: dict[str, Any], store: Store) -> Model:
    """Write numbers about a stored model into its lineage. Its digest stays: lineage changes no answer.

    Args:
        model: as it was found, under a name of the store.
        figures: what is added; a figure of the same name is replaced.
        store: where it is.

    Raises:
        UnknownName: the name is gone.
        Locked: the name means another model by now.
    """
    name = parse_name(model.name)
    with store.writing():
        now, manifest = find_stored(name, store), store.get(name)
        if now.digest != model.digest:
            raise Locked(f"{model.name} was replaced while it was looked at; its figures are not kept")
        lineage = replace(now.lineage, figures=now.lineage.figures | figures)
        layers = [layer for layer in manifest.layers if layer.media_type != LINEAGE_TYPE]
        layers += _small_layers(store, {}, None, lineage)
        return _model(store.put(name, manifest.config, layers), store)


def _small_layers(
    store: Store, texts: dict[str, str | None], defaults: dict[str, Any] | None, lineage: Lineage
) -> list[Layer]:
    data = {media: text.encode() for media, text in texts.items() if text}
    data |= {OLLAMA + "params": canonical(defaults)} if defaults else {}
    lineage = replace(lineage, made_by=lineage.made_by or f"sizewise {__version__}")
    data |= {LINEAGE_TYPE: canonical(lineage.as_json())}
    return [Layer(media, *store.add_bytes(content)) for media, content in data.items()]


def _facts(kind: ModelKind, files: dict[str, Path], told: tuple[Any, ...]) -> dict[str, Any]:
    """What the caller says, and for the rest what the files say."""
    read = facts_of_files(kind, files)
    return {key: value or read.get(key) for key, value in zip(FACTS, told, strict=True)}


def list_models(store: Store | None = None) -> list[Model]:
    """All models of the store that are whole, by name. Nothing large is read."""
    store = store or Store()
    models = []
    for manifest in store.list():
        try:
            models.append(_model(manifest, store))
        except (SizewiseError, OSError):  # damaged: `doctor` names it, and the others must still be listed
            continue
    return models


def base_url(host: str, insecure: bool = False) -> str:
    """The address of a host: plain HTTP for this machine only, unless `insecure` is asked for."""
    return ("http://" if insecure or is_loopback(host.partition(":")[0]) else "https://") + host


def _known(name: NameRef, store: Store) -> NameRef:
    """The name itself if the store has it; else the reason, with what to do."""
    if store.layout.entries(name):
        return name
    from sizewise.load.catalogue import entries

    listed, spelled = entries(), _short(name)
    if spelled in listed or str(name) in listed:
        raise UnknownName("model in the store", spelled, remedy=f"`sizewise pull {spelled}` gets it")
    known = [*(_short(found) for found, _ in store.layout.names()), *listed]
    raise UnknownName(
        "model", spelled, known, remedy=f"`sizewise pull {spelled}` gets it if it is in `sizewise catalog`"
    )


def _short(name: NameRef) -> str:
    return str(name).removesuffix(":latest")


def _pulled_from(reference: str, store: Store) -> Model:
    for model in list_models(store):
        if model.lineage.source == reference:
            return _stored(parse_name(model.name), store)
    raise UnknownName("model in the store", reference, remedy=f"`sizewise pull {reference}` gets it")


def _stored(name: NameRef, store: Store) -> Model:
    manifest = store.get(name)
    for layer in manifest.blobs:
        wrong = store.fault_of(layer)
        if wrong:
            failure = DigestMismatch if "changed" in wrong else StorageError
            raise failure(f"{name}: {layer.title or layer.digest[:19]}: {wrong}; `sizewise pull` it again")
    return _model(manifest, store)


def _model(manifest: Manifest, store: Store) -> Model:
    own = manifest.config.get("sizewise")
    own = own if isinstance(own, dict) else {}
    by_type = {layer.media_type: layer for layer in reversed(manifest.layers)}  # the first of a type counts
    weights = by_type.get(OLLAMA + "model")
    files = {layer.title: store.blob(layer.digest) for layer in manifest.layers if layer.media_type == FILE_TYPE}
    if weights:
        files = {title: store.blob(by_type[kind].digest) for kind, title in _GGUF_PARTS.items() if kind in by_type}
    if not files:
        raise BadModel(f"{manifest.name}: holds nothing that sizewise can run (no GGUF and no checkpoint)")
    facts = own or (remembered(store, weights.digest, lambda: facts_of_gguf(files[GGUF_FILE])) if weights else {})
    template, warnings = _template(store, by_type)
    noted = store.layout.note("source", manifest.digest)  # a pulled manifest is kept as it came
    lineage = read_json(store.blob(by_type[LINEAGE_TYPE].digest) if LINEAGE_TYPE in by_type else noted)
    params = read_json(store.blob(by_type[OLLAMA + "params"].digest)) if OLLAMA + "params" in by_type else None
    licenses = [_text(store, layer) for layer in manifest.layers if layer.media_type == OLLAMA + "license"]
    return Model(
        name=_short(manifest.name),
        kind=cast(ModelKind, own.get("kind", "gguf" if weights else "checkpoint")),
        digest=content_digest(_parts(manifest, template)),
        files=files,
        size_bytes=sum(layer.size for layer in manifest.layers if layer.media_type in _MADE_OF),
        architecture=str(facts.get("architecture") or manifest.config.get("model_family") or ""),
        parameters=facts.get("parameters"),
        quantization=str(facts.get("quantization") or manifest.config.get("file_type") or ""),
        context_length=facts.get("context_length"),
        embedding_length=facts.get("embedding_length"),
        template=template,
        system=_text(store, by_type.get(OLLAMA + "system")),
        license="\n\n".join(licenses),
        messages=_messages(_text(store, by_type.get(OLLAMA + "messages"))),
        defaults=params or {},
        lineage=Lineage.from_json(lineage or {}),
        warnings=warnings,
    )


def _parts(manifest: Manifest, template: str | None) -> dict[str, str]:
    """What changes an answer: each file, and the template, system prompt and parameters stored with them."""
    kept = [layer for layer in manifest.layers if layer.media_type in (*_MADE_OF, *_SETTINGS)]
    if template:
        kept += [layer for layer in manifest.layers if layer.media_type == OLLAMA + "template"]
    names = {OLLAMA + "model": GGUF_FILE}
    return {names.get(layer.media_type) or layer.title or layer.media_type: layer.digest for layer in kept}


def _template(store: Store, by_type: dict[str, Layer]) -> tuple[str | None, tuple[str, ...]]:
    """The chat template as Jinja, and a warning where the stored one is in Ollama's language and beyond us."""
    own, theirs = (_text(store, by_type.get(kind)) for kind in (TEMPLATE_TYPE, OLLAMA + "template"))
    if own or "{%" in theirs:
        return own or theirs, ()
    if not theirs.strip():
        return None, ()
    from sizewise.load.go_template import translate

    try:
        return translate(theirs), ()
    except Unsupported as error:
        return None, (f"{error}: the template inside the model's own file is used instead",)


def _messages(text: str) -> tuple[Message, ...]:
    """Turns stored as Ollama stores them; what is damaged counts as none."""
    try:
        listed = json.loads(text) if text else []
        return tuple(Message(turn["role"], str(turn.get("content") or "")) for turn in listed if turn["role"] in ROLES)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return ()


def _text(store: Store, layer: Layer | None) -> str:
    if layer is None or layer.size > 4 * 10**6:
        return ""
    return store.blob(layer.digest).read_text(encoding="utf-8", errors="replace")
