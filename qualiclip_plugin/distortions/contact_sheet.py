"""Look before you believe: one picture degraded on its own, or all kinds and levels side by side."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qualiclip_plugin.distortions import Distortion, get_distortion, get_table
from qualiclip_plugin.utils.atomic import atomic_write
from qualiclip_plugin.utils.errors import ConfigError, ImageError
from qualiclip_plugin.utils.images import read_image, to_float

if TYPE_CHECKING:
    from PIL.ImageFont import FreeTypeFont

_TILE = 192
_GAP = 6
_LABELS = 250
_HEADER = 34
_TITLE = 17
_DETAIL = 12
_GROUP_COLOURS = {
    "blur": (52, 101, 164),
    "color": (173, 60, 130),
    "compression": (143, 89, 2),
    "noise": (92, 53, 102),
    "brightness": (176, 130, 0),
    "spatial": (18, 125, 90),
    "sharpness": (180, 50, 40),
}


def degrade_image(image: Tensor, distortion: str, level: int, *, seed: int = 0, table: str = "default") -> Tensor:
    """Degrade one picture.

    Args:
        image: RGB, uint8 or floating point in [0, 1], (3, H, W).
        distortion: Name of the kind.
        level: 0 (as it is) to the number of the kind's strengths, usually 5.
        seed: Of the random draw; the same seed at another level moves only the strength.
        table: Name of the distortion table.

    Returns:
        Of the input's dtype, (3, H, W).

    Raises:
        ConfigError: Unknown table or kind (near names are suggested), or no such level.
        ImageError: The tensor is no RGB image.
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
        distortion, level, seed, table: As in :func:`degrade_image`.
        output: Where to write; its suffix picks the format. By default ``<name>_<distortion>_<level>.png`` in the
            current folder.

    Returns:
        The path written.

    Raises:
        ConfigError: As :func:`degrade_image`; or the output is the input or no lossless format.
        ImageError: The picture cannot be read.
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
    tile: int = _TILE,
) -> Path:
    """Draw all kinds (rows, by group) at all levels (columns, 0 = pristine) and write the sheet.

    The centre square of the picture is shrunk to the tile first, then degraded and shown pixel by pixel: noise and
    blur look as they are.

    Args:
        image: RGB, uint8 or floating point in [0, 1], (3, H, W).
        path: A lossless picture format by suffix.
        distortions: Names of the kinds; all of the table by default.
        seed: Of all random draws.
        table: Name of the distortion table.
        tile: Side of a tile in pixels; a smaller picture is not enlarged.

    Returns:
        The path written.
    """
    _check_rgb(image)
    target = Path(path)
    _check_target(target)
    kinds = [get_distortion(name, table) for name in distortions or get_table(table)]
    pristine = _centre_square(_to_float(image).cpu(), tile)
    steps = max(len(kind.strengths) for kind in kinds)
    width = _LABELS + (steps + 1) * (tile + _GAP) + _GAP
    sheet = Image.new("RGB", (width, _HEADER + len(kinds) * (tile + _GAP) + _GAP), "white")
    draw = ImageDraw.Draw(sheet)
    for level in range(steps + 1):
        label = f"level {level}" + (" (pristine)" if level == 0 else "")
        centre = _LABELS + level * (tile + _GAP) + tile // 2
        draw.text((centre, _HEADER // 2), label, fill="black", font=_font(_TITLE), anchor="mm")
    for row, kind in enumerate(kinds):
        top = _HEADER + row * (tile + _GAP)
        _draw_label(draw, kind, top, tile)
        ladder = _apply(kind, pristine, range(1, len(kind.strengths) + 1), seed)
        for level, picture in enumerate((pristine, *ladder)):
            sheet.paste(_to_picture(picture), (_LABELS + level * (tile + _GAP), top))
            if level:
                _draw_strength(draw, kind, level, (_LABELS + level * (tile + _GAP), top + tile))
    _write(sheet, target)
    return target


def _centre_square(image: Tensor, side: int) -> Tensor:
    """The largest square in the centre of the picture, (3, s, s), shrunk where it is wider than ``side``."""
    H, W = image.shape[1:]
    short = min(H, W)
    top, left = (H - short) // 2, (W - short) // 2
    square = image[:, top : top + short, left : left + short]
    if short <= side:
        return square
    return F.interpolate(square[None], (side, side), mode="bilinear", antialias=True)[0].clamp(0, 1)


def _to_picture(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy())


def _font(size: int) -> FreeTypeFont:
    from matplotlib import font_manager

    return ImageFont.truetype(font_manager.findfont("DejaVu Sans"), size)


def _draw_label(draw: ImageDraw.ImageDraw, kind: Distortion, top: int, tile: int) -> None:
    colour = _GROUP_COLOURS[kind.group]
    draw.rectangle((0, top, 6, top + tile), fill=colour)
    draw.text((16, top + tile // 2 - 28), kind.group, fill=colour, font=_font(_DETAIL), anchor="lm")
    draw.text((16, top + tile // 2 - 6), kind.name, fill="black", font=_font(_TITLE), anchor="lm")
    draw.text((16, top + tile // 2 + 16), kind.unit, fill=(90, 90, 90), font=_font(_DETAIL), anchor="lm")
    if not kind.paper:
        place = (16, top + tile // 2 + 36)
        draw.text(place, "beyond ARNIQA's list", fill=(90, 90, 90), font=_font(_DETAIL), anchor="lm")


def _draw_strength(draw: ImageDraw.ImageDraw, kind: Distortion, level: int, corner: tuple[int, int]) -> None:
    text = f"{kind.strength(level):g}"
    font = _font(_DETAIL)
    box = draw.textbbox((corner[0] + 3, corner[1] - 3), text, font=font, anchor="lb")
    draw.rectangle((corner[0], box[1] - 3, box[2] + 3, corner[1] - 1), fill="white")
    draw.text((corner[0] + 3, corner[1] - 3), text, fill="black", font=font, anchor="lb")
