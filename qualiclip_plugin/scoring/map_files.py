"""Quality maps of image files: the raw values, and a picture that shows them beside the image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.models.quality_map import chosen_windows, window_starts
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.images import MAX_PIXELS, read_image

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from qualiclip_plugin.models.qualiclip import QualiCLIP

COLOURS, OPACITY = "viridis", 0.6
"""Colours and opacity of a map over the grey image."""
SHOWN_SIDE = 1024
"""Longest side of the image in the picture, in pixels."""


@dataclass(frozen=True)
class WindowScores:
    """The windows of an image and their scores.

    Attributes:
        values: Scores in [0, 1] of the windows, (rows, columns).
        window: Height and width of a window in pixels.
        stride: Pixels from one window to the next; see ``quality_map.window_starts``.
        pixels: RGB, uint8, (H, W, 3).
    """

    values: np.ndarray
    window: tuple[int, int]
    stride: int
    pixels: np.ndarray


@dataclass(frozen=True)
class QualityMap(WindowScores):
    """A map and what it belongs to.

    Attributes:
        score: Of the whole image.
        title: What is scored, for people.

    Examples:
        >>> from pathlib import Path
        >>> from qualiclip_plugin.scoring.map_files import map_of_file, per_pixel
        >>> from qualiclip_plugin.weights import load_model
        >>> found = map_of_file(Path("photo.png"), load_model("lite"))
        >>> per_pixel(found).shape, found.window, found.stride
        ((192, 256), (96, 96), 72)
    """

    score: float
    title: str


def check_names(files: Sequence[Path]) -> None:
    """Refuse images whose maps would have one name.

    Raises:
        ConfigError: Two are called the same; names them.
    """
    named = Counter(file.name for file in files)
    if twice := [name for name, count in named.items() if count > 1]:
        places = ", ".join(str(file) for file in files if file.name == twice[0])
        raise ConfigError(f"maps are named after their images, and these have one name: {places}")


def attribute_index(model: QualiCLIP, attribute: str | None) -> int | None:
    """Where an attribute stands among those of the model; ``None`` for the score.

    Raises:
        ConfigError: The model has no such attribute.
    """
    if attribute is None:
        return None
    if attribute not in model.attributes:
        raise ConfigError(f"no attribute {attribute!r}: choose one of {', '.join(model.attributes)}")
    return model.attributes.index(attribute)


def map_of_file(
    path: Path,
    model: QualiCLIP,
    *,
    attribute: str | None = None,
    window: int | None = None,
    stride: int | None = None,
    max_pixels: int = MAX_PIXELS,
) -> QualityMap:
    """The quality map of one image file.

    Args:
        path: The image.
        model: In evaluation mode.
        attribute: Name of a prompt pair to map instead of the score.
        window: Side of the windows in pixels; ``None``: by the model.
        stride: Pixels from one window to the next; ``None``: by the window.
        max_pixels: A larger image is refused.

    Raises:
        ImageError: The image cannot be read or scored; names it.
        ConfigError: No such attribute; window or stride do not fit.

    Examples:
        >>> from pathlib import Path
        >>> from qualiclip_plugin.scoring.map_files import map_of_file
        >>> from qualiclip_plugin.weights import load_model
        >>> found = map_of_file(Path("photo.png"), load_model("lite"), attribute="sharp_image")
        >>> found.title, found.values.shape
        ('sharp_image', (3, 4))
    """
    attribute_index(model, attribute)
    pixels = read_image(path, max_pixels=max_pixels)
    try:
        found = score_windows(pixels, model, attribute=attribute, window=window, stride=stride)
        with torch.inference_mode(), exact_fp32():
            score, named = model(pixels[None].to(model.mean.device), attributes=True)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    whole = float(score if attribute is None else named[attribute])
    return QualityMap(**vars(found), score=whole, title=attribute or "score")


def score_windows(
    pixels: Tensor,
    model: QualiCLIP,
    *,
    attribute: str | None = None,
    window: int | None = None,
    stride: int | None = None,
) -> WindowScores:
    """The quality map of an image, RGB, uint8, (3, H, W); the other arguments as of :func:`map_of_file`.

    Raises:
        ImageError: The image cannot be scored.
        ConfigError: No such attribute; window or stride do not fit.
    """
    index = attribute_index(model, attribute)
    window, stride = chosen_windows(model.image_encoder, window, stride)
    image = pixels[None].to(model.mean.device)
    with torch.inference_mode(), exact_fp32():
        values = model.quality_map(image, window=window, stride=stride, attributes=index is not None)
    height, width = image.shape[2:]
    return WindowScores(
        values=values[0, index or 0].float().cpu().numpy(),
        window=(min(window, height), min(window, width)),
        stride=stride,
        pixels=pixels.permute(1, 2, 0).numpy(),
    )


def per_pixel(found: WindowScores) -> np.ndarray:
    """The mean score of the windows that cover each pixel, weighted by their nearness, float32, (H, W)."""
    image_height, image_width, _ = found.pixels.shape
    total, weight = (np.zeros((image_height, image_width), dtype=np.float32) for _ in range(2))
    height, width = found.window
    tent = np.outer(_tent(height), _tent(width))
    tops = window_starts(image_height, height, found.stride)
    lefts = window_starts(image_width, width, found.stride)
    for (top, left), value in zip(product(tops, lefts), found.values.flat, strict=True):
        place = slice(top, top + height), slice(left, left + width)
        total[place] += value * tent
        weight[place] += tent
    # Where the stride is wider than the window, nothing is known between them.
    return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight > 0)


def _tent(length: int) -> np.ndarray:
    return 1 - np.abs(np.arange(length) - (length - 1) / 2) / (length / 2)


def overlay(found: WindowScores, side: int) -> np.ndarray:
    """The map in colours over the grey image, at most ``side`` pixels wide and high: RGB, uint8, (h, w, 3)."""
    from matplotlib import colormaps
    from PIL import Image

    picture = Image.fromarray(found.pixels)
    picture.thumbnail((side, side), Image.Resampling.LANCZOS)
    step = max(1, max(found.pixels.shape) // side)
    colours = colormaps[COLOURS](per_pixel(found)[::step, ::step], bytes=True)[..., :3]
    coloured = Image.fromarray(colours).resize(picture.size)
    return np.asarray(Image.blend(picture.convert("L").convert("RGB"), coloured, OPACITY))


def write_map(found: QualityMap, folder: Path, name: str) -> tuple[Path, Path]:
    """Write ``NAME.npy`` (the windows' scores, float32) and ``NAME.png`` (image, overlay, colour bar) into a folder.

    Raises:
        OSError: The folder cannot be written.

    Examples:
        >>> from pathlib import Path
        >>> from qualiclip_plugin.scoring.map_files import map_of_file, write_map
        >>> from qualiclip_plugin.weights import load_model
        >>> found = map_of_file(Path("photo.png"), load_model("lite"))
        >>> [path.name for path in write_map(found, Path("maps"), "photo.png")]
        ['photo.png.npy', 'photo.png.png']
    """
    raw, picture = folder / f"{name}.npy", folder / f"{name}.png"
    with atomic_write(raw) as file:
        np.save(file, found.values.astype(np.float32))
    with atomic_write(picture) as file:
        draw(found).savefig(file, format="png", dpi=100)
    return raw, picture


def draw(found: QualityMap) -> Figure:
    """The image, and the map over it; a colour means the same score in every picture."""
    from matplotlib.figure import Figure

    height, width = found.pixels.shape[:2]
    step = max(1, -(-max(height, width) // SHOWN_SIDE))
    shown = found.pixels[::step, ::step]
    wide = 5 * min(1.6, max(0.5, width / height))
    figure = Figure(figsize=(2 * wide + 1.2, wide * height / width + 0.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.imshow(shown)
    left.set_title(f"{found.title} {found.score:.2f}", loc="left")
    right.imshow(shown.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    overlay = right.imshow(per_pixel(found)[::step, ::step], cmap=COLOURS, vmin=0, vmax=1, alpha=OPACITY)
    right.set_title(
        f"windows of {max(found.window)} pixels: {found.values.min():.2f} to {found.values.max():.2f}", loc="left"
    )
    for axes in (left, right):
        axes.set_axis_off()
    bar = figure.colorbar(overlay, ax=right, fraction=0.05, label="0 bad, 1 good")
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    return figure
