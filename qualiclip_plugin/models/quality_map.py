"""Where an image is good or bad: the scores of windows that cover it.

Every value is the score of its window as an image of its own. Windows could also be pooled from the feature maps of
the whole image, for less work; but the deep layers of these networks see hundreds of pixels far, and such maps did
not show which part of a photograph was blurred. What these show is measured in ``results/maps``.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor, nn

from qualiclip_plugin.models.conv_towers import ConvTower
from qualiclip_plugin.utils.errors import ConfigError

BATCH_PIXELS = 200_000
"""Most pixels of windows that are scored at once; more take memory and no less time."""


def chosen_windows(tower: nn.Module, window: int | None = None, stride: int | None = None) -> tuple[int, int]:
    """Side and stride of the windows in pixels, where ``None``: what the tower declares (224, as CLIP's, where it
    declares nothing), and three quarters of it: the windows of an image then hold less than twice its pixels.
    """
    if window is None:
        window = tower.window if isinstance(tower, ConvTower) else ConvTower.window
    return window, window * 3 // 4 if stride is None else stride


def window_starts(length: int, window: int, stride: int) -> list[int]:
    """First pixels of the windows along an axis; the last one ends where the image does.

    Args:
        length: Pixels of the axis.
        window: Side of a window; a shorter axis has one window, as long as itself.
        stride: Pixels from one window to the next.
    """
    last = max(0, length - window)
    return [*range(0, last, stride), last]


def map_windows(images: Tensor, score: Callable[[Tensor], Tensor], window: int, stride: int, smallest: int) -> Tensor:
    """Score all windows of images of one size.

    Args:
        images: (N, 3, H, W).
        score: Windows (M, 3, h, w) -> their P scores, (M, P).
        window: Side in pixels.
        stride: Pixels from one window to the next.
        smallest: Fewest pixels of a side that can be scored.

    Returns:
        (N, P, rows, columns); see :func:`window_starts` for where they are.

    Raises:
        ConfigError: The window is too small, or the stride not positive.
    """
    if window < smallest:
        raise ConfigError(f"a window of {window} pixels is too small: at least {smallest} can be scored")
    if stride < 1:
        raise ConfigError(f"the stride is {stride}: at least 1 pixel is needed")
    height, width = images.shape[2:]
    rows, columns = (window_starts(side, window, stride) for side in (height, width))
    area = len(images) * min(window, height) * min(window, width)
    places = list(product(rows, columns))
    many = max(1, BATCH_PIXELS // area)
    scores = []
    for first in range(0, len(places), many):
        parts = [images[:, :, top : top + window, left : left + window] for top, left in places[first : first + many]]
        scores.append(score(torch.cat(parts)).unflatten(0, (len(parts), len(images))))
    return torch.cat(scores).permute(1, 2, 0).unflatten(2, (len(rows), len(columns)))
