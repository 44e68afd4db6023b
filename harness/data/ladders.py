"""The dataset ``ladders``: photographs that ship inside packages, degraded step by step. No download.

Each photograph meets every distortion type of :data:`KINDS` at each of its strengths, with one noise draw per
photograph and type, so that only the strength moves along a ladder. Photographs, types and strengths are those of a
version of the dataset: what the package learns to degrade later does not enter by itself.
"""

from __future__ import annotations

import csv
import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from harness.data.cache import cache_folder, write_manifest
from harness.data.spec import DatasetSpec
from qualiclip_plugin.utils.atomic import atomic_folder, sha256_file
from qualiclip_plugin.utils.errors import DatasetError, disk_errors

if TYPE_CHECKING:
    from qualiclip_plugin.distortions import Distortion

Pixels = NDArray[np.uint8]

SIDE = 320
"""Longest side of the centre that is used, in pixels: whole photographs would take several times as long."""

PRISTINE = "pristine"
FULL_REFERENCE = ("psnr", "ssim", "gmsd")


PHOTOGRAPHS: Mapping[str, tuple[str, str]] = {
    "astronaut": ("skimage", "astronaut"),
    "chelsea": ("skimage", "chelsea"),
    "coffee": ("skimage", "coffee"),
    "motorcycle": ("skimage", "stereo_motorcycle"),
    "rocket": ("skimage", "rocket"),
    "grace_hopper": ("matplotlib", "sample_data/grace_hopper.jpg"),
    "caps": ("pyiqa", "ref_dir/I03.bmp"),
    "red_hat": ("pyiqa", "ref_dir/I04.bmp"),
    "boat": ("pyiqa", "ref_dir/I06.bmp"),
    "houses": ("pyiqa", "ref_dir/I08.bmp"),
    "lighthouse": ("pyiqa", "ref_dir/I19.bmp"),
}
"""Colour photographs inside wheels that the project needs anyway; graphics, textures and grey pictures are left out.

Five of scikit-image's gallery; Grace Hopper of matplotlib's sample data (US Navy, public domain); five of Kodak's
"lossless true color" photographs, released for unrestricted use, as pyiqa ships them to calibrate its metrics. The
last are also contents of LIVE and of TID2008 and TID2013: the dataset says so to scorers that were trained on those.
"""

KINDS: Mapping[str, tuple[float, ...]] = {
    "gaussian_blur": (0.5, 2, 5),
    "lens_blur": (1, 2, 8),
    "motion_blur": (3, 9, 21),
    "camera_shake": (0.2, 0.6, 1),
    "color_diffusion": (0.15, 0.5, 1),
    "color_shift": (0.2, 0.6, 1),
    "jpeg2000": (16, 45, 170),
    "jpeg": (69, 20, 5),
    "white_noise": (0.001, 0.003, 0.01),
    "impulse_noise": (0.001, 0.01, 0.03),
    "shot_noise": (0.001, 0.008, 0.05),
    "blotchy_noise": (0.015, 0.04, 0.085),
    "brighten": (0.1, 0.4, 1.1),
    "darken": (0.05, 0.2, 0.8),
    "overexposure": (0.3, 1, 2.2),
    "low_light": (0.2, 0.55, 0.85),
    "jitter": (0.05, 0.2, 1),
    "pixelate": (2, 8, 32),
    "quantization": (32, 8, 2),
    "color_block": (2, 6, 10),
    "resize": (1.5, 3, 6),
    "high_sharpen": (1, 3, 12),
    "contrast_up": (0, 0.3, 0.8),
    "contrast_down": (-0.3, -0.5, -0.75),
    "haze": (0.2, 0.5, 0.8),
}
"""Distortion types of version 3 and their strengths, mild to severe. Another type or strength is another version."""


def generate(spec: DatasetSpec) -> Path:
    """Generate the ladders, unless the same recipe was followed before.

    Args:
        spec: Its version is part of the recipe.

    Returns:
        A folder with images and ``metadata.csv``.

    Raises:
        DatasetError: A photograph is not in the installed packages, or the folder cannot be written.
    """
    photographs = {name: photograph(name) for name in PHOTOGRAPHS}
    folder = cache_folder("datasets", spec.name, recipe_hash(spec, photographs))
    if folder.is_dir():
        return folder
    with disk_errors(folder, DatasetError), atomic_folder(folder) as partial:
        write_ladders(partial, photographs)
        names = [path.relative_to(partial).as_posix() for path in partial.rglob("*") if path.is_file()]
        write_manifest(partial, {name: sha256_file(partial / name) for name in names})
    return folder


