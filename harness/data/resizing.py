"""The size policy of datasets that are not scored at their native size; a part of a score's fingerprint."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

VERSION = 1
"""Raise it when the pixels change."""


def resize_shorter_side(pixels: Tensor, size: int) -> Tensor:
    """Resize an image so that its shorter side has ``size`` pixels, bicubic with antialiasing.

    What pyiqa's dataset definitions do (SPAQ: 448), through torchvision.

    Args:
        pixels: RGB, uint8, (3, H, W).
        size: Pixels.
    """
    from torchvision.transforms.v2.functional import (  # type: ignore[import-untyped]
        InterpolationMode,
        resize,
    )

    resized: Tensor = resize(pixels, [size], interpolation=InterpolationMode.BICUBIC, antialias=True)
    return resized
