"""The pictures at the top of the README and of "What a score means", and the values that stand beside them.

    python results/front/picture.py

Photographs of the scikit-image wheel are degraded and scored by ``qualiclip-lite``. Writes ``docs/front.jpg``,
``docs/score-means.jpg`` and ``figures.json`` beside this file, and renews the blocks between ``<!-- name -->`` and
``<!-- end -->`` in README.md and docs/what-a-score-means.md.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from PIL import Image
from skimage import data

from harness.data.ladders import PHOTOGRAPHS, whole_photograph
from qualiclip_plugin.cli import main
from qualiclip_plugin.distortions.contact_sheet import degrade_image
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.scoring.map_files import map_of_file, per_pixel
from qualiclip_plugin.utils.environment import processor_name, versions
from qualiclip_plugin.weights import load_model

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SHOWN = (
    ("rocket", "gaussian_blur", 0),
    ("motorcycle", "jpeg", 3),
    ("chelsea", "white_noise", 4),
    ("coffee", "gaussian_blur", 3),
    ("astronaut", "gaussian_blur", 4),
)
GOALS = (0.2, 0.4, 0.6, 0.8)
GOAL_KINDS = ("gaussian_blur", "motion_blur", "jpeg", "white_noise", "pixelate", "jpeg2000")
GOAL_PHOTOGRAPHS = ("coffee", "rocket", "astronaut")
MAP_STRIDE = 24
QUICKSTART = (
    ("degrade", "rocket.png", "--distortion", "gaussian_blur", "--level", "3"),
    ("score", "rocket.png", "rocket_gaussian_blur_3.png", "--gallery", "gallery"),
)


def _checkerboard() -> np.ndarray:
    rows, columns = np.indices((256, 256)) // 16
    return ((rows + columns) % 2 * 255).astype(np.uint8)


NO_PHOTOGRAPHS: Mapping[str, Callable[[], np.ndarray]] = {
    "a checkerboard": _checkerboard,
    "a page of printed text": data.page,
    "a photograph of handwriting": data.text,
    "noise without a picture": lambda: np.random.default_rng(0).integers(0, 256, (256, 256), dtype=np.uint8),
    "a grey area": lambda: np.full((256, 256), 128, dtype=np.uint8),
}


def tensor(pixels: np.ndarray) -> torch.Tensor:
    """Grey or RGB pixels, (H, W) or (H, W, 3), as an RGB image, uint8, (3, H, W)."""
    rgb = pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
    return torch.from_numpy(rgb.copy()).permute(2, 0, 1)


@torch.inference_mode()
def score(model: QualiCLIP, image: torch.Tensor) -> float:
    """The score of an RGB image, uint8, (3, H, W)."""
    return float(model(image[None])[0])


def degraded(name: str, kind: str, level: int) -> torch.Tensor:
    """A photograph at a level of a distortion; 0 is the photograph itself."""
    return degrade_image(tensor(whole_photograph(name)), kind, level)


def described(kind: str, level: int) -> str:
    """What was done to a photograph, for people."""
    return f"{kind.replace('_', ' ')}, level {level}" if level else "as it is"


def crop(image: torch.Tensor, height: int = 300, width: int = 300) -> np.ndarray:
    """The centre of an image for a picture, (height, width, 3) at most."""
    top, left = (max(0, (size - wanted) // 2) for size, wanted in zip(image.shape[1:], (height, width), strict=True))
    return image[:, top : top + height, left : left + width].permute(1, 2, 0).numpy()


def draw_ladder(axes: Any, image: torch.Tensor, value: float, text: str) -> None:
    """A photograph's centre with its score above and what was done to it below."""
    axes.imshow(crop(image), interpolation="lanczos")
    axes.set_title(f"{value:.2f}", fontsize=20, fontweight="bold")
    axes.text(0.5, -0.03, text, ha="center", va="top", transform=axes.transAxes, fontsize=11)
    axes.set_axis_off()


def half_blurred() -> torch.Tensor:
    """The photograph ``motorcycle``, whose right half is blurred."""
    sharp, blurred = degraded("motorcycle", "gaussian_blur", 0), degraded("motorcycle", "gaussian_blur", 4)
    middle = sharp.shape[2] // 2
    return torch.cat([sharp[..., :middle], blurred[..., middle:]], dim=2)


def draw_front(model: QualiCLIP, folder: Path) -> dict[str, float]:
    """``front.jpg``: photographs from good to bad, and a map. Returns the scores by what is shown."""
    shown = [(score(model, image := degraded(*row)), image, row) for row in SHOWN]
    shown.sort(key=lambda entry: -entry[0])
    figure = Figure(figsize=(14, 8), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1, 1.35))
    for axes, (value, image, (_, kind, level)) in zip(top.subplots(1, len(shown)), shown, strict=True):
        draw_ladder(axes, image, value, described(kind, level))
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "half.png"
        Image.fromarray(half_blurred().permute(1, 2, 0).numpy()).save(file)
        found = map_of_file(file, model, stride=MAP_STRIDE)
    left, right = bottom.subplots(1, 2, width_ratios=(1, 1.09))
    left.imshow(found.pixels)
    left.set_title(f"{found.score:.2f}   right half blurred", fontsize=14)
    right.imshow(found.pixels.mean(axis=2), cmap="gray", vmin=0, vmax=255)
    overlay = right.imshow(per_pixel(found), cmap="viridis", vmin=0, vmax=1, alpha=0.6)
    right.set_title(f"its map (qualiclip map --stride {MAP_STRIDE})", fontsize=14)
    for axes in (left, right):
        axes.set_axis_off()
    figure.colorbar(overlay, ax=right, fraction=0.05, label="0 bad, 1 good").solids.set_alpha(1)
    save(figure, folder / "front.jpg")
    return {f"{name}, {described(kind, level)}": value for value, _, (name, kind, level) in shown} | {
        "motorcycle, right half blurred": found.score
    }


