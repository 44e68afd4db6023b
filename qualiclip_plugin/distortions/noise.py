"""Noise: white, white in colour components, impulse, multiplicative; and of cameras: shot and blotchy noise.

Each is images + size(strength) * field with a field drawn from the seed, clipped to [0, 1]. Clipping towards an
interval that holds the pristine value keeps the order, so a shared seed orders every pixel, not only the mean.
"""

from __future__ import annotations

import torch
from torch import Tensor

from qualiclip_plugin.distortions.color import YCBCR_TO_RGB, mix_channels
from qualiclip_plugin.distortions.filters import gaussian_filter, per_image
from qualiclip_plugin.distortions.random_fields import normal_field, uniform_field

_BLOTCH_SIGMA = 1.5  # pixels: what demosaicking and denoising leave of the sensor's noise


def _normal(images: Tensor, noise: Tensor) -> Tensor:
    return normal_field(noise, images.shape[1:], device=images.device).to(images.dtype)


def white_noise(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add white Gaussian noise to each channel.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        strength: Variance, (N,).
        noise: Seeds, int64, (N,).

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    return (images + _normal(images, noise) * per_image(strength.sqrt(), images)).clamp_(0, 1)


def color_noise(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add white Gaussian noise of variance ``strength``, (N,), to Y, Cb and Cr."""
    rgb = mix_channels(_normal(images, noise), torch.tensor(YCBCR_TO_RGB))
    return (images + rgb * per_image(strength.sqrt(), images)).clamp_(0, 1)


def impulse_noise(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Set a share ``strength``, (N,), of the values to 0 or 1, half each; a higher share holds the lower one."""
    draw = uniform_field(noise, images.shape[1:], device=images.device)
    share = per_image(strength, images)
    salted = images.masked_fill(draw < share / 2, 1.0)
    return salted.masked_fill_(draw > 1 - share / 2, 0.0)


def multiplicative_noise(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add white Gaussian noise whose deviation is sqrt(``strength``) times the value; speckle."""
    return (images + images * _normal(images, noise) * per_image(strength.sqrt(), images)).clamp_(0, 1)


def shot_noise(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add Gaussian noise whose variance is ``strength`` times the value, as photon counting gives it."""
    return (images + _normal(images, noise) * (images * per_image(strength, images)).sqrt_()).clamp_(0, 1)


def blotchy_noise(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Add noise of standard deviation ``strength``, (N,), correlated over a few pixels as a camera leaves it."""
    field = gaussian_filter(_normal(images, noise), torch.full((len(images),), _BLOTCH_SIGMA))
    # A Gaussian filter divides the deviation of white noise by 2 sqrt(pi) sigma.
    gain = 2 * torch.pi**0.5 * _BLOTCH_SIGMA
    return (images + field * per_image(gain * strength, images)).clamp_(0, 1)
