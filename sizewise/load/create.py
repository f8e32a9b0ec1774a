"""A new model from parts: a base (a model in the store, GGUF files or a checkpoint) and what is laid around it.

What is stored are Ollama's own layers, so that a real Ollama reads the result. Only two things have no place there and
get layers of ours, which Ollama passes over: the files of a checkpoint (kept as they are and run by torch) and a chat
template in Jinja.
"""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from sizewise import __version__
from sizewise.core.digests import canonical
from sizewise.core.errors import BadModel, Locked, Unsupported, UsageError
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model, ModelKind
from sizewise.core.recipe import Lineage, Recipe, RecipeStep
from sizewise.core.references import NameRef, PathRef, parse_name, parse_reference
from sizewise.core.requests import Message
from sizewise.load.doors import Checked, checked_export, gguf_at, link_files
from sizewise.load.facts import GGUF_FILE, config_of, facts_of_folder, facts_of_gguf, license_of_gguf
from sizewise.load.gguf.file import GgufInfo, read_gguf
from sizewise.load.gguf.lora import check_adapter, convert_adapter, is_adapter
from sizewise.load.modelfile import Modelfile
from sizewise.load.models import FILE_TYPE, LINEAGE_TYPE, OLLAMA, TEMPLATE_TYPE, find_model
from sizewise.load.parity import require_same_text
from sizewise.load.pull import here
from sizewise.load.sources import scratch
from sizewise.load.store.layout import check_file_name
from sizewise.load.store.manifest import read_json
from sizewise.load.store.store import Layer, Store

MODEL, ADAPTER, PROJECTOR = OLLAMA + "model", OLLAMA + "adapter", OLLAMA + "projector"
CONFIG = ("requires", "renderer", "parser")  # of a Modelfile: they lie in the config blob


@dataclass(slots=True)
class Parts:
    """What a model is made of. What is empty comes from the base."""

    base: str = ""  # a model in the store
    files: dict[str, Path] = field(default_factory=dict)  # or files: name -> path; GGUF, or a checkpoint's
    adapters: dict[str, Path] = field(default_factory=dict)
    template: str = ""  # Jinja or Go
    system: str = ""
    licenses: tuple[str, ...] = ()
    parameters: dict[str, Any] = field(default_factory=dict)
    messages: tuple[Message, ...] = ()
    config: dict[str, str] = field(default_factory=dict)  # requires, renderer, parser: Ollama's, kept for it
    source: str = ""  # where the files are from, for the lineage
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Quantizer:
    """How weights are packed: the name of the type, and who does it (model, folder for the file, listener)."""

    type: str
    run: Callable[[Model, Path, Listener], Path]


def create(
    name: str,
    parts: Parts,
    store: Store | None = None,
    *,
    quantizer: Quantizer | None = None,
    listen: Listener = silent,
) -> Model:
    """Make a model and give it a name; what the name meant before is replaced at once.

    Args:
        name: `[host/][namespace/]model[:tag]`.
        parts: what it is made of, its parameters checked before (`parameters.check_parameters`).
        store: None = the user's store.
        quantizer: packs the weights, which must be unpacked ones.
        listen: hears what is done.

    Raises:
        UsageError: parts that do not go together.
        UnknownName: the store has no such base.
        Locked: the base is the model itself.
        BadModel: a file is no model, or an adapter is made for another one.
        Unsafe: pickled weights, code, or a file name that leaves its folder.
        Unsupported: what cannot be done with this kind of model.
    """
    target, store = parse_name(name), store or Store()
    if bool(parts.base) == bool(parts.files):
        raise UsageError(f"{name}: say what the model is made from: either a model or files")
    if parts.template:
        check_template(parts.template)
    with store.writing(), scratch(store, f"create {target}") as folder:
        maker = _Maker(target, parts, store, folder, listen, packs=quantizer is not None)
        maker.base() if parts.base else maker.from_files()
        if quantizer:
            maker.quantize(quantizer)
        for title, path in parts.adapters.items():
            maker.adapt(title, path)
        maker.dress()
        return maker.finish()


