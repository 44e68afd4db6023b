"""The pictures that guard the project's own scores: the same bytes on every machine and in every version.

Photographs of the scikit-image wheel, changed only by integer arithmetic: floating point and codecs would give other
pixels on another processor or with another library, and then it would not be the scores that moved.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from harness.data.ladders import photograph

Pixels = NDArray[np.uint8]
SIDE = 224
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "motorcycle", "rocket")
BLOCK = 4
"""Pixels per side of a mosaic tile."""
SALT_SHARE = 32
"""One of so many pixels becomes white."""


def mosaic(pixels: Pixels) -> Pixels:
    """Replace each tile of ``BLOCK`` x ``BLOCK`` pixels by its upper left pixel: (H, W, 3) to the same."""
    return pixels[::BLOCK, ::BLOCK].repeat(BLOCK, axis=0).repeat(BLOCK, axis=1)


def few_colours(pixels: Pixels) -> Pixels:
    """Keep the three highest bits of every sample."""
    return pixels & np.uint8(0b1110_0000)


def darkened(pixels: Pixels) -> Pixels:
    """A quarter of the brightness."""
    return pixels >> np.uint8(2)


def salted(pixels: Pixels) -> Pixels:
    """Turn one of ``SALT_SHARE`` pixels white, by a fixed pattern without visible order."""
    positions = np.arange(pixels.shape[0] * pixels.shape[1], dtype=np.uint32)
    # Knuth's multiplicative hash: defined bit by bit, unlike any library's random generator.
    chosen = (positions * np.uint32(2654435761) >> np.uint32(27)) % SALT_SHARE == 0
    result = pixels.copy()
    result[chosen.reshape(pixels.shape[:2])] = 255
    return result


CHANGES: Mapping[str, Callable[[Pixels], Pixels]] = {
    "mosaic": mosaic,
    "few_colours": few_colours,
    "darkened": darkened,
    "salted": salted,
}
PRISTINE = "pristine"


def guard_images() -> dict[str, Pixels]:
    """All pictures by name, ``photograph/change``: RGB, uint8, (224, 224, 3).

    Raises:
        DatasetError: The installed scikit-image lacks a photograph.
    """
    pictures: dict[str, Pixels] = {}
    for name in PHOTOGRAPHS:
        pixels = photograph(name)[:SIDE, :SIDE]
        pictures[f"{name}/{PRISTINE}"] = pixels
        pictures |= {f"{name}/{change}": function(pixels) for change, function in CHANGES.items()}
    return pictures
