"""Brightness: brighten, darken, mean shift; and of cameras: over- and underexposure, low light, vignetting.

Every curve moves each value in one direction and further as the strength grows, so the ladders are ordered for
every pixel.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qualiclip_plugin.distortions.color import lab_to_rgb, linear_to_srgb, rgb_to_lab, srgb_to_linear
from qualiclip_plugin.distortions.filters import per_image
from qualiclip_plugin.distortions.random_fields import normal_field

_LOW_LIGHT_NOISE = 0.15  # deviation of the noise at white, at strength 1


def _bend(values: Tensor, amount: Tensor) -> Tensor:
    """The parabola through (0, 0), (1/2, 1/2 + amount / 2) and (1, 1)."""
    return values + 2 * amount * values * (1 - values)


def brighten(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Lift the middle tones, black and white stay: two thirds in RGB, one third in lightness (KADID-10k).

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        strength: Amount, (N,); the middle grey rises by half of it.
        noise: Not used.

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    amount = per_image(strength, images)
    lab = rgb_to_lab(images)
    lightness = _bend(lab[:, :1] / 100, amount).clamp_(0, 1) * 100
    bent = _bend(images, amount).clamp_(0, 1)
    return (2 * bent + lab_to_rgb(torch.cat((lightness, lab[:, 1:]), dim=1))) / 3


def darken(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Lower the middle tones, black and white stay; ``strength`` (N,), the middle grey falls by half of it."""
    return _bend(images, -per_image(strength, images)).clamp_(0, 1)


def mean_shift(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add the signed amount ``strength``, (N,), to every value."""
    return (images + per_image(strength, images)).clamp_(0, 1)


def exposure(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Change the exposure by ``strength`` stops, (N,): gain 2**strength in linear light, highlights clip."""
    return linear_to_srgb((srgb_to_linear(images) * per_image(2.0**strength, images)).clamp_(0, 1))


def low_light(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Take away the share ``strength`` in [0, 1], (N,), of the light and put sensor noise in its place."""
    field = normal_field(noise, images.shape[1:], device=images.device).to(images.dtype)
    change = field * _LOW_LIGHT_NOISE * images.sqrt() - images
    return (images + per_image(strength, images) * change).clamp_(0, 1)


def vignette(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Darken towards the corners, which keep 1 - ``strength`` of their value, (N,)."""
    H, W = images.shape[-2:]
    y = torch.linspace(-1, 1, H, device=images.device, dtype=images.dtype)[:, None]
    x = torch.linspace(-1, 1, W, device=images.device, dtype=images.dtype)
    distance = (x.square() + y.square()) / 2
    return images * (1 - per_image(strength, images) * distance)
