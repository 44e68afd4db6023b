"""Image features in bounded memory: a convolutional tower computed tile by tile, with the result of the whole image.

A tower says which of its parts are computed so (``conv_towers.py``). A tile is read with a halo at least as wide as
the reach of the tower's convolutions, and only the part of its feature map that saw no artificial border is kept. Two
conditions make the kept part equal to that of the whole image up to rounding (about 1e-6), at every size:

- Tiles begin at multiples of the tower's total stride.
- The size of a tile is congruent to the size of the image modulo that stride. Pooling that drops an odd last row
  and TensorFlow's 'same' padding, which depends on the size, then do to each tile what they do to the image.

What remains of the image is small: for an attention pool the feature map it pools (8 bytes a pixel in CLIP's RN50);
for a tower that pools stages the map of its first stages (2.5 bytes a pixel in ``qualiclip-lite``), from which the
rest, whose halo is wide, is computed in larger tiles and summed up. Towers with global operations inside
(attention, squeeze-and-excitation) are not tiled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import TYPE_CHECKING

import torch
from timm.layers import Conv2dSame
from torch import Tensor, nn

from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.memory import frugal, give_back

if TYPE_CHECKING:
    from qualiclip_plugin.models.conv_towers import ConvTower

TILE_MEMORY = 1_850_000_000
"""What a tile takes by default, in bytes. A larger image keeps more, and its tiles are smaller by as much."""


@dataclass(frozen=True)
class Span:
    """A stretch of one image axis, in pixels.

    Attributes:
        read: What the tower is given, halo included.
        start: First pixel whose features are kept.
        stop: The pixel after the last one; ``None`` for the last span, which keeps all to the end.
    """

    read: slice
    start: int
    stop: int | None

    def kept(self, stride: int) -> slice:
        """The kept part of the feature map of ``read`` at ``stride`` pixels a step."""
        first = self.read.start
        return slice((self.start - first) // stride, None if self.stop is None else (self.stop - first) // stride)


def divisions(length: int, halo: int, stride: int) -> list[list[Span]]:
    """All ways to cut an axis into spans of equal length, but for the last: from one span to one for every stride.

    Args:
        length: Pixels along the axis.
        halo: Pixels of neighbourhood that kept features need on each side, a multiple of ``stride``.
        stride: Total stride of the tower.
    """
    steps = -(-length // stride)
    sizes = dict.fromkeys(-(-steps // count) * stride for count in range(1, steps + 1))
    return [[_span(start, start + size, length, halo, stride) for start in range(0, length, size)] for size in sizes]


def _span(start: int, stop: int, length: int, halo: int, stride: int) -> Span:
    end = stop + halo + (length - stop - halo) % stride
    last = stop >= length
    return Span(slice(max(0, start - halo), min(end, length)), start, None if last else stop)


def automatic_tile(tower: ConvTower, pixels: int) -> int:
    """Most pixels that are read at once of an image of ``pixels``, halo included, by default."""
    whole = TILE_MEMORY // tower.tile_bytes
    kept = round(tower.kept_bytes * max(0, pixels - whole))
    # Below a quarter most of a tile would be halo.
    return max(whole - kept // tower.tile_bytes, whole // 4)


def check_tile(tile_pixels: int, smallest: int) -> int:
    """Return ``tile_pixels`` if square tiles of that size have room beside a tower's halos.

    Raises:
        ConfigError: They have none; the smallest size is named.
    """
    if tile_pixels < smallest:
        raise _too_small(tile_pixels, smallest)
    return tile_pixels


def _too_small(tile_pixels: int, smallest: int) -> ConfigError:
    return ConfigError(f"tiles of {tile_pixels} pixels are too small: this network needs {smallest}")


def smallest(stride: int, halo: int) -> int:
    """Pixels of the smallest tile that has room beside its halos."""
    return (2 * (halo + stride)) ** 2


def reach(*parts: nn.Module) -> tuple[int, int]:
    """How far the features of consecutive parts of a tower see.

    Returns:
        The total stride and the halo that kept features need, a multiple of it; both in pixels of the input.
    """
    stride, left, right = 1, 0, 0
    for layer in _path(*parts):
        size, step = _first(layer.kernel_size), _first(layer.stride)
        before = 0 if isinstance(layer, nn.AvgPool2d) else size // 2
        left += before * stride
        # 'same' padding may put one pixel less in front, and so look one further to the right.
        right += (size - 1 - before + (isinstance(layer, Conv2dSame) and step > 1)) * stride
        stride *= step
    # A feature stands at the first of its `stride` pixels, so those after it already belong to the kept part.
    return stride, math.ceil(max(left, right - stride + 1) / stride) * stride


def _path(*parts: nn.Module) -> Iterator[nn.Conv2d | nn.AvgPool2d]:
    """Convolutions and poolings in the order they run; branches beside the main path reach no further."""
    for part in parts:
        for name, module in part.named_modules():
            if isinstance(module, nn.Conv2d | nn.AvgPool2d) and ".downsample." not in name:
                yield module


def _first(value: int | tuple[int, ...]) -> int:
    return value if isinstance(value, int) else value[0]


def cut(image: Tensor, tile_pixels: int, stride: int, halo: int) -> list[tuple[Span, Span]]:
    """Rows and columns of the tiles of an image (1, C, H, W), from top left to bottom right.

    Of the grids whose tiles read at most ``tile_pixels`` pixels this is the one that reads the fewest in all: what
    lies in a halo is computed more than once.

    Raises:
        ConfigError: Tiles of that size have no room for anything beside the halos.
    """
    height, width = image.shape[2:]
    narrow = [(_longest(columns), columns) for columns in divisions(width, halo, stride)]
    grids = []
    for rows in divisions(height, halo, stride):
        most = tile_pixels // _longest(rows)
        grids += [(rows, columns) for longest, columns in narrow if longest <= most][:1]
    if not grids:
        raise _too_small(tile_pixels, smallest(stride, halo))
    return list(product(*min(grids, key=lambda grid: _length(grid[0]) * _length(grid[1]))))


def _longest(axis: list[Span]) -> int:
    return max(span.read.stop - span.read.start for span in axis)


def _length(axis: list[Span]) -> int:
    return sum(span.read.stop - span.read.start for span in axis)


def assembled(image: Tensor, compute: Callable[[Tensor], Tensor], tile_pixels: int, stride: int, halo: int) -> Tensor:
    """The feature map of the whole image, (1, C, h, w).

    Args:
        image: (1, C, H, W).
        compute: A piece of it -> its feature map.
        tile_pixels: Most pixels of a tile, halo included.
        stride, halo: Of ``compute``, see :func:`reach`.

    Raises:
        ConfigError: The tiles are smaller than the halo needs.
    """
    whole: Tensor | None = None
    with frugal(image.shape[-2] * image.shape[-1]):
        for row, column in cut(image, tile_pixels, stride, halo):
            pixels = image[:, :, row.read, column.read]
            features = compute(pixels)
            if whole is None:
                # Sizes of image and tile are congruent, so the tile's map tells the size of the whole one.
                height, width = (
                    have + (full - piece) // stride
                    for have, full, piece in zip(features.shape[2:], image.shape[2:], pixels.shape[2:], strict=True)
                )
                whole = torch.empty(
                    (1, features.shape[1], height, width),
                    dtype=features.dtype,
                    device=features.device,
                    memory_format=torch.channels_last,
                )
            part = features[:, :, row.kept(stride), column.kept(stride)]
            top, left = row.start // stride, column.start // stride
            whole[:, :, top : top + part.shape[2], left : left + part.shape[3]] = part
            del pixels, features, part
            give_back()  # of what tiles have used glibc alone keeps nearly a gigabyte
    assert whole is not None  # noqa: S101 (narrows the type: an image has at least one tile)
    return whole


def means(
    image: Tensor,
    compute: Callable[[Tensor], list[Tensor]],
    tiles: list[tuple[Span, Span]],
    strides: list[int],
) -> Tensor:
    """Spatial means of several feature maps of the whole image side by side, (1, C)."""
    sums, counts = [torch.zeros((), device=image.device) for _ in strides], [0] * len(strides)
    with frugal(image.shape[-2] * image.shape[-1]):
        for row, column in tiles:
            maps = compute(image[:, :, row.read, column.read])
            for index, (features, stride) in enumerate(zip(maps, strides, strict=True)):
                part = features[:, :, row.kept(stride), column.kept(stride)]
                sums[index] = sums[index] + part.sum((2, 3), dtype=torch.float32)
                counts[index] += part.shape[2] * part.shape[3]
            del maps, features, part
            give_back()
    return torch.cat([total / count for total, count in zip(sums, counts, strict=True)], dim=1)
