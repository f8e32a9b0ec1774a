"""The C library's allocator of memory. Where that is not glibc's, nothing here does anything."""

import contextlib
import ctypes
from collections.abc import Iterator

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_LARGE, _LARGEST = 1 << 20, 1 << 25  # bytes; the latter is the most that glibc takes for that bound
_NEVER = 1 << 30


def give_back() -> None:
    """Return all freed memory to the system.

    glibc keeps what is freed for the next request, up to 32 MiB a piece, on heaps that shrink only at their ends: work
    on one block of a network after the other grew by 40 MB with each.
    """
    with contextlib.suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextlib.contextmanager
def returning_at_once() -> Iterator[None]:
    """Within this context every freed piece of 1 MiB and more goes back to the system by itself.

    For work that makes few large things: a network's pass, which makes thousands, took half as long again for page
    faults. Without it, temporaries of many sizes each find another hole of the heap, up to 0.4 GB of them.
    """
    _bounds(_LARGE)
    try:
        yield
    finally:
        _bounds(_LARGEST)
        give_back()


def _bounds(large: int) -> None:
    with contextlib.suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_MMAP_THRESHOLD, large)
        libc.mallopt(_TRIM_THRESHOLD, _NEVER)  # the heap's end is cut off by `give_back`
