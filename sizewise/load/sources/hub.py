"""The Hugging Face hub: a checkpoint repository, or one GGUF file of a repository.

Downloads resume, and land beside the store, so that they are moved into it and never lie on the disk twice. With
`link` they land in the hub's own cache, and the store refers to them there. `HF_ENDPOINT` and `HF_TOKEN` count.
"""

import contextlib
import hashlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from sizewise.core.errors import DigestMismatch, DiskFull, SizewiseError, UnknownName, Unreachable, Unsafe, UsageError
from sizewise.core.events import Listener, Progress
from sizewise.core.references import HubRef
from sizewise.load.facts import GGUF_FILE
from sizewise.load.sources import Found, found_at
from sizewise.load.store import atomic
from sizewise.load.store.layout import check_file_name
from sizewise.load.store.store import Store

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

_BESIDE = {".json", ".txt", ".model", ".jinja"}  # suffixes of configurations and tokenizers
_PICKLES = {".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack"}
_ANSWER_S = 10.0  # how long the hub may take to answer at all


@contextlib.contextmanager
def hub(reference: HubRef, store: Store, *, link: bool, listen: Listener) -> Iterator[Found]:
    """A repository or file of the hub.

    Raises:
        Unreachable: the hub does not answer.
        UnknownName: it has no such repository, revision or file.
        Unsafe: the repository has only pickled weights.
        UsageError: access must be asked for first, or the file is no GGUF file.
        DigestMismatch: what arrived is not what the hub promised.
        DiskFull: there is no room.
    """
    from huggingface_hub import HfApi

    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")
    with _hub_errors(reference, endpoint):
        api = HfApi(endpoint=endpoint)
        info = api.model_info(reference.repo, revision=reference.revision, timeout=_ANSWER_S, files_metadata=True)
        files = _choose(reference, {sibling.rfilename: sibling for sibling in info.siblings or []})
    key = hashlib.sha256(f"{endpoint} {reference.repo} {info.sha}".encode()).hexdigest()[:16]
    folder = store.layout.incoming / f"hub-{key}"
    if not link:
        have = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
        atomic.require_space(store.layout.blobs, sum(sibling.size or 0 for sibling in files.values()) - have)
    with atomic.storage_errors(folder), _hub_errors(reference, endpoint):
        paths = _download(reference, endpoint, info, files, None if link else folder, listen)
    try:
        found = found_at(paths[reference.file] if reference.file else _root(paths), owned=not link)
        yield replace(
            found,
            license=_license(info) or found.license,
            note=f"commit {info.sha}",
            digests=_digests(reference, files),
        )
    except (DiskFull, KeyboardInterrupt):  # what has arrived is good: the next run goes on from there
        raise
    except SizewiseError:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    shutil.rmtree(folder, ignore_errors=True)


def _choose(reference: HubRef, siblings: "dict[str, RepoSibling]") -> "dict[str, RepoSibling]":
    """The files to download."""
    if reference.file:
        if not reference.file.lower().endswith(".gguf"):
            raise UsageError(f"{reference}: one file can be pulled only if it is GGUF; leave it out to pull all")
        if reference.file not in siblings:
            ggufs = [name for name in siblings if name.lower().endswith(".gguf")]
            raise UnknownName(f"file in hf://{reference.repo}", reference.file, ggufs)
        return {reference.file: siblings[reference.file]}
    top = {name for name in siblings if "/" not in name}
    weights = {name for name in top if name.endswith(".safetensors")}
    whole = {name for name in weights if name == "model.safetensors"}
    shards = {name for name in weights if name.startswith("model-") and "-of-" in name}
    if not whole and not shards:
        raise _no_weights(reference, siblings)
    chosen = (whole or shards) | {name for name in top if PurePosixPath(name).suffix in _BESIDE}
    chosen |= {name for name in siblings if name.count("/") == 1 and name.endswith(("_Pooling/config.json",))}
    chosen |= {name for name in siblings if name.count("/") == 1 and "_Dense/" in name and "pytorch" not in name}
    return {check_file_name(name): siblings[name] for name in sorted(chosen)}


