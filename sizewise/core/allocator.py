"""The C library's allocator of memory."""

import contextlib
import ctypes


def give_back() -> None:
    """Return all freed memory to the system; does nothing where glibc is not used.

    glibc keeps what is freed for the next request, up to 32 MiB a piece, on heaps that shrink only at their ends: work
    on one block of a network after the other grew by 40 MB with each. Letting every large piece go at once instead
    (M_MMAP_THRESHOLD) cost half as much time again, in page faults.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)
