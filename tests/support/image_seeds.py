"""Small valid image files of every format and mode the reader knows: what fuzzing starts from."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image


def picture(width: int = 20, height: int = 16) -> Image.Image:
    """A smooth picture with some noise, so that every codec has something to store."""
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    noise = np.random.default_rng(0).integers(0, 40, (height, width, 3))
    return Image.fromarray((np.stack([x * 10, y * 12, x + y], -1) % 216 + noise).astype(np.uint8))


def _encode(image: Image.Image, file_format: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    # Copies, because Pillow leaves one encoder's settings on what it saved, and another encoder takes them.
    more = [frame.copy() for frame in options.pop("append_images", ())]
    image.copy().save(buffer, file_format, append_images=more, **options)
    return buffer.getvalue()


def seeds() -> dict[str, bytes]:
    """Files by name; formats that this Pillow cannot write are left out."""
    Image.init()
    rgb = picture()
    clear = picture().convert("RGBA")
    clear.putalpha(Image.linear_gradient("L").resize(clear.size))
    sixteen = Image.fromarray(np.arange(400, dtype=np.uint16).reshape(20, 20) * 160)
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = {"save_all": True, "append_images": [rgb.rotate(90), rgb.rotate(180)]}
    table: dict[str, tuple[Image.Image, str, dict[str, Any]]] = {
        "png": (rgb, "PNG", {"exif": exif}),
        "png-palette": (clear.quantize(8), "PNG", {}),
        "png-alpha": (clear, "PNG", {}),
        "png-16": (sixteen, "PNG", {}),
        "png-frames": (rgb, "PNG", frames),
        "png-profile": (rgb, "PNG", {"icc_profile": b"x" * 60}),
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "jpeg-progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg-cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg-grey": (rgb.convert("L"), "JPEG", {}),
        "mpo": (rgb, "MPO", frames),
        "gif": (rgb, "GIF", {}),
        "gif-frames": (rgb, "GIF", frames),
        "bmp": (rgb, "BMP", {}),
        "bmp-palette": (rgb.quantize(16), "BMP", {}),
        "ppm": (rgb, "PPM", {}),
        "pgm-16": (sixteen.convert("I"), "PPM", {}),
        "pbm": (rgb.convert("1"), "PPM", {}),
        "tiff": (rgb, "TIFF", {"exif": exif}),
        "tiff-16": (sixteen, "TIFF", {}),
        "tiff-lzw": (rgb, "TIFF", {"compression": "tiff_lzw"}),
        "tiff-deflate": (clear, "TIFF", {"compression": "tiff_adobe_deflate"}),
        "tiff-jpeg": (rgb, "TIFF", {"compression": "jpeg"}),
        "tiff-packbits": (rgb.convert("L"), "TIFF", {"compression": "packbits"}),
        "tiff-pages": (rgb, "TIFF", frames),
        "webp": (clear, "WEBP", {"exif": exif}),
        "webp-lossless": (rgb, "WEBP", {"lossless": True}),
        "webp-frames": (rgb, "WEBP", frames),
        "jpeg2000": (rgb, "JPEG2000", {}),
        "jpeg2000-stream": (sixteen, "JPEG2000", {"no_jp2": True}),
        "avif": (clear, "AVIF", {"exif": exif}),
        "avif-frames": (rgb, "AVIF", frames),
    }
    return {
        name: _encode(image, file_format, **options)
        for name, (image, file_format, options) in table.items()
        if file_format in Image.SAVE
    }
