"""From a file to RGB pixels, the same way every time, and from paths to a list of image files.

Pillow decodes. What this module adds is a declared answer for every kind of input: which formats are tried,
how sixteen bits become eight, what lies behind transparent pixels, what is refused and with which words.
The rules in one place:

- EXIF rotation is applied (``exif=False`` leaves the stored orientation). ICC profiles are not applied.
- Sixteen-bit samples keep their high byte, in grey as in colour; twelve-bit TIFF its high eight bits.
- Transparent pixels are composited on ``background``.
- Of an animation, or a file with several pages, the first image is read.
- A file that ends too early is an error, also where another library told Pillow to accept it.
- An image with more than ``max_pixels`` pixels is refused from its header, before anything is decoded.
"""

from __future__ import annotations

import glob
import io
import os
import re
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import torch
from PIL import Image, ImageFile, UnidentifiedImageError
from torch import Tensor

from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.regular_files import open_regular
from qualiclip_plugin.utils.shown import printable

# Only these are tried, whatever Pillow supports besides: plain raster formats that run no helper program
# (EPS starts Ghostscript) and hold one picture at a declared size.
FORMATS: dict[str, tuple[str, ...]] = {
    "AVIF": (".avif",),
    "BMP": (".bmp", ".dib"),
    "GIF": (".gif",),
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "JPEG2000": (".jp2", ".j2k", ".jpx", ".j2c", ".jpc", ".jpf"),
    "MPO": (".mpo",),
    "PNG": (".png", ".apng"),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "WEBP": (".webp",),
}
SUFFIXES = frozenset(suffix for suffixes in FORMATS.values() for suffix in suffixes)

MAX_PIXELS = 2**27  # 134 million: the largest phone and medium-format cameras fit, most bombs do not
MAX_SCANS = (
    256  # of a progressive JPEG, about ten in practice: each passes over the whole picture, however few its bytes
)
WHITE = (255, 255, 255)
_ROWS = 256