def photograph(name: str) -> Pixels:
    """The centre of a photograph, RGB, uint8, (H, W, 3), at most ``SIDE`` on either side.

    Raises:
        DatasetError: The installed packages do not have it.
    """
    try:
        pixels = whole_photograph(name)
    except Exception as error:
        raise DatasetError(f"ladders: no installed package provides the photograph {name}: {error}") from error
    top, left = (max(0, size - SIDE) // 2 for size in pixels.shape[:2])
    return np.ascontiguousarray(pixels[top : top + SIDE, left : left + SIDE])


def whole_photograph(name: str) -> Pixels:
    """A photograph as its package has it, RGB, uint8, (H, W, 3)."""
    package, place = PHOTOGRAPHS[name]
    if package == "skimage":
        from skimage import data

        found = getattr(data, place)()
        return np.asarray(found[0] if isinstance(found, tuple) else found)  # of a stereo pair the left one
    from PIL import Image

    (path,) = (file for file in metadata.files(package) or () if file.as_posix().endswith(place))
    with Image.open(str(path.locate())) as image:
        return np.asarray(image.convert("RGB"))


def recipe_hash(spec: DatasetSpec, photographs: Mapping[str, Pixels]) -> str:
    """Fingerprint of all that decides the pixels: version, photographs, distortions and library versions."""
    recipe = {
        "version": spec.version,
        "photographs": {name: hashlib.sha256(p.tobytes()).hexdigest() for name, p in photographs.items()},
        "strengths": KINDS,
        "versions": {name: metadata.version(name) for name in ("torch", "torchvision", "Pillow", "numpy")},
    }
    return hashlib.sha256(json.dumps(recipe, sort_keys=True).encode()).hexdigest()[:16]


def ladder(pixels: Pixels, kind: Distortion, strengths: Sequence[float], seed: int) -> list[Pixels]:
    """One photograph (H, W, 3) at every strength of one distortion type, mild to severe."""
    import torch

    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    steps = []
    for strength in strengths:
        noise = torch.tensor([seed])
        degraded = kind.apply(image.clone(), torch.tensor([float(strength)]), noise)
        steps.append((degraded[0].permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8).numpy())
    return steps


def full_reference(degraded: Pixels, pristine: Pixels) -> dict[str, float]:
    """Qualities of a degraded photograph (H, W, 3) by comparison with the pristine one, higher is better.

    PSNR in dB (100 for equal images), SSIM (Wang et al. 2004) of the luma, and GMSD (Xue et al. 2014) negated.
    """
    import torch
    from skimage.color import rgb2gray
    from skimage.metrics import structural_similarity

    from qualiclip_plugin.utils.gmsd import gmsd

    error = np.mean(np.square(degraded.astype(np.float64) - pristine))
    first, second = (torch.from_numpy(image).permute(2, 0, 1)[None].float() / 255 for image in (degraded, pristine))
    values = (
        10 * np.log10(255**2 / error) if error else 100.0,
        structural_similarity(rgb2gray(degraded), rgb2gray(pristine), data_range=1.0),
        -float(gmsd(first, second)),
    )
    return {name: round(float(value), 6) for name, value in zip(FULL_REFERENCE, values, strict=True)}


def write_ladders(folder: Path, photographs: Mapping[str, Pixels]) -> None:
    """Write all images as PNG and their ``metadata.csv``."""
    with (folder / "metadata.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, ["file_name", "reference", "distortion", "level", *FULL_REFERENCE])
        writer.writeheader()
        for row, pixels in rows(photographs):
            _save(folder / row["file_name"], pixels)
            writer.writerow(row)


def rows(photographs: Mapping[str, Pixels]) -> Iterator[tuple[dict[str, Any], Pixels]]:
    """Labels and pixels (H, W, 3) of every image of the dataset, the pristine photographs first."""
    from qualiclip_plugin.distortions import DISTORTIONS

    for reference, pixels in photographs.items():
        yield _row(reference, "", 0), pixels
        for name, strengths in KINDS.items():
            # zlib.crc32 is the same in every process, unlike hash().
            steps = ladder(pixels, DISTORTIONS[name], strengths, seed=zlib.crc32(f"{reference}/{name}".encode()))
            for level, degraded in enumerate(steps, start=1):
                yield {**_row(reference, name, level), **full_reference(degraded, pixels)}, degraded


def _row(reference: str, distortion: str, level: int) -> dict[str, Any]:
    name = f"{reference}/{distortion}_{level}.png" if distortion else f"{reference}/{PRISTINE}.png"
    return {"file_name": name, "reference": reference, "distortion": distortion, "level": level}


def _save(path: Path, pixels: Pixels) -> None:
    from PIL import Image

    path.parent.mkdir(exist_ok=True)
    Image.fromarray(pixels).save(path, compress_level=1)
