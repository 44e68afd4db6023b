"""From what Pillow opened to RGB with eight bits: depth, colours, rotation, transparency."""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images.colour import to_srgb

MAX_PIXELS = 3 * 2**26
"""201 million: what the largest phone cameras make (16384x12288, "200 megapixels") and medium format in one exposure
(151 million) fit. Reading 201 million from a JPEG takes 1.5 GB (``tests/benchmarks/bench_reading.py``)."""
WHITE = (255, 255, 255)

_AT_ONCE = 2**16  # pixels, whose bytes stay in the cache and in memory that the process has already
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
_ORIENTATION, _BITS_PER_SAMPLE, _PHOTOMETRIC, _SAMPLE_FORMAT = 0x0112, 258, 262, 339
_WHITE_IS_ZERO = 0
_SIGNED = 2


class Choices(NamedTuple):
    """What a caller may choose; see :func:`qualiclip_plugin.utils.images.read_image`."""

    exif: bool = True
    icc: bool = True
    background: tuple[int, int, int] = WHITE
    max_pixels: int = MAX_PIXELS


def rgb_pixels(image: Image.Image, choices: Choices, notes: list[str]) -> Tensor:
    """Decode what was opened: RGB, uint8, (3, H, W), the three values of a pixel together in memory.

    Args:
        image: Opened and not yet decoded.
        notes: Receives a sentence for each decision that changed what is seen.

    Raises:
        ImageError: The samples have no declared white point.
    """
    if getattr(image, "is_animated", False):
        notes.append("first of several frames")
    if (turned := image.info.get("original_orientation") or 1) != 1:  # by the decoder of HEIF
        notes.append(f"rotation that the file declares applied (orientation {turned})")
    bits = _bits(image)
    if (
        image.format == "PNG"
    ):  # EXIF can lie behind its pixels: asked for it Pillow decodes, and a failure would be lost
        image.load()
    orientation = _orientation(image)  # of a TIFF before it is decoded, when Pillow rotates it and forgets
    image.load()
    profile = image.info.get("icc_profile")
    plain = to_srgb(_eight_bit(image, bits, notes), profile, choices.icc, notes)
    plain = _rotated(plain, image.format, orientation, choices.exif, notes)
    return _rgb(_composited(plain, choices.background, notes)).permute(2, 0, 1)


def _composited(image: Image.Image, background: tuple[int, int, int], notes: list[str]) -> Image.Image:
    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    if np.asarray(image.getchannel("A")).min() == 255:
        return image
    notes.append(f"transparency composited on {background}")
    return Image.alpha_composite(Image.new("RGBA", image.size, (*background, 255)), image)


def _rgb(image: Image.Image) -> Tensor:
    """Pixels (H, W, 3), of a large image copied some rows at a time: Pillow hands an array all of them twice."""
    width, height = image.size
    pixels = np.empty((height, width, 3), dtype=np.uint8)
    at_once = max(1, _AT_ONCE // width)
    for top in range(0, height, at_once):
        rows = image if at_once >= height else image.crop((0, top, width, min(top + at_once, height)))
        pixels[top : top + at_once] = np.asarray(rows if rows.mode == "RGB" else rows.convert("RGB"))
    return torch.from_numpy(pixels)


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:  # EXIF that cannot be parsed says nothing about rotation; the pixels may still be whole
        return 1


def _rotated(
    image: Image.Image, file_format: str | None, orientation: int, exif: bool, notes: list[str]
) -> Image.Image:
    if orientation not in _TRANSPOSE:
        return image
    if exif:
        notes.append(f"EXIF rotation applied (orientation {orientation})")
    # Pillow rotates TIFF by itself when it decodes it, and no other format.
    already = file_format == "TIFF"
    if exif == already:
        return image
    return image.transpose((_UNDO_TRANSPOSE if already else _TRANSPOSE)[orientation])


def _bits(image: Image.Image) -> int:
    """Bits of a sample in the file, as far as they are more than eight."""
    tags = getattr(image, "tag_v2", {})
    if declared := tags.get(_BITS_PER_SAMPLE):
        return int(max(declared))
    if image.mode.startswith("I"):
        return 16
    # With the order of the bytes: "BGR;16" are two bytes for all three colours of a bitmap.
    return 16 if any(re.search(";16[BLN]", str(tile.args)) for tile in getattr(image, "tile", ())) else 8


def _eight_bit(image: Image.Image, bits: int, notes: list[str]) -> Image.Image:
    """An image of a mode of eight bits; grey with more becomes L, or LA where one value means transparent."""
    if image.mode == "La":
        return image.convert("LA")
    if image.mode == "F":
        plain = _from_float(image)
        notes.append("floating-point samples from 0 to 1, as they are shown")
    elif image.mode.startswith("I"):
        plain = _from_integers(image, bits, notes)
    else:
        plain = image
        if bits == 16:
            notes.append("the high 8 of 16 bits")
    if bits > 8:
        check_range(plain, notes)
    return plain


def check_range(image: Image.Image, notes: list[str]) -> None:
    """Refuse an image of more than eight bits whose samples are far below white, where that is not its content.

    Ten or twelve bits are often stored in samples of sixteen without a word about it, and look black.

    Args:
        image: Made eight bits, where ``notes`` says from how many.
        notes: Receives a warning.

    Raises:
        ImageError: The samples are so small that 12 bits would hold them.
    """
    if image.mode not in ("L", "LA", "RGB", "RGBA"):
        return
    largest = max(int(image.getchannel(band).getextrema()[1]) for band in image.getbands() if band != "A")  # type: ignore[arg-type]
    if largest < 16:
        raise ImageError(
            "no sample reaches a sixteenth of the white of its type, as where 8, 10 or 12 bits are stored in 16; "
            "scale the values to the whole range of the type first"
        )
    if largest < 64:
        notes.append("warning: no sample reaches a quarter of the white of its type; the picture may be too dark")


def _from_integers(image: Image.Image, bits: int, notes: list[str]) -> Image.Image:
    values = np.asarray(image)
    if values.min() < 0 or values.max() > 0xFFFF:
        raise ImageError("integer grey outside 0..65535 has no declared white point")
    # Pillow stores the samples of PNG, PGM and TIFF in these modes without scaling them.
    tags = getattr(image, "tag_v2", {})
    used = 12 if bits == 12 else 16
    if bits == 16 and _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        used = 15
    if image.mode != "I" and tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 2**used - 1 - values
    grey = Image.fromarray((values >> (used - 8)).astype(np.uint8))
    notes.append(f"the high 8 of {used} bits")
    transparent = image.info.get("transparency")
    if transparent is None:
        return grey
    return Image.merge("LA", (grey, Image.fromarray(np.where(values == transparent, 0, 255).astype(np.uint8))))


def _from_float(image: Image.Image) -> Image.Image:
    values = np.asarray(image)
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ImageError("floating-point grey outside 0..1 has no declared white point")
    if getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        values = 1 - values
    return Image.fromarray(np.rint(values * 255).astype(np.uint8))