def draw_means(model: QualiCLIP, folder: Path) -> dict[str, float]:
    """``score-means.jpg``: what lies nearest to round scores. Returns the scores by what is shown."""
    figure = Figure(figsize=(14, 12.4))
    figure.subplots_adjust(left=0.01, right=0.99, top=0.96, bottom=0.03, wspace=0.04, hspace=0.2)
    grid = figure.subplots(len(GOAL_PHOTOGRAPHS), len(GOALS))
    scores = {}
    for row, name in zip(grid, GOAL_PHOTOGRAPHS, strict=True):
        tried = [(kind, level) for kind in GOAL_KINDS for level in range(1, 6)]
        values = {step: score(model, degraded(name, *step)) for step in tried}
        for goal, axes in zip(GOALS, row, strict=True):
            nearest = min(tried, key=lambda step: abs(values[step] - goal))
            draw_ladder(axes, degraded(name, *nearest), values[nearest], described(*nearest))
            scores[f"{name}, {described(*nearest)}"] = values[nearest]
    save(figure, folder / "score-means.jpg")
    return scores


def save(figure: Figure, path: Path) -> None:
    """A JPEG file of a size that a page can carry."""
    figure.savefig(path, dpi=100, pil_kwargs={"quality": 88, "optimize": True, "subsampling": 0})


def quickstart() -> str:
    """The commands of the README's first block and what they print."""
    printed = io.StringIO()
    before = Path.cwd()
    with tempfile.TemporaryDirectory() as place, contextlib.redirect_stdout(printed):
        os.chdir(place)
        try:
            Image.fromarray(data.rocket()).save("rocket.png")
            for arguments in QUICKSTART:
                sys.argv = ["qualiclip", *arguments]
                with contextlib.suppress(SystemExit):
                    main()
        finally:
            os.chdir(before)
    first, *rest = (line.partition("\t") for line in printed.getvalue().splitlines())
    return "\n".join((first[0], *((name.ljust(28) + values.expandtabs(10)).rstrip() for name, _, values in rest)))


def table(scores: Mapping[str, float]) -> str:
    """A Markdown table of scores, highest first."""
    rows = (f"| {name} | {value:.2f} |" for name, value in sorted(scores.items(), key=lambda row: -row[1]))
    return "\n".join(("| picture | score |", "|---|---|", *rows))


def renew(document: Path, name: str, text: str) -> None:
    """Put a text between ``<!-- name -->`` and ``<!-- end -->``."""
    before = document.read_text(encoding="utf-8")
    block = re.compile(rf"(<!-- {name} -->\n).*?(<!-- end -->)", flags=re.DOTALL)
    after, count = block.subn(lambda found: f"{found[1]}{text}\n{found[2]}", before)
    if count != 1:
        raise SystemExit(f"{document}: expected one block <!-- {name} --> ... <!-- end -->, found {count}")
    document.write_text(after, encoding="utf-8")


def blocks(figures: Mapping[str, Any]) -> dict[str, tuple[str, str]]:
    """What stands in documents, by the name of its block: the document and the text."""
    where = f"Measured by `python results/front/picture.py` ({figures['processor']}, {figures['date']}; "
    where += ", ".join(f"{name} {version}" for name, version in figures["versions"].items()) + ")."
    return {
        "quickstart": ("README.md", f"```text\n{figures['quickstart']}\n```"),
        "no photographs": ("docs/what-a-score-means.md", table(figures["no_photographs"])),
        "photographs": ("docs/what-a-score-means.md", table(figures["photographs"])),
        "measured": ("docs/what-a-score-means.md", where),
    }


def measure() -> None:
    """Write pictures, figures and blocks."""
    model = load_model("lite").eval()
    figures = {
        "front": draw_front(model, ROOT / "docs"),
        "means": draw_means(model, ROOT / "docs"),
        "no_photographs": {name: score(model, tensor(load())) for name, load in NO_PHOTOGRAPHS.items()},
        "photographs": {name: score(model, tensor(whole_photograph(name))) for name in PHOTOGRAPHS},
        "quickstart": quickstart(),
        "processor": processor_name(),
        "date": date.today().isoformat(),
        "versions": versions(),
    }
    (HERE / "figures.json").write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")
    for name, (document, text) in blocks(figures).items():
        renew(ROOT / document, name, text)


if __name__ == "__main__":
    measure()
