"""Sharpness and contrast: sharpening, the two contrast curves; and of the world: haze.

All are images + strength * direction with a direction that the strength does not change, clipped to [0, 1]: the
distance to the pristine value never falls.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qualiclip_plugin.distortions.color import luma
from qualiclip_plugin.distortions.filters import gaussian_filter, per_image
from qualiclip_plugin.distortions.random_fields import uniform_field

_SHARPEN_SIGMA = 3.0  # pixels
_AMOUNT_OF_IDENTITY = -0.2  # KADID-10k's linear contrast leaves the picture as it is at -0.2, not at 0


def high_sharpen(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add ``strength`` times the luma's detail (unsharp mask) to all channels.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        strength: Amount, (N,).
        noise: Not used.

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    grey = luma(images)
    detail = grey - gaussian_filter(grey, torch.full((len(images),), _SHARPEN_SIGMA))
    return (images + detail * per_image(strength, images)).clamp_(0, 1)


def linear_contrast(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Bend the tone curve through (.3, .25 - s/4), (.5, .5), (.7, .75 + s/4), ends fixed, for s = strength, (N,).

    The not-a-knot spline through these points (KADID-10k) is the identity plus (s + .2) times one odd cubic.
    """
    centred = images - 0.5
    cubic = (1.25 / 0.84) * centred * (1 - 4 * centred.square())
    return (images + per_image(strength - _AMOUNT_OF_IDENTITY, images) * cubic).clamp_(0, 1)


def nonlinear_contrast(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Squeeze the range to 1/2 -+ ``strength``, (N,); 1/2 is the identity. KADID-10k's name for it."""
    return (0.5 + (images - 0.5) * (2 * per_image(strength, images))).clamp_(0, 1)


def haze(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Veil the scene in bright air: ``strength`` in [0, 1], (N,), is the air's share where it is thickest."""
    draw = uniform_field(noise, (3,), device=images.device).to(images.dtype).view(-1, 3, 1, 1)
    air = 0.75 + 0.2 * draw[:, :1]
    depth = torch.linspace(1, 0.5, images.shape[2], device=images.device, dtype=images.dtype).view(1, 1, -1, 1)
    return torch.lerp(images, air, per_image(strength, images) * depth)
