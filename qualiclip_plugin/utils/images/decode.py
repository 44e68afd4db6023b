"""Decoding of one image: what is refused, with which words, and the way to its pixels."""

from __future__ import annotations

import io
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO

import torch
from PIL import Image
from torch import Tensor

from qualiclip_plugin.utils.errors import ImageError, out_of_memory
from qualiclip_plugin.utils.images.formats import FORMATS, HEAD_BYTES, has_heif, read_format, unread_kind
from qualiclip_plugin.utils.images.pixels import MAX_PIXELS, WHITE, Choices, rgb_pixels
from qualiclip_plugin.utils.images.png import without_ballast
from qualiclip_plugin.utils.images.settings import reading_settings
from qualiclip_plugin.utils.images.tiff import open_tiff
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.utils.shown import printable

MAX_SCANS = (
    256  # of a progressive JPEG, about ten in practice: each passes over the whole picture, however few its bytes
)

_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # without those that stand inside compressed data
_NOT_READ = re.compile(r"unsupported|not supported|not yet supported|cannot handle|unknown pixel mode", re.IGNORECASE)
"""Words of decoders for a whole file of a kind that they do not know."""


@dataclass(frozen=True)
class DecodedImage:
    """Pixels and what was done to get them.

    Attributes:
        pixels: RGB, uint8, (3, H, W); in memory the three values of a pixel may lie together.
        notes: One sentence for each decision about what is seen: depth, page, profile, rotation, compositing.
    """

    pixels: Tensor
    notes: tuple[str, ...]


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    exif: bool = True,
    icc: bool = True,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read one image as RGB.

    Args:
        source: A path, or the bytes of a file. The format is found from the content, not from the name.
        exif: Apply the EXIF rotation.
        icc: Convert the colours of an ICC profile to sRGB; a profile that is sRGB changes nothing.
        background: RGB in 0..255 behind transparent pixels.
        max_pixels: An image with more pixels is refused before it is decoded.

    Returns:
        RGB, uint8, (3, H, W).

    Raises:
        ImageError: The image cannot be read; the message names the file and the reason.
    """
    return decode_image(source, exif=exif, icc=icc, background=background, max_pixels=max_pixels).pixels.contiguous()


def to_float(pixels: Tensor) -> Tensor:
    """Pixels 0..255, uint8, any shape, as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def decode_image(
    source: str | os.PathLike[str] | bytes,
    *,
    exif: bool = True,
    icc: bool = True,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> DecodedImage:
    """:func:`read_image` together with what was done to the image; same arguments and errors."""
    choices = Choices(exif, icc, background, max_pixels)
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"image of {len(source)} bytes", choices)
    name = printable(source)
    try:
        with open_regular(source) as file, _unchanged(file, name):
            return _decode(file, name, choices)
    except IsADirectoryError as error:
        raise ImageError(f"{name}: a folder is no image") from error
    except PermissionError as error:
        raise ImageError(f"{name}: no permission to read it") from error
    except FileNotFoundError as error:
        reason = "a link to nothing" if os.path.islink(source) else "no such file"
        raise ImageError(f"{name}: {reason}") from error
    except (OSError, ValueError) as error:
        raise ImageError(f"{name}: {printable(getattr(error, 'strerror', None) or str(error))}") from error


@contextmanager
def _unchanged(file: IO[bytes], name: str) -> Iterator[None]:
    """Refuse what was read while somebody wrote: half of it may be one picture and half another."""
    before = os.fstat(file.fileno())
    try:
        yield
    finally:
        after = os.fstat(file.fileno())
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise ImageError(f"{name}: it was changed while it was read")


def _decode(file: IO[bytes], name: str, choices: Choices) -> DecodedImage:
    head = file.read(HEAD_BYTES)
    if not head:
        raise ImageError(f"{name}: the file is empty")
    notes: list[str] = []
    max_pixels = choices.max_pixels
    try:
        with reading_settings(max_pixels), _opened(file, head, max_pixels, notes) as image:
            _refuse_bomb(image, file, max_pixels)
            return DecodedImage(rgb_pixels(image, choices, notes), tuple(notes))
    except ImageError as error:
        raise ImageError(f"{name}: {error}") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {_too_large('', max_pixels)}") from error
    except Exception as error:
        if out_of_memory(error):
            raise ImageError(f"{name}: not enough memory to decode it") from error
        # Decoders meet hostile bytes with whatever they please: struct.error, SyntaxError, KeyError, zlib.error.
        raise ImageError(f"{name}: {_why_not(read_format(head), error)}") from error


def _opened(file: IO[bytes], head: bytes, max_pixels: int, notes: list[str]) -> Image.Image:
    """Open an image without decoding it."""
    if kind := unread_kind(head):
        raise ImageError(f"not read: {kind}")
    found = read_format(head)
    if found == "TIFF":
        return open_tiff(file, max_pixels, notes)
    profile = None
    if found == "PNG":
        file, profile = without_ballast(file, notes)
    failures: list[tuple[str, Exception]] = []
    for plugin in _formats(found):
        opener, accepts = Image.OPEN[plugin]
        # Not by `Image.open`, which keeps the reason to itself and warns of sizes that `max_pixels` allows.
        try:
            if accepts is not None and accepts(head[:16].ljust(4, b"\0")) is not True:
                continue
            file.seek(0)
            image = opener(file, "")
        except (SyntaxError, IndexError, TypeError, struct.error) as error:
            failures.append((plugin, error))
            continue
        if profile is not None:
            image.info["icc_profile"] = profile
        return image
    if failures:
        raise ImageError(_why_not(found or failures[-1][0], failures[-1][1]))
    if found:
        raise ImageError(_why_not(found, None))
    raise ImageError(f"not an image in a supported format ({', '.join(FORMATS)})")


def _why_not(found: str | None, error: Exception | None) -> str:
    """Why a file of a format that is read is not: damage, as far as the decoder's words allow that."""
    said = f"{type(error).__name__}: {' '.join(str(error).split())}" if error else ""
    why = f" ({printable(said)[:200]})" if said else ""
    kind = f"{'an' if found == 'AVIF' else 'a'} {found or 'file'} of a kind that is not read{why}"
    return kind if _NOT_READ.search(said) else f"damaged or truncated, or {kind}"


def _too_large(size: str, max_pixels: int) -> str:
    return f"{size or 'its'} pixels are more than the limit of {max_pixels}; max_pixels (--max-pixels) changes it"


def _refuse_bomb(image: Image.Image, file: IO[bytes], max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(_too_large(f"{width}x{height}", max_pixels))
    if image.format in ("JPEG", "MPO") and _jpeg_scans(file) > MAX_SCANS:
        raise ImageError(f"a JPEG of more than {MAX_SCANS} scans")


def _jpeg_scans(file: IO[bytes]) -> int:
    """Number of scans of the first picture in a JPEG file; the file's position is kept."""
    position = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(position)
    most = data.count(_START_OF_SCAN)  # cheap, and an upper bound: thumbnails hold some as well
    if most <= MAX_SCANS:
        return most
    scans, at = 0, 2
    while (marker := _MARKER.search(data, at)) and marker[0] != _END_OF_IMAGE:
        scans += marker[0] == _START_OF_SCAN
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
    return scans


def _formats(found: str | None) -> tuple[str, ...]:
    # Pillow can be built without some decoders, and asking it for a missing one is an error of its own.
    Image.init()
    # The library of HEIF is large: no other file waits for it, or fails where it has no room.
    if found == "HEIF" and has_heif() and "HEIF" not in Image.OPEN:
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return tuple(name for name in FORMATS if name in Image.OPEN)
