"""Pillow's process-wide settings, held at what reading needs while any thread reads an image, and then put back."""

from __future__ import annotations

import ctypes
import logging
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from PIL import Image, ImageFile

# Without a handler their remarks on files, which do not say which file, go to stderr.
for _library in ("PIL", "tifffile"):
    logging.getLogger(_library).addHandler(logging.NullHandler())


class _Settings:
    """Who reads with which limit, and what the settings were before anybody did."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.limits: list[int] = []
        self.previous: tuple[bool, int | None] = False, None

    def enter(self, max_pixels: int) -> None:
        with self.lock:
            if not self.limits:
                self.previous = ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS
            self.limits.append(max_pixels)
            ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = False, max(self.limits)

    def leave(self, max_pixels: int) -> None:
        with self.lock:
            self.limits.remove(max_pixels)
            if self.limits:
                Image.MAX_IMAGE_PIXELS = max(self.limits)
            else:
                ImageFile.LOAD_TRUNCATED_IMAGES, Image.MAX_IMAGE_PIXELS = self.previous


_settings = _Settings()


@contextmanager
def reading_settings(max_pixels: int) -> Iterator[None]:
    """Hold Pillow to whole images of at most ``max_pixels`` pixels.

    Other libraries set ``LOAD_TRUNCATED_IMAGES`` at import, and half an image would be scored as a whole one.
    Pillow's own limit, ``MAX_IMAGE_PIXELS``, would refuse what ``max_pixels`` allows; where threads read with
    several limits the largest holds in Pillow, and every reader compares with its own.
    """
    _silence_libtiff()
    _settings.enter(max_pixels)
    try:
        yield
    finally:
        _settings.leave(max_pixels)


@cache
def _silence_libtiff() -> None:
    """Switch off libtiff's messages: it writes them to stderr without the file's name, and errors are raised anyway.

    Pillow does so with its warnings alone. Where the library cannot be found (not Linux, or linked statically) it
    continues writing.
    """
    try:
        mapped = Path("/proc/self/maps").read_text(encoding="utf-8", errors="surrogateescape")
        for path in set(re.findall(r"/\S*libtiff\S*\.so\S*$", mapped, re.MULTILINE)):
            for name in ("TIFFSetErrorHandler", "TIFFSetErrorHandlerExt"):
                function = getattr(ctypes.CDLL(path), name)
                function.argtypes, function.restype = [ctypes.c_void_p], ctypes.c_void_p
                function(None)
    except (OSError, AttributeError):
        return