_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_UNDO_TRANSPOSE = {**_TRANSPOSE, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC = 0x0112, 258, 262
_WHITE_IS_ZERO = 0
_START_OF_SCAN, _END_OF_IMAGE = b"\xff\xda", b"\xff\xd9"
_MARKER = re.compile(rb"\xff[^\x00\x01\xd0-\xd7\xff]")  # without those that stand inside compressed data


@dataclass(frozen=True)
class DecodedImage:
    """Pixels and what was done to get them.

    Attributes:
        pixels: RGB, uint8, (3, H, W); in memory the three values of a pixel may lie together.
        notes: One sentence for each decision that changed what is seen: rotation, compositing, first frame.
    """

    pixels: Tensor
    notes: tuple[str, ...]


def read_image(
    source: str | os.PathLike[str] | bytes,
    *,
    exif: bool = True,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Tensor:
    """Read one image as RGB.

    Args:
        source: A path, or the bytes of a file. The format is found from the content, not from the name.
        exif: Apply the EXIF rotation.
        background: RGB in 0..255 behind transparent pixels.
        max_pixels: An image with more pixels is refused before it is decoded. Pillow's own limit
            (twice ``PIL.Image.MAX_IMAGE_PIXELS``, 179 million) holds as well.

    Returns:
        RGB, uint8, (3, H, W).

    Raises:
        ImageError: The image cannot be read; the message names the file and the reason.
    """
    return decode_image(source, exif=exif, background=background, max_pixels=max_pixels).pixels.contiguous()


def check_max_pixels(max_pixels: int) -> int:
    """The limit to use: ``MAX_PIXELS`` for 0, any other number as it is.

    Raises:
        ConfigError: Pillow itself refuses images of that size.
    """
    own = 2 * Image.MAX_IMAGE_PIXELS if Image.MAX_IMAGE_PIXELS else max_pixels
    if max_pixels > own:
        raise ConfigError(f"max_pixels {max_pixels} is more than Pillow decodes, which is {own}")
    return max_pixels or MAX_PIXELS


def to_float(pixels: Tensor) -> Tensor:
    """Pixels 0..255, uint8, any shape, as float32 in [0, 1]."""
    return pixels.to(torch.float32) / 255


def decode_image(
    source: str | os.PathLike[str] | bytes,
    *,
    exif: bool = True,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> DecodedImage:
    """:func:`read_image` together with what was done to the image; same arguments and errors."""
    if isinstance(source, bytes):
        return _decode(io.BytesIO(source), f"image of {len(source)} bytes", exif, background, max_pixels)
    name = printable(source)
    try:
        with open_regular(source) as file, _unchanged(file, name):
            return _decode(file, name, exif, background, max_pixels)
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


def _decode(
    file: IO[bytes], name: str, exif: bool, background: tuple[int, int, int], max_pixels: int
) -> DecodedImage:
    if not file.read(1):
        raise ImageError(f"{name}: the file is empty")
    try:
        with _truncation_is_an_error, Image.open(file, formats=_formats()) as image:
            _refuse_bomb(image, file, name, max_pixels)
            return _pixels(image, name, exif, background)
    except ImageError:
        raise
    except UnidentifiedImageError as error:
        raise ImageError(f"{name}: not an image in a supported format ({', '.join(FORMATS)})") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{name}: {error}") from error
    except MemoryError as error:
        raise ImageError(f"{name}: not enough memory to decode it") from error
    except Exception as error:
        # Decoders meet hostile bytes with whatever they please: struct.error, SyntaxError, KeyError, zlib.error.
        raise ImageError(
            f"{name}: damaged or truncated ({type(error).__name__}: {printable(str(error))[:200]})"
        ) from error


def _refuse_bomb(image: Image.Image, file: IO[bytes], name: str, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise ImageError(f"{name}: {width}x{height} pixels are more than the limit of {max_pixels}")
    if image.format in ("JPEG", "MPO") and _jpeg_scans(file) > MAX_SCANS:
        raise ImageError(f"{name}: a JPEG of more than {MAX_SCANS} scans")


def _pixels(image: ImageFile.ImageFile, name: str, exif: bool, background: tuple[int, int, int]) -> DecodedImage:
    notes = ["first of several frames"] if getattr(image, "is_animated", False) else []
    orientation = _orientation(image)
    image.load()
    if exif and orientation in _TRANSPOSE:
        notes.append(f"EXIF rotation applied (orientation {orientation})")
    plain = _rotated(_eight_bit(image, name), image.format, orientation, exif)
    if plain.has_transparency_data:
        plain = plain.convert("RGBA")
        if np.asarray(plain.getchannel("A")).min() < 255:
            notes.append(f"transparency composited on {background}")
            plain = Image.alpha_composite(Image.new("RGBA", plain.size, (*background, 255)), plain)
    return DecodedImage(_rgb(plain).permute(2, 0, 1), tuple(notes))


def _rgb(image: Image.Image) -> Tensor:
    """Pixels (H, W, 3), copied some rows at a time: Pillow hands an array all of them twice."""
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    for top in range(0, height, _ROWS):
        rows = image.crop((0, top, width, min(top + _ROWS, height)))
        pixels[top : top + _ROWS] = np.asarray(rows if rows.mode == "RGB" else rows.convert("RGB"))
    return torch.from_numpy(pixels)


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


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be parsed says nothing about rotation; the pixels may still be whole
        return 1


def _rotated(image: Image.Image, file_format: str | None, orientation: int, exif: bool) -> Image.Image:
    # Pillow rotates TIFF by itself when it decodes it, and no other format.
    already = file_format == "TIFF"
    if exif == already or orientation not in _TRANSPOSE:
        return image
    return image.transpose((_UNDO_TRANSPOSE if already else _TRANSPOSE)[orientation])


def _eight_bit(image: ImageFile.ImageFile, name: str) -> Image.Image:
    """Grey with more than eight bits as L, or LA where one value means transparent; other modes unchanged."""
    if image.mode == "F":
        return _eight_bit_from_float(image, name)
    if not image.mode.startswith("I"):
        return image
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError(f"{name}: 32-bit grey outside 0..65535 has no declared white point")
    # Pillow stores the sixteen-bit samples of PNG, PGM and TIFF in these modes without scaling them.
    tags = getattr(image, "tag_v2", {})
    bits = 12 if tags.get(_BITS_PER_SAMPLE) == (12,) else 16
    if image.mode != "I" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 2**bits - 1 - values
    grey = Image.fromarray((values >> (bits - 8)).astype(np.uint8))
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _eight_bit_from_float(image: Image.Image, name: str) -> Image.Image:
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ImageError(f"{name}: floating-point grey outside 0..1 has no declared white point")
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))


def _formats() -> tuple[str, ...]:
    # Pillow can be built without some decoders, and asking it for a missing one is an error of its own.
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


class _TruncationGuard:
    """Holds Pillow's process-wide ``LOAD_TRUNCATED_IMAGES`` at False while any thread reads an image.

    Other libraries switch it on at import, and half an image would be scored as a whole one.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._readers = 0
        self._previous = False

    def __enter__(self) -> None:
        with self._lock:
            if self._readers == 0:
                self._previous = ImageFile.LOAD_TRUNCATED_IMAGES
                ImageFile.LOAD_TRUNCATED_IMAGES = False
            self._readers += 1

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._readers -= 1
            if self._readers == 0:
                ImageFile.LOAD_TRUNCATED_IMAGES = self._previous


_truncation_is_an_error = _TruncationGuard()


def images_in(paths: Iterable[str | os.PathLike[str]]) -> list[Path]:
    """List the image files that paths stand for.

    A file stands for itself whatever its name; a folder for the files in it, at any depth, whose suffix is in
    ``SUFFIXES``; a pattern (``*``, ``?``, ``[...]``, ``**``) for what a shell would expand it to. A path that
    exists is never read as a pattern. Names that start with a dot are left out of folders and patterns unless
    the pattern says the dot. Links are followed, each folder is visited once, so a loop of links ends.
    A folder that cannot be listed is returned itself, so that reading it reports the error.

    Args:
        paths: Files, folders and patterns.

    Returns:
        Sorted by name, each directory entry once.

    Raises:
        ImageError: A path that does not exist, a pattern without a match, a folder without an image.
    """
    real_parent: dict[Path, str] = {}
    unique: dict[tuple[str, str], Path] = {}
    found = [Path(file) for path in paths for file in _expand(os.fspath(path))]
    if not found:
        raise ImageError("no image, folder or pattern given")
    for file in sorted(found, key=str):
        parent = real_parent.setdefault(file.parent, os.path.realpath(file.parent))
        unique.setdefault((parent, file.name), file)
    return list(unique.values())


def _expand(path: str) -> list[Path]:
    if os.path.lexists(path):
        matches = [Path(path)]
    elif glob.has_magic(path):
        matches = _matches(path)
        if not matches:
            raise ImageError(f"{printable(path)}: the pattern matches nothing")
    else:
        raise ImageError(f"{printable(path)}: no such file or folder")
    folders = [match for match in matches if os.path.isdir(match)]
    files = [match for match in matches if not os.path.isdir(match)]
    for folder in folders:
        files.extend(_walk(folder))
    if not files:
        raise ImageError(f"{printable(path)}: no image in this folder (suffixes: {' '.join(sorted(SUFFIXES))})")
    return files


def _matches(pattern: str) -> list[Path]:
    # pathlib's ** does not follow links to folders, where glob's would run round a loop of them.
    parts = Path(pattern).parts
    first = next(index for index, part in enumerate(parts) if glob.has_magic(part))
    root, rest = Path(*parts[:first]), parts[first:]
    hidden = any(part.startswith(".") for part in rest)
    return [
        match
        for match in root.glob(os.path.join(*rest))
        if hidden or not any(part.startswith(".") for part in match.relative_to(root).parts)
    ]


def _walk(folder: Path) -> Iterator[Path]:
    # Links wait until all real folders are done, so that a file found both ways keeps its real path.
    real, links, seen = deque([folder]), deque[Path](), set[tuple[int, int]]()
    while real or links:
        current = (real or links).popleft()
        try:
            status = os.stat(current)
            entries = (
                []
                if (status.st_dev, status.st_ino) in seen
                else sorted(os.scandir(current), key=lambda entry: entry.name)
            )
        except OSError:
            yield current
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = Path(entry.path)
            if os.path.isdir(path):
                (links if path.is_symlink() else real).append(path)
            elif path.suffix.lower() in SUFFIXES:
                yield path
