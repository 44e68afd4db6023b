"""The 24 types of ARNIQA's table image by image, as one writes them with Pillow, SciPy and scikit-image.

What the batched functions are timed against; ``bench_degradations`` also compares how strong both are. Each takes
an image (H, W, 3), float64 in [0, 1], a strength of the table ``arniqa`` and a NumPy generator.
"""

from __future__ import annotations

import io
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from scipy.interpolate import CubicSpline
from skimage import color, filters, util

from qualiclip_plugin.distortions.color import YCBCR_TO_RGB

Pixels = NDArray[np.float64]
Degrade = Callable[[Pixels, float, np.random.Generator], Pixels]


def _per_channel(function: Callable[[Pixels], Pixels], image: Pixels) -> Pixels:
    return np.stack([function(channel) for channel in np.moveaxis(image, -1, 0)], axis=-1)


def _decoded(image: Pixels, codec: str, **options: object) -> Pixels:
    buffer = io.BytesIO()
    Image.fromarray(util.img_as_ubyte(image)).save(buffer, codec, **options)
    return np.asarray(Image.open(buffer).convert("RGB")) / 255


def _lens_blur(image: Pixels, radius: float, draws: np.random.Generator) -> Pixels:
    reach = int(np.ceil(radius))
    y, x = np.mgrid[-reach : reach + 1, -reach : reach + 1]
    disk = (np.hypot(y, x) <= radius).astype(float)
    return _per_channel(lambda plane: ndimage.correlate(plane, disk / disk.sum(), mode="nearest"), image)


