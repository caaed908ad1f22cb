"""Memory of the C library, which MLX's arrays on a Linux CPU are made of."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
"""glibc's malloc.h."""

LARGEST = 2**28
"""Bytes of an array that is kept for the next of its size."""


def keep_freed_memory() -> bool:
    """Have freed arrays used again, in the place of new pages that the system has to fill with zeros first.

    glibc gives arrays of more than 32 MB, and what lies at the end of its heap, back to the system when they are freed,
    so that every operation on large arrays pays for its memory anew: twenty times the time of an addition. The process
    stays as large as it was at its largest.

    Returns:
        Whether this is a Linux with glibc, and it took the settings.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # musl has none
        return False
    return bool(mallopt(_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(_TRIM_THRESHOLD, 2**31 - 1))
