"""The memory that a process holds, where glibc hands it out."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LARGE = 2**25
"""Pixels of an image whose memory matters more than its time."""
_TRIM_THRESHOLD, _MMAP_MAX = -1, -4
"""Parameters of ``mallopt``, from ``malloc.h``."""
_MMAP_USUAL = 65536


def give_back() -> None:
    """Return freed memory to the system."""
    if (trim := _of_glibc("malloc_trim")) is not None:
        trim(0)


class _Kept:
    """Whether freed memory is kept in this process."""

    on = False


def keep_freed() -> None:
    """Keep freed memory for what is allocated next, in this process from now on; :func:`give_back` returns it.

    The maps of a network are so large that glibc asks the system for each of them again, and the system clears every
    page of it: up to half of the time of a score.
    """
    if (option := _of_glibc("mallopt")) is not None:
        option(_MMAP_MAX, 0)
        option(_TRIM_THRESHOLD, -1)
        _Kept.on = True


@contextmanager
def frugal(pixels: int) -> Iterator[None]:
    """Within the block ask the system again for what an image of so many pixels takes, where it is ``LARGE``.

    What is kept fits the next map ill: :func:`keep_freed` would add a third to the most that a large image takes.
    """
    option = _of_glibc("mallopt") if _Kept.on and pixels > LARGE else None
    if option is None:
        yield
        return
    give_back()
    option(_MMAP_MAX, _MMAP_USUAL)
    try:
        yield
    finally:
        option(_MMAP_MAX, 0)


def _of_glibc(name: str) -> Callable[..., int] | None:
    return getattr(ctypes.CDLL(None), name, None) if sys.platform == "linux" else None
