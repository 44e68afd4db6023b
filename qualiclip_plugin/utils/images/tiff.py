"""The page of a TIFF to read, and the kinds of samples that Pillow does not read or reads wrong."""

from __future__ import annotations

import io
import math
import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.TiffImagePlugin import COMPRESSION_INFO, ImageFileDirectory_v2, TiffImageFile

from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images.formats import RAW
from qualiclip_plugin.utils.images.pixels import check_range

_MOST_PAGES = 32
_SUBFILE, _OLD_SUBFILE, _WIDTH, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 255, 256, 257, 258, 259, 262
_ORIENTATION, _SAMPLES, _PLANAR, _SUB_PAGES, _SAMPLE_FORMAT, _PROFILE = 274, 277, 284, 330, 339, 34675
_REDUCED, _MASK, _OLD_REDUCED = 1, 4, 2
_UNCOMPRESSED, _SEPARATE_PLANES = 1, 2
_PHOTOMETRICS = {
    0: "grey, white is zero",
    1: "grey",
    2: "RGB",
    3: "palette",
    4: "mask",
    5: "CMYK",
    6: "YCbCr",
    8: "CIELAB",
    9: "ICC Lab",
    10: "ITU Lab",
    32803: "colour filter array",
    32844: "LogL",
    32845: "LogLuv",
    34892: "linear raw",
}
_SENSOR = (32803, 34892)
_FORMATS = {1: "", 2: " signed", 3: " floating-point"}
_COLOURS = {0: 1, 1: 1, 2: 3, 5: 4}
"""Samples of colour by photometric interpretation, where samples are read here."""
_MODES = {(1, 0): "L", (3, 0): "RGB", (4, 0): "CMYK", (1, 1): "La", (1, 2): "LA", (3, 1): "RGBa", (3, 2): "RGBA"}
"""Pillow's mode by samples of colour and kind of alpha: none, premultiplied, plain."""


class _Page(NamedTuple):
    offset: int
    tags: ImageFileDirectory_v2

    def get(self, tag: int, default: int) -> int:
        """The first value of a tag."""
        value = self.tags.get(tag, default)
        return int(value[0] if isinstance(value, tuple) else value)

    @property
    def full(self) -> bool:
        """Whether it is the picture itself: neither smaller than another page nor a mask of one."""
        return not self.get(_SUBFILE, 0) & (_REDUCED | _MASK) and self.get(_OLD_SUBFILE, 0) != _OLD_REDUCED

    @property
    def kind(self) -> str:
        """Its kind in words."""
        photometric, compression = self.get(_PHOTOMETRIC, -1), self.get(_COMPRESSION, _UNCOMPRESSED)
        return (
            f"{self.get(_BITS, 1)}-bit{_FORMATS.get(self.get(_SAMPLE_FORMAT, 1), ' untyped')} "
            f"{_PHOTOMETRICS.get(photometric, f'photometric {photometric}')}, {self.get(_SAMPLES, 1)} samples, "
            f"compression {COMPRESSION_INFO.get(compression, compression)}"
        )


def open_tiff(file: IO[bytes], max_pixels: int, notes: list[str]) -> Image.Image:
    """Open the full-resolution page of a TIFF.

    Args:
        max_pixels: More are refused before anything is decoded.
        notes: Receives which page it is, and how samples became eight bits where that is done here.

    Raises:
        ImageError: It holds raw sensor data, or is of a kind that is not read.
    """
    pages = list(_pages(file))
    if any(page.get(_PHOTOMETRIC, 0) in _SENSOR for page in pages):
        raise ImageError(f"not read: {RAW}")
    page = next((page for page in pages if page.full), pages[0])
    if page is not pages[0]:
        file = _starting_at(file, pages[0].tags, page.offset)
        notes.append("the full-resolution page, not the first one, which is a thumbnail or mask")
    planar = page.get(_PLANAR, 1) == _SEPARATE_PLANES and page.get(_SAMPLES, 1) > 1
    if planar and page.get(_BITS, 1) > 8 and page.get(_COMPRESSION, _UNCOMPRESSED) == _UNCOMPRESSED:
        return _decoded(file, page, max_pixels, notes)  # Pillow would make noise of it
    try:
        file.seek(0)
        image = TiffImageFile(file)
    except (SyntaxError, IndexError, TypeError, struct.error):
        return _decoded(file, page, max_pixels, notes)
    if page is not pages[0]:
        image.is_animated = False  # what its note would say is said
    return image


