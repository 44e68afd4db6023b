"""Colours of a file as sRGB, through its ICC profile."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from functools import lru_cache

import numpy as np
from PIL import Image, ImageCms

from qualiclip_plugin.utils.shown import printable

MAX_PROFILE_BYTES = 2**22
_MODES = {"GRAY": "L", "RGB": "RGB", "CMYK": "CMYK"}
"""Pillow's mode for the colour space of a profile."""
_FITS = {"GRAY": ("1", "L", "LA"), "RGB": ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "YCbCr"), "CMYK": ("CMYK",)}
"""Modes of images that fit a profile of a colour space; grey is then red, green and blue alike."""
SRGB_TOLERANCE = 2
"""Steps of 255 by which a profile may differ from sRGB anywhere and still be sRGB itself, which writers round."""


@dataclass(frozen=True)
class Profile:
    """An ICC profile, ready to be applied.

    Attributes:
        space: Its colour space: ``GRAY``, ``RGB``, ``CMYK``, or one that no image here has.
        transform: To sRGB, from the mode of the colour space; none if it is sRGB itself, or cannot be used.
        problem: Why it cannot be used; empty if it can.
    """

    name: str = ""
    space: str = ""
    transform: ImageCms.ImageCmsTransform | None = field(default=None, compare=False)
    problem: str = ""


def to_srgb(image: Image.Image, profile: bytes | None, apply: bool, notes: list[str]) -> Image.Image:
    """Convert an image of eight bits to sRGB; one that is sRGB already is returned untouched.

    Args:
        image: Of any mode of eight bits.
        apply: Whether to apply it; otherwise what is left undone is noted.
        notes: Receives what was done.
    """
    if image.mode == "LAB":
        notes.append("CIELAB converted to sRGB")
        lab = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB"))
        return ImageCms.buildTransform(lab, _srgb(), "LAB", "RGB").apply(image)
    known = read_profile(profile) if profile else Profile()
    problem = known.problem
    if not problem and known.space and image.mode not in _FITS.get(known.space, ()):
        problem = f"it is for {known.space}, the pixels are {image.mode}"
    if problem:
        notes.append(f"ICC profile ignored: {problem}")
    elif known.transform is not None:
        notes.append(f"colours {'converted from' if apply else 'left in'} {known.name} ({known.space} ICC profile)")
        if apply:
            return _applied(image, known.transform, _MODES[known.space])
    if image.mode == "CMYK":
        notes.append("CMYK converted without a colour profile")
    return image


@lru_cache(maxsize=8)
def read_profile(content: bytes) -> Profile:
    """Read an ICC profile; a broken one says so in ``problem``."""
    if len(content) > MAX_PROFILE_BYTES:
        return Profile(problem=f"it has more than {MAX_PROFILE_BYTES} bytes")
    try:
        opened = ImageCms.ImageCmsProfile(io.BytesIO(content))
        space = opened.profile.xcolor_space.strip()
        name = printable((opened.profile.profile_description or "").strip())[:60] or "an unnamed profile"
        if space not in _MODES:
            return Profile(name, space, problem=f"its colour space is {printable(space)}")
        transform = ImageCms.buildTransform(opened, _srgb(), _MODES[space], "RGB")
    except Exception as error:  # Pillow hands on what LittleCMS says as errors of several kinds
        return Profile(problem=f"it cannot be read ({printable(str(error))[:80]})")
    return Profile(name, space, None if _is_srgb(transform, _MODES[space]) else transform)


def littlecms_version() -> str:
    """Version of the library that converts colours; part of what a stored score is stored under."""
    return str(ImageCms.core.littlecms_version)


@lru_cache(maxsize=1)
def _srgb() -> ImageCms.ImageCmsProfile:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


def _is_srgb(transform: ImageCms.ImageCmsTransform, mode: str) -> bool:
    """Whether a transform leaves all colours where they are, but for rounding."""
    if mode == "CMYK":
        return False
    levels = np.arange(0, 256, 1 if mode == "L" else 15, dtype=np.uint8)
    grid = levels[:, None] if mode == "L" else np.stack(np.meshgrid(levels, levels, levels), -1).reshape(-1, 3)
    probe = Image.fromarray(grid if mode == "L" else grid[:, None])
    moved = np.asarray(transform.apply(probe), dtype=np.int16)[:, 0] - grid
    return int(np.abs(moved).max()) <= SRGB_TOLERANCE


def _applied(image: Image.Image, transform: ImageCms.ImageCmsTransform, mode: str) -> Image.Image:
    alpha = image.convert("RGBA").getchannel("A") if image.has_transparency_data else None
    opaque = image if image.mode == mode else image.convert(mode)
    if mode == "RGB":
        transform.apply_in_place(opaque)
    else:
        opaque = transform.apply(opaque)
    opaque.info.pop("transparency", None)
    if alpha is not None:
        opaque.putalpha(alpha)
    return opaque