def check_template(template: str) -> None:
    """Refuse a template that cannot work, before a model gets it.

    Raises:
        UsageError: it has an error; the message holds the line.
    """
    from sizewise.load.go_template import is_jinja, translate
    from sizewise.load.templates import render_chat

    with contextlib.suppress(Unsupported):  # a Go template beyond us: the model is made, and says so
        jinja = template if is_jinja(template) else translate(template)
        try:
            render_chat(jinja, [Message("user", "?")])
        except BadModel as error:
            raise UsageError(str(error)) from error
        except UsageError:  # it wants other messages than this one: the template itself works
            return


class _Maker:
    """The model as it grows: layers, config and lineage."""

    def __init__(
        self, target: NameRef, parts: Parts, store: Store, folder: Path, listen: Listener, *, packs: bool
    ) -> None:
        self.target, self.parts, self.store, self.folder, self.listen = target, parts, store, folder, listen
        self.packs = packs  # weights are packed, for which a checkpoint becomes a GGUF
        self.exported: tuple[Path, Checked] | None = None
        self.layers: list[Layer] = []
        self.config: dict[str, Any] = {}
        self.lineage = Lineage(recipe=None)
        self.kind: ModelKind = "gguf"

    def base(self) -> None:
        """Begin with all layers of a model in the store."""
        name = parse_name(self.parts.base)
        model = find_model(str(name), self.store)
        if name == self.target:
            raise Locked(f"{name}: a model is not made from itself; give the new one another name")
        manifest = self.store.get(name)
        self.layers = [layer for layer in manifest.layers if layer.media_type != LINEAGE_TYPE]
        for layer in self.layers:
            self.say(f"using existing layer {layer.digest}")
        self.config, self.kind = dict(manifest.config), model.kind
        self.lineage = Lineage(recipe=None, parent_name=model.name, parent_digest=model.digest)

    def from_files(self) -> None:
        """Begin with files."""
        self.lineage = Lineage(recipe=None, source=self.parts.source or None)
        if any(_is_gguf(title, path) for title, path in self.parts.files.items()):
            self.from_gguf()
        else:
            self.from_checkpoint()

    def from_gguf(self) -> None:
        for title, path in self.parts.files.items():
            info = _read(title, path)
            if is_adapter(info):
                raise BadModel(f"{title}: is an adapter, no model; name it as such, beside the model it belongs to")
            self.add_weights(PROJECTOR if info.architecture == "clip" else MODEL, title, path)
        if not self.has(MODEL):
            raise BadModel(f"{', '.join(self.parts.files)}: only a projector; the model itself is missing")
        self.config = config_of("gguf", facts_of_gguf(self.weights()))
        license = license_of_gguf(self.weights())
        if license and not self.parts.licenses:
            self.set_text(OLLAMA + "license", license)

    def from_checkpoint(self) -> None:
        """A checkpoint is kept file by file: torch runs it. One that is to be packed becomes a GGUF."""
        named = {check_file_name(title): path for title, path in self.parts.files.items()}
        inside = link_files(named, self.folder / "checkpoint")
        self.kind, files, facts = facts_of_folder(inside)
        left = sorted(self.parts.files.keys() - files.keys())
        if left:
            self.say(f"left out what the model does not need: {', '.join(left)[:200]}")
        if self.packs and self.kind == "checkpoint":
            self.export(inside)
            return
        for title, path in sorted(files.items()):
            self.add_weights(FILE_TYPE, title, path)
        self.config = config_of(self.kind, facts)
        self.say(f"kept as a {self.kind}: it is served by torch, and a real Ollama cannot run it")

    def quantize(self, quantizer: Quantizer) -> None:
        """Pack the weights into another type."""
        if self.kind == "checkpoint" and not self.exported:
            files = {
                layer.title: self.store.blob(layer.digest) for layer in self.layers if layer.media_type == FILE_TYPE
            }
            self.export(link_files(files, self.folder / "checkpoint"))
        if self.kind != "gguf" and not self.exported:
            raise Unsupported(f"{self.target}: only language models can be quantized on create, not a {self.kind}")
        plain = gguf_at(self.exported[0] if self.exported else self.weights(), str(self.target))
        self.say(f"quantizing {plain.quantization} model to {quantizer.type}")
        packed = quantizer.run(plain, self.folder, self.listen)
        if self.exported:
            require_same_text(self.exported[1].seen, gguf_at(packed, f"the GGUF of {self.target}"))
        self.drop(MODEL, FILE_TYPE)
        self.add_weights(MODEL, GGUF_FILE, packed, move=True)
        self.layers.insert(0, self.layers.pop())
        self.kind = "gguf"
        self.config |= config_of("gguf", facts_of_gguf(self.weights()))
        method = "export-gguf" if self.exported else "quantize-gguf"
        self.lineage = replace(self.lineage, recipe=Recipe((RecipeStep(method, {"type": quantizer.type}),)))

    def export(self, folder: Path) -> None:
        """Write a checkpoint as a GGUF and compare the two; a copy that differs is refused."""
        self.say("converting model to GGUF")
        _, files, facts = facts_of_folder(folder)
        known = {key: value for key, value in facts.items() if value}
        model = Model(str(self.target), "checkpoint", "", files, 0, **known)
        plain = self.folder / "exported" / GGUF_FILE
        self.exported = (plain, checked_export(model, plain, self.listen)[1])

    def adapt(self, title: str, path: Path) -> None:
        """Lay a LoRA over the weights."""
        if self.kind != "gguf":
            raise Unsupported(f"{title}: adapters go with GGUF models; merge it into the {self.kind} first")
        if self.has(ADAPTER) and len(self.parts.adapters) > 1:
            raise Unsupported("a model takes one adapter; merge the others into its weights first")
        base = read_gguf(self.weights())
        if path.is_dir():
            path = convert_adapter(path, base, self.folder / "adapter.gguf")
        check_adapter(_read(title, path), base, title)
        self.drop(ADAPTER)
        self.add_weights(ADAPTER, title, path)

    def dress(self) -> None:
        """Template, system prompt, parameters, messages and licences."""
        from sizewise.load.go_template import is_jinja

        parts = self.parts
        if parts.template:
            self.drop(TEMPLATE_TYPE, OLLAMA + "template")
            self.set_text(TEMPLATE_TYPE if is_jinja(parts.template) else OLLAMA + "template", parts.template)
        if parts.system:
            self.set_text(OLLAMA + "system", parts.system)
        if parts.parameters:
            before = next((layer for layer in self.layers if layer.media_type == OLLAMA + "params"), None)
            known = read_json(self.store.blob(before.digest)) if before else None
            self.set_text(OLLAMA + "params", canonical((known or {}) | parts.parameters).decode())
        if parts.messages:
            turns = [{"role": turn.role, "content": turn.content} for turn in parts.messages]
            self.set_text(OLLAMA + "messages", json.dumps(turns, separators=(",", ":")))
        if parts.licenses:
            self.drop(OLLAMA + "license")
        for license in parts.licenses:
            self.add(OLLAMA + "license", license.encode())
        self.config |= parts.config

    def finish(self) -> Model:
        """Write the manifest."""
        lineage = replace(self.lineage, made_by=f"sizewise {__version__}")
        self.add(LINEAGE_TYPE, canonical(lineage.as_json()))
        self.say("writing manifest")
        self.store.put(self.target, self.config, self.layers)
        return find_model(str(self.target), self.store)

    def add_weights(self, media_type: str, title: str, path: Path, *, move: bool = False) -> None:
        """Take a file in, or find it there."""
        known = path.parent == self.store.layout.blobs and not move
        blob = (path.name.replace("-", ":"), path.stat().st_size) if known else None
        blob = blob or self.store.add_file(path, move=move, listen=self.listen)
        self.say(f"{'using existing' if known else 'creating new'} layer {blob[0]}")
        self.layers.append(Layer(media_type, *blob, title if media_type == FILE_TYPE else ""))

    def set_text(self, media_type: str, text: str) -> None:
        self.drop(media_type)
        self.add(media_type, text.encode())

    def add(self, media_type: str, data: bytes) -> None:
        digest, size = self.store.add_bytes(data)
        self.say(f"creating new layer {digest}")
        self.layers.append(Layer(media_type, digest, size))

    def drop(self, *media_types: str) -> None:
        self.layers = [layer for layer in self.layers if layer.media_type not in media_types]

    def has(self, media_type: str) -> bool:
        return any(layer.media_type == media_type for layer in self.layers)

    def weights(self) -> Path:
        """The GGUF that the model is made of."""
        return self.store.blob(next(layer.digest for layer in self.layers if layer.media_type == MODEL))

    def say(self, text: str) -> None:
        self.listen(Progress(text, 0, None, ""))


