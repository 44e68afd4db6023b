"""Pictures of kinds that have no human scores: pages of text, and photographs of the night.

Both are made from what is at hand, and written as PNG files. They are the same while that is the same: the words of
the pages are those of the documents, and other words are other pages.
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from pathlib import Path

import matplotlib as mpl
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from qualiclip_plugin.utils.images import images_in, read_image

SIDE = 512
FONTS = ("DejaVuSans", "DejaVuSerif", "DejaVuSansMono", "DejaVuSerif-Bold", "STIXGeneral", "DejaVuSans-Oblique")
GAMMA = 2.2

Draw = Callable[[np.random.Generator], Image.Image]


def pages(documents: Path, folder: Path, count: int) -> list[Path]:
    """Render pages of text.

    Args:
        documents: Folder of Markdown files, whose words are set.
        folder: Where the pages go.
        count: How many.
    """
    words = " ".join(path.read_text(encoding="utf-8") for path in sorted(documents.glob("*.md"))).split()
    return _write(folder, [lambda draws: page(words, draws)] * count)


def page(words: list[str], draws: np.random.Generator) -> Image.Image:
    """One page: dark ink on light paper, in one or two columns, with a heading now and then."""
    paper, ink = (tuple(map(int, draws.integers(low, high, 3))) for low, high in ((236, 256), (0, 60)))
    image = Image.new("RGB", (SIDE, SIDE), paper)
    fonts = Path(mpl.get_data_path()) / "fonts" / "ttf"
    size, name = int(draws.integers(11, 25)), FONTS[draws.integers(len(FONTS))]
    font = ImageFont.truetype(str(fonts / f"{name}.ttf"), size)
    columns, margin = int(draws.integers(1, 3)), int(draws.integers(12, 48))
    width = (SIDE - margin * (columns + 1)) // columns
    letters = max(4, int(width / font.getlength("n")))
    pen, start = ImageDraw.Draw(image), int(draws.integers(len(words) - 2000))
    lines = textwrap.wrap(" ".join(words[start : start + 2000]), letters)
    height = (SIDE - 2 * margin) // int(1.3 * size)
    for column in range(columns):
        text = "\n".join(lines[column * height : (column + 1) * height])
        pen.multiline_text((margin + column * (width + margin), margin), text, ink, font, spacing=0.3 * size)
    return image


def night(photos: Path, folder: Path, count: int) -> list[Path]:
    """Photographs with a fifth to a twentieth of their light, without noise: what a good camera takes in the dark.

    Args:
        photos: Folder of photographs, of which some are taken at even distances.
        folder: Where the pictures go.
        count: How many.
    """
    files = images_in([str(photos)])
    chosen = [files[place * len(files) // count] for place in range(count)]
    return _write(folder, [lambda draws, file=file: darkened(file, draws) for file in chosen])


def darkened(file: Path, draws: np.random.Generator) -> Image.Image:
    """A photograph with less light."""
    pixels = read_image(file).permute(1, 2, 0).numpy() / 255.0
    light = draws.uniform(0.05, 0.2) * pixels**GAMMA
    return Image.fromarray(np.uint8(np.round(255 * light ** (1 / GAMMA))))


def _write(folder: Path, pictures: list[Draw]) -> list[Path]:
    folder.mkdir(parents=True, exist_ok=True)
    files = [folder / f"{number:03}.png" for number in range(len(pictures))]
    for number, (file, draw) in enumerate(zip(files, pictures, strict=True)):
        draw(np.random.default_rng(number)).save(file)
    return files