def _motion_blur(image: Pixels, length: float, draws: np.random.Generator) -> Pixels:
    size = int(length) // 2 * 2 + 1
    line = np.zeros((size, size))
    line[size // 2] = 1
    kernel = np.clip(ndimage.rotate(line, draws.uniform(0, 180), reshape=False, order=1), 0, None)
    return _per_channel(lambda plane: ndimage.correlate(plane, kernel / kernel.sum(), mode="nearest"), image)


def _color_diffusion(image: Pixels, amount: float, draws: np.random.Generator) -> Pixels:
    lab = color.rgb2lab(image)
    lab[..., 1:] = amount * _per_channel(lambda plane: ndimage.gaussian_filter(plane, 1.5 * amount + 2), lab[..., 1:])
    return color.lab2rgb(lab)


def _color_shift(image: Pixels, distance: float, draws: np.random.Generator) -> Pixels:
    angle = draws.uniform(0, 2 * np.pi)
    green = image[..., 1]
    moved = ndimage.shift(
        green, np.round(distance * np.array([np.sin(angle), np.cos(angle)])), order=0, mode="nearest"
    )
    edges = ndimage.gaussian_filter(filters.sobel(color.rgb2gray(image)), 4)
    mask = (edges - edges.min()) / max(np.ptp(edges), 1e-6)
    return np.dstack([image[..., 0], green + (moved - green) * mask, image[..., 2]])


def _saturation_hsv(image: Pixels, factor: float, draws: np.random.Generator) -> Pixels:
    hsv = color.rgb2hsv(image)
    hsv[..., 1] *= factor
    return color.hsv2rgb(hsv)


def _saturation_lab(image: Pixels, factor: float, draws: np.random.Generator) -> Pixels:
    lab = color.rgb2lab(image)
    lab[..., 1:] *= factor
    return color.lab2rgb(lab)


def _color_noise(image: Pixels, variance: float, draws: np.random.Generator) -> Pixels:
    noise = draws.normal(0, variance**0.5, image.shape) @ np.array(YCBCR_TO_RGB).T
    return image + noise


def _brighten(image: Pixels, amount: float, draws: np.random.Generator) -> Pixels:
    curve = CubicSpline([0, 0.5, 1], [0, 0.5 + amount / 2, 1])
    lab = color.rgb2lab(image)
    lab[..., 0] = 100 * np.clip(curve(lab[..., 0] / 100), 0, 1)
    return (2 * np.clip(curve(image), 0, 1) + color.lab2rgb(lab)) / 3


def _jitter(image: Pixels, deviation: float, draws: np.random.Generator) -> Pixels:
    places = np.mgrid[: image.shape[0], : image.shape[1]].astype(float)
    for _ in range(5):
        moved = places + draws.normal(0, deviation, places.shape)
        image = _per_channel(lambda plane: ndimage.map_coordinates(plane, moved, order=1, mode="nearest"), image)  # noqa: B023 (called at once)
    return image


def _patches(image: Pixels, count: float, draws: np.random.Generator) -> Pixels:
    moved = image.copy()
    height, width = image.shape[:2]
    for _ in range(int(count)):
        top, left = draws.integers(0, (height - 16, width - 16))
        y, x = np.clip(np.add((top, left), draws.integers(-8, 9, 2)), 0, (height - 16, width - 16))
        moved[top : top + 16, left : left + 16] = image[y : y + 16, x : x + 16]
    return moved


def _pixelate(image: Pixels, strength: float, draws: np.random.Generator) -> Pixels:
    picture = Image.fromarray(util.img_as_ubyte(image))
    small = [max(1, int(side * (0.95 - strength**0.6))) for side in picture.size]
    return (
        np.asarray(picture.resize(small, Image.Resampling.NEAREST).resize(picture.size, Image.Resampling.NEAREST))
        / 255
    )


def _quantization(image: Pixels, count: float, draws: np.random.Generator) -> Pixels:
    steps = np.minimum(np.floor(image * count), count - 1)
    return (steps - steps.min()) / max(np.ptp(steps), 1)


def _color_blocks(image: Pixels, count: float, draws: np.random.Generator) -> Pixels:
    covered = image.copy()
    for _ in range(int(count)):
        top, left = draws.integers(0, (image.shape[0] - 32, image.shape[1] - 32))
        covered[top : top + 32, left : left + 32] = draws.uniform(size=3)
    return covered


def _sharpen(image: Pixels, amount: float, draws: np.random.Generator) -> Pixels:
    grey = color.rgb2gray(image)
    return image + amount * (grey - ndimage.gaussian_filter(grey, 3))[..., None]


def _linear_contrast(image: Pixels, amount: float, draws: np.random.Generator) -> Pixels:
    return CubicSpline([0, 0.3, 0.5, 0.7, 1], [0, 0.25 - amount / 4, 0.5, 0.75 + amount / 4, 1])(image)


USUAL: dict[str, Degrade] = {
    "gaussian_blur": lambda image, sigma, _: ndimage.gaussian_filter(image, (sigma, sigma, 0), mode="nearest"),
    "lens_blur": _lens_blur,
    "motion_blur": _motion_blur,
    "color_diffusion": _color_diffusion,
    "color_shift": _color_shift,
    "saturation_hsv": _saturation_hsv,
    "saturation_lab": _saturation_lab,
    "jpeg2000": lambda image, ratio, _: _decoded(image, "JPEG2000", quality_mode="rates", quality_layers=[ratio]),
    "jpeg": lambda image, quality, _: _decoded(image, "JPEG", quality=int(quality)),
    "white_noise": lambda image, var, draws: util.random_noise(image, "gaussian", rng=draws, var=var),
    "color_noise": _color_noise,
    "impulse_noise": lambda image, share, draws: util.random_noise(image, "s&p", rng=draws, amount=share),
    "multiplicative_noise": lambda image, variance, draws: util.random_noise(
        image, "speckle", rng=draws, var=variance
    ),
    "brighten": _brighten,
    "darken": lambda image, amount, _: CubicSpline([0, 0.5, 1], [0, 0.5 - amount / 2, 1])(image),
    "mean_shift": lambda image, amount, _: image + amount,
    "jitter": _jitter,
    "non_eccentricity_patch": _patches,
    "pixelate": _pixelate,
    "quantization": _quantization,
    "color_block": _color_blocks,
    "high_sharpen": _sharpen,
    "linear_contrast": _linear_contrast,
    "nonlinear_contrast": lambda image, half, _: 0.5 + (image - 0.5) * 2 * half,
}


def degrade_usually(image: Pixels, name: str, strength: float, draws: np.random.Generator) -> Pixels:
    """One image under one type of the table ``arniqa``: (H, W, 3), float64 in [0, 1]."""
    return np.clip(USUAL[name](image, strength, draws), 0, 1)
