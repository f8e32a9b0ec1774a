"""The C library's allocator of memory."""

import contextlib
import ctypes

_MMAP_THRESHOLD = -3  # M_MMAP_THRESHOLD of glibc's malloc.h
_LARGE = 1 << 20  # bytes


def give_back_large() -> None:
    """Let every freed block of 1 MiB and more go back to the system at once; does nothing where glibc is not used.

    By itself glibc raises that bound up to 32 MiB as larger blocks are freed. Matrices below it then lie on a heap that
    shrinks only at its end: work on one block of a network after the other grew by 40 MB with each.
    """
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).mallopt(_MMAP_THRESHOLD, _LARGE)
