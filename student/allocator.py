"""glibc's allocator, told to keep what is freed.

A training step frees and asks again for the same tens of megabytes of activations. By default glibc maps such
blocks anew every time, and the kernel fills them with zeros page by page: 7 to 10 % of a step on one CPU core
(docs/training.md). Kept in the heap they cost nothing. The numbers computed are the same.
"""

from __future__ import annotations

import ctypes

_MMAP_MAX, _TRIM_THRESHOLD, _TOP_PAD = -4, -1, -2
"""Parameters of mallopt(3)."""


def keep_freed_memory() -> bool:
    """For the rest of the process; False where the C library has no such setting (then nothing changes)."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, 2**31 - 1), (_TOP_PAD, 2**28))
    return all(mallopt(name, value) for name, value in settings)
