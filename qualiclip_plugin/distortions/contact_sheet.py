"""One degraded picture, or a sheet of all kinds and levels side by side."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qualiclip_plugin.distortions import GROUP_COLOURS, Distortion, get_distortion, get_table
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.images import read_image, to_float

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

TILE = 192
"""Side of a crop in pixels."""
ROWS = 4
"""Kinds on one page: it then fits on a screen."""
_GAP, _HEAD, _CAPTION = 8, 24, 22
_TEXT, _BOLD = 13, 15
_GREY = (90, 90, 90)

Score = Callable[[Tensor], Tensor]


def degrade_image(image: Tensor, distortion: str, level: int, *, seed: int = 0, table: str = "default") -> Tensor:
    """Degrade one picture.

    Args:
        image: RGB, uint8 or floating point in [0, 1], (3, H, W).
        distortion: Name of the kind.
        level: 0 (unchanged) to the number of the kind's strengths, usually 5.
        seed: Of the random draw; the same seed at another level moves only the strength.
        table: Name of the distortion table.

    Returns:
        Of the dtype of the input, (3, H, W).

    Raises:
        ConfigError: Unknown table or kind (near names are suggested), or no such level.
        ImageError: The tensor is no RGB image.

    Examples:
        >>> from qualiclip_plugin.distortions.contact_sheet import degrade_image
        >>> from qualiclip_plugin.utils.images import read_image
        >>> degraded = degrade_image(read_image("photo.png"), "jpeg", 3)
        >>> degraded.shape, degraded.dtype
        (torch.Size([3, 192, 256]), torch.uint8)
    """
    kind = get_distortion(distortion, table)
    _check_rgb(image)
    if not 0 <= level <= len(kind.strengths):
        raise ConfigError(f"{kind.name} has levels 0 to {len(kind.strengths)}, not {level}")
    if level == 0:
        return image.clone()
    degraded = _apply(kind, _to_float(image), (level,), seed)[0]
    return (degraded * 255).round().to(torch.uint8) if image.dtype == torch.uint8 else degraded.to(image.dtype)


def _check_rgb(image: Tensor) -> None:
    if image.ndim != 3 or image.shape[0] != 3 or 0 in image.shape:
        raise ImageError(f"an RGB image is (3, H, W), got {tuple(image.shape)}")


def _to_float(image: Tensor) -> Tensor:
    return to_float(image) if image.dtype == torch.uint8 else image.float()


@torch.no_grad()
def _apply(kind: Distortion, image: Tensor, levels: Sequence[int], seed: int) -> Tensor:
    strengths = torch.tensor([kind.strength(level) for level in levels])
    return kind.apply(image.expand(len(levels), -1, -1, -1), strengths, torch.full((len(levels),), seed))


def degrade_file(
    image: str | os.PathLike[str],
    distortion: str,
    level: int,
    *,
    seed: int = 0,
    output: str | os.PathLike[str] | None = None,
    table: str = "default",
) -> Path:
    """Degrade the picture in a file and write the result without further loss.

    Args:
        image: Path of the picture.
        distortion: As in :func:`degrade_image`.
        level: The same.
        seed: The same.
        table: The same.
        output: Where to write; its suffix picks the format. By default ``<name>_<distortion>_<level>.png`` in the
            current folder.

    Returns:
        The path written.

    Raises:
        ConfigError: As :func:`degrade_image`; or the output is the input or no lossless format.
        ImageError: The picture cannot be read.

    Examples:
        >>> from qualiclip_plugin.distortions.contact_sheet import degrade_file
        >>> degrade_file("photo.png", "gaussian_blur", 3).name
        'photo_gaussian_blur_3.png'
    """
    target = Path(output or f"{Path(image).stem}_{distortion}_{level}.png")
    _check_target(target, image)
    kind = get_distortion(distortion, table)
    degraded = degrade_image(read_image(Path(image)), kind.name, level, seed=seed, table=table)
    _write(Image.fromarray(degraded.permute(1, 2, 0).numpy()), target)
    return target


_LOSSLESS = {".png": "PNG", ".bmp": "BMP", ".tif": "TIFF", ".tiff": "TIFF", ".ppm": "PPM"}


def _check_target(target: Path, source: str | os.PathLike[str] | None = None) -> None:
    if target.suffix.lower() not in _LOSSLESS:
        raise ConfigError(
            f"{target}: a degraded picture is written without further loss, as one of {', '.join(_LOSSLESS)}"
        )
    if source is not None and target.exists() and Path(source).exists() and target.samefile(source):
        raise ConfigError(f"{target}: the output would overwrite the input")


def _write(picture: Image.Image, target: Path) -> None:
    with atomic_write(target) as file:
        picture.save(file, format=_LOSSLESS[target.suffix.lower()])


def contact_sheet(
    image: Tensor,
    path: str | os.PathLike[str],
    distortions: Sequence[str] | None = None,
    *,
    seed: int = 0,
    table: str = "default",
    tile: int = TILE,
    score: Score | None = None,
) -> list[Path]:
    """Draw all kinds (rows, by group) at all levels (columns) beside the pristine crop, on pages for a screen.

    The crop is the centre of the picture at full size. Every tile is this crop, degraded as an image of its own and
    shown pixel by pixel.

    Args:
        image: RGB, uint8 or floating point in [0, 1], (3, H, W).
        path: A lossless picture format by suffix; with several pages, ``sheet.png`` becomes ``sheet-1.png``, ...
        distortions: Names of the kinds; all of the table by default.
        seed: Of all random draws.
        table: Name of the distortion table.
        tile: Side of the crop in pixels; a smaller picture is not enlarged.
        score: From crops, (N, 3, h, w) in [0, 1], to scores (N,) that stand below them.

    Returns:
        The paths written.

    Examples:
        >>> from qualiclip_plugin.distortions.contact_sheet import contact_sheet
        >>> from qualiclip_plugin.utils.images import read_image
        >>> [path.name for path in contact_sheet(read_image("photo.png"), "sheet.png", ["jpeg", "white_noise"])]
        ['sheet.png']
    """
    _check_rgb(image)
    target = Path(path)
    _check_target(target)
    kinds = [get_distortion(name, table) for name in distortions or get_table(table)]
    pristine = _centre(_to_float(image).cpu(), tile)
    pages = [kinds[first : first + ROWS] for first in range(0, len(kinds), ROWS)]
    written = []
    for number, page in enumerate(pages, start=1):
        place = target if len(pages) == 1 else target.with_stem(f"{target.stem}-{number}")
        _write(_draw_page(pristine, page, f"page {number} of {len(pages)}", seed, score), place)
        written.append(place)
    return written


def _centre(image: Tensor, side: int) -> Tensor:
    """The square in the centre of the picture, (3, s, s), as wide as ``side`` where the picture is."""
    H, W = image.shape[1:]
    side = min(H, W, side)
    top, left = (H - side) // 2, (W - side) // 2
    return image[:, top : top + side, left : left + side]


def _draw_page(
    pristine: Tensor, kinds: Sequence[Distortion], page: str, seed: int, score: Score | None
) -> Image.Image:
    side = pristine.shape[1]
    wide = max(side, TILE)  # captions need room also below small crops
    steps = max(len(kind.strengths) for kind in kinds)
    row_height = _HEAD + side + _CAPTION + _GAP
    height = _GAP + max(len(kinds) * row_height, row_height + 110)
    sheet = Image.new("RGB", (_GAP + (steps + 1) * (wide + _GAP), height), "white")
    draw = ImageDraw.Draw(sheet)
    _draw_tile(sheet, pristine, (_GAP, _GAP + _HEAD), "pristine", _scores(pristine[None], score)[0])
    notes = (page, f"crops of {side} pixels, full size", "below: strength and score" if score else "below: strength")
    for line, note in enumerate(notes):
        draw.text((_GAP, _GAP + row_height + 12 + 22 * line), note, fill=_GREY, font=_font(_TEXT), anchor="lm")
    for row, kind in enumerate(kinds):
        left, top = 2 * _GAP + wide, _GAP + row * row_height
        _draw_head(draw, kind, left, top)
        ladder = _apply(kind, pristine, range(1, len(kind.strengths) + 1), seed)
        for step, (tile, strength, value) in enumerate(
            zip(ladder, kind.strengths, _scores(ladder, score), strict=True)
        ):
            _draw_tile(sheet, tile, (left + step * (wide + _GAP), top + _HEAD), f"{strength:g}", value)
    return sheet


def _scores(tiles: Tensor, score: Score | None) -> list[float | None]:
    return [None] * len(tiles) if score is None else [float(value) for value in score(tiles)]


def _draw_head(draw: ImageDraw.ImageDraw, kind: Distortion, left: int, top: int) -> None:
    colour = GROUP_COLOURS[kind.group]
    middle = top + _HEAD // 2
    draw.rectangle((left, top + 4, left + 6, top + _HEAD - 4), fill=colour)
    draw.text((left + 14, middle), kind.name, fill="black", font=_font(_BOLD), anchor="lm")
    begin = left + 14 + draw.textlength(kind.name, font=_font(_BOLD)) + 14
    beyond = "" if kind.paper else "; beyond ARNIQA's list"
    draw.text((begin, middle), kind.group, fill=colour, font=_font(_TEXT), anchor="lm")
    begin += draw.textlength(kind.group, font=_font(_TEXT)) + 14
    draw.text((begin, middle), f"{kind.unit}{beyond}", fill=_GREY, font=_font(_TEXT), anchor="lm")


def _draw_tile(sheet: Image.Image, tile: Tensor, corner: tuple[int, int], text: str, value: float | None) -> None:
    left, top = corner
    sheet.paste(Image.fromarray((tile * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()), corner)
    draw, middle = ImageDraw.Draw(sheet), top + tile.shape[1] + _CAPTION // 2
    draw.text((left, middle), text, fill=_GREY, font=_font(_TEXT), anchor="lm")
    if value is not None:
        right = left + max(tile.shape[2], TILE)
        draw.text((right, middle), f"{value:.2f}", fill="black", font=_font(_BOLD), anchor="rm")


@cache
def _font(size: int) -> FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)