def _is_gguf(title: str, path: Path) -> bool:
    if title.lower().endswith(".gguf"):
        return True
    with path.open("rb") as file:
        return file.read(4) == b"GGUF"


def _read(title: str, path: Path) -> GgufInfo:
    """The header; what is wrong with it is said of the file's own name, not of a blob's."""
    try:
        info = read_gguf(path)
    except BadModel as error:
        raise BadModel(str(error).replace(path.name, title)) from error
    if info.metadata.get("split.count", 0) > 1:
        raise Unsupported(f"{title}: is one part of a split GGUF; join the parts first")
    return info


def files_of(path: Path) -> Iterator[tuple[str, Path]]:
    """The files of a model that lies at a path: a GGUF, a checkpoint folder, or a folder of GGUF files.

    Raises:
        BadModel: there is no model.
        Unsafe: only pickled weights, or code of its own.
    """
    if not path.is_dir():
        if not path.exists():
            raise BadModel(f"{path}: there is no such file or folder")
        if not path.is_file():
            raise BadModel(f"{path}: not a regular file")
        yield path.name, path
        return
    found = sorted(path.glob("*.gguf"))
    if found and not (path / "config.json").exists():
        yield from ((file.name, file) for file in found)
    else:
        yield from sorted(facts_of_folder(path)[1].items())


