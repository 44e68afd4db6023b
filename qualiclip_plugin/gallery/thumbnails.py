"""Pictures for pages: as the scorer read them, encoded again, so that no metadata of the file leaves."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from os import PathLike
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from qualiclip_plugin.utils.errors import QualiCLIPError

THUMBNAIL = (288, 85)
"""Longest side in pixels and JPEG quality of a tile: sharp on a dense screen, 100,000 of them in 2 to 3 GB."""
LARGE = (1280, 92)
"""The same, for the large view."""
MAP = (LARGE[0], 80)
"""The same, for the map of a large picture."""
SHARD = 1000
"""Pictures in one folder: a list of a folder stays short, and one page of the gallery reads one or two folders."""

Read = Callable[[str | PathLike[str]], Tensor]
DrawMap = Callable[[Tensor], NDArray[np.uint8]]


def jpeg(pixels: NDArray[np.uint8], side: int, quality: int) -> bytes:
    """A picture as a JPEG file.

    Args:
        pixels: RGB, (H, W, 3).
        side: Longest side in pixels; a smaller picture is not enlarged.
        quality: Of the JPEG encoder, 1 to 95.
    """
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    # 4:4:4, since colour subsampling would blur the very distortions that are to be seen.
    picture.save(buffer, "JPEG", quality=quality, subsampling=0)
    return buffer.getvalue()


def picture_path(size: str, index: int) -> str:
    """Where the picture of a row is, relative to the gallery: ``thumbnails/3/3141.jpg``."""
    return f"{size}/{index // SHARD}/{index}.jpg"


def write_pictures(
    folder: Path,
    files: Sequence[str | PathLike[str]],
    read: Read,
    large: int,
    workers: int,
    draw_map: DrawMap | None = None,
    maps: int = 0,
) -> Iterator[str | None]:
    """Write a thumbnail of every file, and a large picture and a map of the first ones.

    Args:
        files: In the order of the gallery.
        read: From a path to RGB pixels, uint8, (3, H, W).
        large: How many get a large picture.
        draw_map: From those pixels to a picture of their map, of the size of a large picture.

    Yields:
        For each file why it has no picture; ``None`` where it has one.

    Raises:
        OSError: The gallery cannot be written.
    """

    def write(index: int) -> str | None:
        try:
            image = read(files[index])
            shown = draw_map(image) if draw_map is not None and index < maps else None
        except QualiCLIPError as error:
            return str(error)
        pixels = image.permute(1, 2, 0).numpy()
        sizes = [("thumbnails", pixels, THUMBNAIL)]
        sizes += [("large", pixels, LARGE)] if index < large else []
        sizes += [("maps", shown, MAP)] if shown is not None else []
        for size, picture, form in sizes:
            target = folder / picture_path(size, index)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(jpeg(picture, *form))
        return None

    with ThreadPoolExecutor(workers, thread_name_prefix="thumbnail") as pool:
        yield from pool.map(write, range(len(files)))
