"""The doors between the two kinds of files: a model is converted, then compared with what it was, else nothing is left.

Everything that turns a checkpoint into a GGUF or back goes through here, so that no copy is kept whose tokens, template
or log-probabilities are not those of its original; see `load.parity`.
"""

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sizewise.core.errors import Unsupported
from sizewise.core.events import Listener, Progress, silent
from sizewise.core.model import Model
from sizewise.load.checkpoint.export_gguf import Exported, export_gguf
from sizewise.load.checkpoint.import_gguf import Imported, Kept, import_gguf
from sizewise.load.facts import GGUF_FILE, facts_of_folder, facts_of_gguf, root_of
from sizewise.load.parity import Observed, Parity, observe, require_parity
from sizewise.load.store.atomic import storage_errors


@dataclass(frozen=True, slots=True)
class Checked:
    """A copy that passed the gate: what was seen of the original, and how far the two are apart."""

    seen: Observed
    parity: Parity


def checked_export(
    model: Model, target: Path, listen: Listener = silent, *, dequantize: bool = False
) -> tuple[Exported, Checked]:
    """Write a checkpoint as a GGUF in its own precision, and compare the two.

    Args:
        model: a checkpoint.
        target: the file to write; its folder is also worked in.
        listen: hears the bytes written.
        dequantize: write matrices in small forms as what they stand for, larger than they are; else they are refused.

    Raises:
        BadModel: the checkpoint is damaged, or the file is not the same model; the message says in what.
        Unsupported: llama.cpp has no such architecture, setting or tokenizer; or the model is no checkpoint.
        UsageError: the checkpoint has matrices in small forms, and `dequantize` was not asked for.
        DiskFull: there is no room. Nothing is left behind by any of these.
    """
    if model.kind != "checkpoint":
        raise Unsupported(f"{model.name} is of kind {model.kind!r}; only a checkpoint is exported to GGUF")
    links = target.parent / f"{target.name}.checkpoint"
    try:
        folder = root_of(model.files) or link_files(model.files, links)
        done = export_gguf(folder, target, name=_plain(model.name), dequantize=dequantize, listen=listen)
        copy = gguf_at(target, f"the GGUF of {model.name}")
        return done, _compared(model, copy, listen)
    except BaseException:
        target.unlink(missing_ok=True)
        raise
    finally:
        shutil.rmtree(links, ignore_errors=True)


def checked_import(
    model: Model, folder: Path, *, dtype: Kept = "auto", listen: Listener = silent
) -> tuple[Imported, Checked]:
    """Write a GGUF as a checkpoint, and compare the two.

    Args:
        model: a GGUF of one file.
        folder: where the checkpoint goes.
        dtype: of the weights; see `load.checkpoint.import_gguf`.
        listen: hears the tensors done.

    Raises:
        BadModel: the file is damaged, or the checkpoint is not the same model; the message says in what.
        Unsupported: an architecture, tokenizer or type that cannot be imported.
        DiskFull: there is no room. Nothing is left behind by any of these.
    """
    if model.kind != "gguf" or len(model.files) != 1:
        raise Unsupported(f"{model.name} is of kind {model.kind!r}; a GGUF of one file is needed")
    try:
        done = import_gguf(next(iter(model.files.values())), folder, dtype=dtype, listen=listen)
        kind, files, facts = facts_of_folder(folder)
        size = sum(path.stat().st_size for path in files.values())
        copy = Model(f"the checkpoint of {model.name}", kind, "", files, size, **_known(facts))
        return done, _compared(model, copy, listen)
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise


def gguf_at(path: Path, name: str) -> Model:
    """A GGUF file that is not kept anywhere yet, as a model."""
    return Model(name, "gguf", "", {GGUF_FILE: path}, path.stat().st_size, **_known(facts_of_gguf(path)))


def link_files(files: Mapping[str, Path], folder: Path) -> Path:
    """A folder in which files have their own names; copies where the disk is another."""
    with storage_errors(folder):
        for title, path in files.items():
            place = folder / title
            place.parent.mkdir(parents=True, exist_ok=True)
            if not place.exists():
                try:
                    os.link(path.resolve(), place)
                except OSError:
                    shutil.copyfile(path, place)
    return folder


def _compared(model: Model, copy: Model, listen: Listener) -> Checked:
    listen(Progress(f"comparing {copy.name} with it", 0, None, ""))
    # a template that was laid over the original's own is laid over the copy, too
    seen = observe(model, tokens=(copy.context_length or 0) - 8 if copy.context_length else 48)
    return Checked(seen, require_parity(seen, replace(copy, template=model.template)))


def _known(facts: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in facts.items() if value}


def _plain(name: str) -> str:
    """What a file says that it is called: the last part of a path or name."""
    return name.rstrip("/").rpartition("/")[2].partition(":")[0]