def parts_of(made: Modelfile, folder: Path, store: Store, listen: Listener = silent) -> Parts:
    """What a Modelfile on this machine asks for. Relative paths count from `folder`; a base that can be pulled is.

    Raises:
        UsageError: it is made from things that do not go together.
        UnknownName: there is no such base here or in the catalogue.
        BadModel: a path leads to no model.
    """
    parts = Parts(
        template=made.template,
        system=made.system,
        licenses=tuple(made.licenses),
        parameters=made.parameters,
        messages=tuple(made.messages),
        config={key: value for key in CONFIG if (value := getattr(made, key))},
        warnings=[*made.warnings, *no_effect(made)],
    )
    for source in made.sources:
        path = folder / Path(source).expanduser()
        if path.exists() or isinstance(parse_reference(source), PathRef):
            parts.files |= dict(files_of(path))
            parts.source = parts.source or str(path.absolute())
        elif parts.base:
            raise UsageError(f"FROM {source}: a model is made from one other, and FROM {parts.base} came before")
        else:
            parts.base = here(source, store, listen=listen).name
    for source in made.adapters:
        path = folder / Path(source).expanduser()
        if not path.exists():
            raise BadModel(f"ADAPTER {source}: there is no such file or folder")
        parts.adapters[path.name] = path
    return parts


def no_effect(made: Modelfile) -> list[str]:
    """Warnings for what is kept for Ollama, but changes nothing here."""
    kept = [key.upper() for key in ("renderer", "parser") if getattr(made, key)]
    said = [f"{key} is kept for Ollama; sizewise goes by the chat template" for key in kept]
    return said + (["DRAFT has no effect: sizewise runs no draft models"] if made.draft else [])