def _pages(file: IO[bytes]) -> Iterator[_Page]:
    """Pages in their order, then the pages below them; at most some."""
    file.seek(0)
    head = file.read(8)
    if head[:4] == b"MM\0+":
        raise ImageError("a TIFF of a kind that is not read (BigTIFF with the high byte first)")
    head += file.read(8) if head[2:3] == b"+" else b""
    waiting, seen = [ImageFileDirectory_v2(head).next], set[int]()
    while waiting and len(seen) < _MOST_PAGES:
        offset = waiting.pop(0)
        if not 0 < offset < 2**63 or offset in seen:
            continue
        seen.add(offset)
        file.seek(offset)
        tags = ImageFileDirectory_v2(head)
        tags.load(file)
        yield _Page(offset, tags)
        below = tags.get(_SUB_PAGES, ())
        waiting[:0] = [tags.next]
        waiting += [at for at in (below if isinstance(below, tuple) else (below,)) if isinstance(at, int)]


def _starting_at(file: IO[bytes], tags: ImageFileDirectory_v2, offset: int) -> IO[bytes]:
    """A copy of the file whose first page is the one at ``offset``."""
    file.seek(0)
    copy = io.BytesIO(file.read())
    order: Any = "little" if tags.prefix == b"II" else "big"
    big = copy.getvalue()[2:3] == b"+"
    copy.seek(8 if big else 4)
    copy.write(offset.to_bytes(8 if big else 4, order))
    return copy


def _decoded(file: IO[bytes], page: _Page, max_pixels: int, notes: list[str]) -> Image.Image:
    """Samples without compression, whatever their type and order, as an image of eight bits."""
    samples = _samples(file, page, max_pixels)
    colours = _COLOURS[page.get(_PHOTOMETRIC, 1)]
    extra = page.tags.get(338, ())
    alpha = int(extra[0]) if len(samples) > colours and extra and colours < 4 and extra[0] in (1, 2) else 0
    planes = [_eight_bit(plane) for plane in samples[: colours + bool(alpha)]]
    if page.get(_PHOTOMETRIC, 1) == 0:
        planes[0] = 255 - planes[0]
    mode = _MODES[colours, alpha]
    joined = np.stack(planes, -1)
    image = Image.frombytes(mode, joined.shape[1::-1], joined.tobytes())
    if mode[-1] == "a":
        image = image.convert(f"{mode[:-1]}A")
    notes.append(f"samples of {samples.dtype} made eight bits")
    check_range(image, notes)
    image.getexif()[_ORIENTATION] = page.get(_ORIENTATION, 1)
    if profile := page.tags.get(_PROFILE):
        image.info["icc_profile"] = profile
    return image


def _samples(file: IO[bytes], page: _Page, max_pixels: int) -> NDArray[Any]:
    """All samples as (samples, height, width)."""
    import tifffile

    width, height, samples = page.get(_WIDTH, 0), page.get(_HEIGHT, 0), page.get(_SAMPLES, 1)
    planar = page.get(_PLANAR, 1) == _SEPARATE_PLANES and samples > 1
    shape = (samples, height, width) if planar else (height, width, samples)[: 3 if samples > 1 else 2]
    if not width * height or _PHOTOMETRIC not in page.tags:
        raise ImageError("damaged or truncated: a TIFF that does not say its size or the meaning of its samples")
    if width * height > max_pixels:
        raise ImageError(f"{width}x{height} pixels are more than the limit of {max_pixels}")
    readable = page.get(_BITS, 1) in (8, 16, 32) and page.get(_COMPRESSION, 1) == _UNCOMPRESSED and samples <= 8
    if not readable or page.get(_PHOTOMETRIC, 1) not in _COLOURS or samples < _COLOURS[page.get(_PHOTOMETRIC, 1)]:
        raise ImageError(f"a TIFF of a kind that is not read ({page.kind})")
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        found = tiff.pages.first
        ends = [at + count for at, count in zip(found.dataoffsets, found.databytecounts, strict=True) if at and count]
        if found.shape != shape or math.prod(found.chunks) > 4 * math.prod(shape) or not ends:
            raise ImageError(f"a TIFF of a kind that is not read ({page.kind})")
        if len(ends) < len(found.dataoffsets) or max(ends) > file.seek(0, io.SEEK_END):
            raise ImageError("damaged or truncated: the file ends before its samples")
        values = found.asarray(maxworkers=1)
    return values if planar else np.moveaxis(values.reshape(height, width, samples), -1, 0)


def _eight_bit(plane: NDArray[Any]) -> NDArray[np.uint8]:
    """One plane of samples, (H, W), of any type."""
    least, most = plane.min(), plane.max()
    if plane.dtype.kind == "f":
        if not (least >= 0 and most <= 1):
            raise ImageError("floating-point samples outside 0..1 have no declared white point")
        return np.rint(plane * 255).astype(np.uint8)
    if least < 0 or most > 0xFFFF:
        raise ImageError("integer samples outside 0..65535 have no declared white point")
    used = {"u1": 8, "i1": 7, "i2": 15}.get(plane.dtype.str[1:], 16)
    return (plane >> (used - 8) if used > 8 else plane << (8 - used)).astype(np.uint8)