def _no_weights(reference: HubRef, siblings: "dict[str, RepoSibling]") -> SizewiseError:
    ggufs = sorted(name for name in siblings if name.lower().endswith(".gguf"))
    if ggufs:
        return UsageError(f"{reference}: holds GGUF files; name one, for example hf://{reference.repo}/{ggufs[0]}")
    if any(PurePosixPath(name).suffix in _PICKLES for name in siblings):
        return Unsafe(
            f"{reference}: has only pickled weights, which can run code when loaded; refused. Look for a revision "
            "with safetensors (refs/pr/... often is one), or convert the model where you trust it"
        )
    return UnknownName("model", str(reference), remedy="the repository has neither safetensors nor GGUF files")


def _download(
    reference: HubRef,
    endpoint: str,
    info: "ModelInfo",
    files: "dict[str, RepoSibling]",
    folder: Path | None,
    listen: Listener,
) -> dict[str, Path]:
    """Fetch the files into `folder`, or into the hub's cache. What arrived before an interruption is kept."""
    from huggingface_hub import hf_hub_download

    paths = {}
    for name, sibling in files.items():
        path = hf_hub_download(
            reference.repo,
            name,
            revision=info.sha,
            endpoint=endpoint,
            local_dir=folder,
            tqdm_class=_bar(name, sibling.size, listen),
        )
        paths[name] = Path(path)
        if sibling.size is not None and paths[name].stat().st_size != sibling.size:
            raise DigestMismatch(f"{reference}: {name} has another size than the hub says; run the same command again")
    return paths


def _root(paths: dict[str, Path]) -> Path:
    name, path = next(iter(paths.items()))
    return Path(str(path).removesuffix("/" + name))


def _digests(reference: HubRef, files: "dict[str, RepoSibling]") -> dict[str, str]:
    """The sha256 that the hub states for large files."""
    titles = {name: GGUF_FILE if reference.file else name for name in files}
    return {titles[name]: f"sha256:{sibling.lfs.sha256}" for name, sibling in files.items() if sibling.lfs}


def _license(info: "ModelInfo") -> str:
    card = info.card_data
    return str(getattr(card, "license_name", None) or getattr(card, "license", None) or "")


def _bar(name: str, size: int | None, listen: Listener) -> type[Any]:
    """What the hub's library takes for a progress bar; it draws nothing and tells the listener."""
    from tqdm import tqdm  # type: ignore[import-untyped]

    class Bar(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> bool | None:
            self.n += n or 0
            listen(Progress(name, self.n, size, "bytes"))
            return None

    return Bar


@contextlib.contextmanager
def _hub_errors(reference: HubRef, endpoint: str) -> Iterator[None]:
    """Turn the hub library's errors into ours."""
    from huggingface_hub import errors as hub_errors

    no_answer: type[Exception] = vars(hub_errors)["HTTPError"]  # whatever its HTTP library raises
    try:
        yield
    except SizewiseError:
        raise
    except hub_errors.GatedRepoError as error:
        where = f"{endpoint}/{reference.repo}"
        raise UsageError(f"{reference}: ask for access at {where}, then set HF_TOKEN and run it again") from error
    except (hub_errors.RepositoryNotFoundError, hub_errors.DisabledRepoError) as error:
        remedy = "check the spelling; a private repository needs HF_TOKEN"
        raise UnknownName("repository on the hub", reference.repo, remedy=remedy) from error
    except hub_errors.RevisionNotFoundError as error:
        raise UnknownName(f"revision of {reference.repo}", reference.revision) from error
    except hub_errors.RemoteEntryNotFoundError as error:
        raise UnknownName(f"file in {reference.repo}", reference.file or "", remedy="it was just removed") from error
    except hub_errors.HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else "no status"
        raise Unreachable(f"{reference}: {endpoint} answers with an error ({status}); try again later") from error
    except hub_errors.HFValidationError as error:
        raise UsageError(f"{reference}: no repository can have that name") from error
    except (hub_errors.LocalEntryNotFoundError, hub_errors.OfflineModeIsEnabled, no_answer) as error:
        raise Unreachable(f"{reference}: {endpoint} does not answer; the same command goes on from there") from error
    except OSError as error:
        if error.errno is None:  # the library's own check of what arrived
            raise DigestMismatch(f"{reference}: the download is damaged; run the same command again") from error
        raise
