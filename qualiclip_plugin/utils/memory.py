"""The memory that a process holds, where glibc hands it out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, from ``malloc.h``."""


def give_back() -> None:
    """Return freed memory to the system."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


def keep_freed() -> None:
    """Keep freed memory for what is allocated next, in this process from now on; :func:`give_back` returns it.

    The maps of a network are so large that glibc asks the system for each of them anew, and the system clears every
    page of it: up to half of the time of a score.
    """
    if (option := _of_glibc("mallopt")) is not None:
        option(_MMAP_MAX, 0)
        option(_TRIM_THRESHOLD, -1)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
