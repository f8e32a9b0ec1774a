"""Writing so that a crash leaves the old file or the new one, never half of one; and locks, and room on the disk.

Temporary file with a name of its own -> write -> fsync -> check the sha256 -> rename -> fsync of the folder.

`SIZEWISE_FAULT=point:nth:action` breaks the process on purpose at the nth passage of a point (`open`, `write`, `fsync`,
`rename`, `done`, `unlink`); the action is `kill` or `enospc`. The tests of crash safety use it.
"""

import contextlib
import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import signal
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from sizewise.core.errors import BadModel, DigestMismatch, DiskFull, Locked, StorageError
from sizewise.core.units import format_bytes

CHUNK = 1 << 20  # bytes read and hashed at once
_TRIES = 100  # to rename into a folder that others remove
TEMPORARY = ".tmp-"  # how every temporary name begins
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_passages: dict[str, int] = {}


def fault(point: str) -> None:
    """Break here if `SIZEWISE_FAULT` asks for it."""
    wanted = os.environ.get("SIZEWISE_FAULT")
    if not wanted:
        return
    place, nth, action = wanted.split(":")
    if place != point:
        return
    _passages[point] = _passages.get(point, 0) + 1
    if _passages[point] == int(nth):
        if action == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def temporary(folder: Path) -> Path:
    """A name in `folder` that nobody else uses."""
    return folder / f"{TEMPORARY}{os.getpid()}-{secrets.token_hex(6)}"


def write_atomic(
    target: Path, chunks: Iterable[bytes], *, temp_folder: Path | None = None, expected: str | None = None
) -> tuple[str, int]:
    """Write `chunks` to `target`, all or nothing.

    Args:
        target: the file to replace or make.
        chunks: its content.
        temp_folder: where the temporary file goes, on the same disk; None = beside the target.
        expected: the digest that the content must have.

    Returns:
        Digest and size in bytes.

    Raises:
        DigestMismatch: the content has another digest; nothing is left behind.
        DiskFull: there is no room; nothing is left behind.
    """
    with storage_errors(target):
        (temp_folder or target.parent).mkdir(parents=True, exist_ok=True)
        with _staged(temp_folder or target.parent, chunks) as (temp, digest, size):
            if expected and digest != expected:
                raise DigestMismatch(f"{target.name}: the bytes have digest {digest}, expected {expected}")
            publish(temp, target)
    return digest, size


def write_blob(folder: Path, chunks: Iterable[bytes], place: Callable[[str], Path]) -> tuple[str, int]:
    """Write content whose path in `folder`, `place(digest)`, is known only at the end. Returns digest and size.

    Raises:
        DiskFull: there is no room; nothing is left behind.
    """
    with storage_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        with _staged(folder, chunks) as (temp, digest, size):
            publish(temp, place(digest))
    return digest, size


@contextlib.contextmanager
def _staged(folder: Path, chunks: Iterable[bytes]) -> Iterator[tuple[Path, str, int]]:
    """A temporary file that is safely on disk, with its digest and size; gone afterwards unless renamed."""
    temp = temporary(folder)
    sha, size = hashlib.sha256(), 0
    try:
        fault("open")
        with open(temp, "xb") as file:
            for chunk in chunks:
                fault("write")
                file.write(chunk)
                sha.update(chunk)
                size += len(chunk)
            file.flush()
            fault("fsync")
            os.fsync(file.fileno())
        yield temp, "sha256:" + sha.hexdigest(), size
    finally:
        temp.unlink(missing_ok=True)


def publish(temp: Path, target: Path) -> None:
    """Give a finished file its name, and make that survive a loss of power."""
    fault("rename")
    _rename(temp, target)
    sync_folder(target.parent)
    fault("done")


def _rename(temp: Path, target: Path) -> None:
    # Who removes the last name in a folder removes the folder too, between our making it and our using it.
    for _ in range(_TRIES):
        with contextlib.suppress(FileNotFoundError):
            target.parent.mkdir(parents=True, exist_ok=True)
            return os.replace(temp, target)
    return os.replace(temp, target)


def sync_folder(folder: Path) -> None:
    """Force a folder's entries to disk; one that is gone has none, and file systems that cannot are left alone."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):
            raise
    finally:
        os.close(descriptor)


def read_chunks(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[bytes]:
    """The content of a regular file, chunk by chunk; `on_read` hears how many bytes have been read so far.

    Raises:
        BadModel: it is a folder, pipe or device.
    """
    done = 0
    with open(path, "rb", opener=_open_regular) as file:
        while chunk := file.read(CHUNK):
            done += len(chunk)
            yield chunk
            if on_read:
                on_read(done)


def _open_regular(path: str, flags: int) -> int:
    # O_NONBLOCK: opening a named pipe must not wait for a writer.
    descriptor = os.open(path, flags | os.O_NONBLOCK)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise BadModel(f"{path}: not a regular file")
    return descriptor


def require_space(folder: Path, need_bytes: int) -> None:
    """Refuse before writing what cannot fit.

    Raises:
        DiskFull: the disk that holds `folder` has less free; the message holds both numbers.
    """
    existing = next(place for place in (folder, *folder.parents) if place.exists())
    have = shutil.disk_usage(existing).free
    if need_bytes > have:
        raise DiskFull(
            f"{folder}: needs {format_bytes(need_bytes)}, has {format_bytes(have)} free; "
            "make room (`sizewise rm`) and run the same command again"
        )


@contextlib.contextmanager
def storage_errors(place: Path) -> Iterator[None]:
    """Turn the system's errors about files into ours, with what to do."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            have = shutil.disk_usage(next(spot for spot in (place, *place.parents) if spot.exists())).free
            raise DiskFull(
                f"{place.parent}: the disk is full ({format_bytes(have)} free); "
                "make room (`sizewise rm`) and run the same command again"
            ) from error
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise StorageError(
                f"{error.filename or place}: no permission; SIZEWISE_MODELS can name a folder"
            ) from error
        raise StorageError(f"{error.filename or place}: {error.strerror or error}") from error


@contextlib.contextmanager
def locked(path: Path, *, exclusive: bool, wait_s: float = 30.0) -> Iterator[None]:
    """Hold a lock between processes. Where the file system has none, go on without: names keep writers apart.

    Raises:
        Locked: another process held it for all of `wait_s`.
    """
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        _lock(descriptor, path, fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH, wait_s)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, path: Path, kind: int, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    while True:
        try:
            return fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() >= deadline:
                raise Locked(f"{path}: another process is at work in this store; try again when it is done") from error
            time.sleep(0.05)
        except OSError as error:
            if error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS):
                return None
            raise
