"""Small valid image files of every format and mode the reader knows: what fuzzing starts from."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from tests.support import icc


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
        "png-adobe-rgb": (clear, "PNG", {"icc_profile": icc.matrix_profile(icc.ADOBE_RGB, 2.2, "Adobe RGB")}),
        "jpeg": (rgb, "JPEG", {"exif": exif}),
        "jpeg-grey-profile": (rgb.convert("L"), "JPEG", {"icc_profile": icc.grey_profile(1.8, "Grey")}),
        "jpeg-progressive": (rgb, "JPEG", {"progressive": True}),
        "jpeg-cmyk": (rgb.convert("CMYK"), "JPEG", {}),
        "jpeg-grey": (rgb.convert("L"), "JPEG", {}),
        "mpo": (rgb, "MPO", frames),
        "gif": (rgb, "GIF", {}),
        "gif-frames": (rgb, "GIF", frames),
        "bmp": (rgb, "BMP", {}),
        "dib": (rgb, "DIB", {}),
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
    encoded = {
        name: _encode(image, file_format, **options)
        for name, (image, file_format, options) in table.items()
        if file_format in Image.SAVE
    }
    return {**encoded, **_odd_tiffs(np.asarray(rgb)), **_heic(clear)}


def _odd_tiffs(rgb: np.ndarray) -> dict[str, bytes]:
    """Those that Pillow does not read, or not as they are meant."""
    wide = rgb.astype(np.uint16) * 257
    written: dict[str, list[tuple[np.ndarray, dict[str, Any]]]] = {
        "tiff-planar-16": [(wide.transpose(2, 0, 1), {"planarconfig": "separate"})],
        "tiff-planar-tiles": [(wide.transpose(2, 0, 1), {"planarconfig": "separate", "tile": (16, 16)})],
        "tiff-float": [((rgb / 255).astype(np.float32), {})],
        "tiff-thumbnail": [(rgb[::2, ::2], {"subfiletype": 1, "subifds": 1}), (rgb, {"subfiletype": 0})],
    }
    files = {}
    for name, pages in written.items():
        buffer = io.BytesIO()
        with tifffile.TiffWriter(buffer) as writer:
            for samples, options in pages:
                writer.write(samples, photometric="rgb", metadata=None, **options)
        files[name] = buffer.getvalue()
    return files


def _heic(image: Image.Image) -> dict[str, bytes]:
    try:
        import pillow_heif
    except ImportError:
        return {}
    buffer = io.BytesIO()
    pillow_heif.from_pillow(image).save(buffer)
    return {"heif": buffer.getvalue()}
