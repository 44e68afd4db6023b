"""Blur: Gaussian, lens (disk) and motion. Kernels after MATLAB's fspecial, as KADID-10k used it."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qualiclip_plugin.distortions.filters import correlate, gaussian_filter
from qualiclip_plugin.distortions.random_fields import uniform_field

_NEGLIGIBLE = 1e-9
_DISK_COLUMNS = 32  # strips per pixel in which the disk's area is integrated
_SHAKE_LENGTH = (6.0, 24.0)  # pixels that the picture travels while the hand moves
_SHAKE_STEPS = 96


def gaussian_blur(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Blur each image with its own Gaussian kernel.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        strength: Standard deviation in pixels, (N,).
        noise: Not used.

    Returns:
        Blurred images in [0, 1], (N, 3, H, W).
    """
    return gaussian_filter(images, strength).clamp_(0, 1)


def _normalised(kernels: Tensor) -> Tensor:
    # What float rounding leaves of a distance of nought would keep a line of length 1 from being the identity.
    kernels = kernels.masked_fill(kernels < _NEGLIGIBLE, 0)
    return kernels / kernels.sum(dim=(1, 2), keepdim=True)


def disk_kernel(radius: Tensor) -> Tensor:
    """The exact shadow of a disk on the pixel grid: every weight is the area of the pixel inside the disk.

    Args:
        radius: In pixels, (N,).

    Returns:
        Non-negative kernels that sum to 1, (N, k, k) with k = 2 ceil(max radius) + 1.
    """
    reach = math.ceil(float(radius.max()))
    centre = torch.arange(-reach, reach + 1, dtype=torch.float64)
    strips = (torch.arange(_DISK_COLUMNS, dtype=torch.float64) + 0.5) / _DISK_COLUMNS - 0.5
    column = centre[:, None] + strips
    radius = radius.to("cpu", torch.float64)[:, None, None]
    half_chord = (radius.square() - column.square()).clamp_min(0).sqrt()[:, None]
    low, high = (centre - 0.5)[:, None, None], (centre + 0.5)[:, None, None]
    inside = half_chord.clamp(min=low, max=high) - (-half_chord).clamp(min=low, max=high)
    return _normalised(inside.mean(dim=-1))


def lens_blur(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Defocus: average over a disk of ``strength`` pixels radius, (N,). Shapes as in :func:`gaussian_blur`."""
    return correlate(images, disk_kernel(strength)).clamp_(0, 1)


def _line_coordinates(angle: Tensor, reach: int) -> tuple[Tensor, Tensor]:
    """Distances of the pixels of a grid from the origin, along lines and across them, each (N, k, k)."""
    angle = angle.to("cpu", torch.float64)[:, None, None]
    x = torch.arange(-reach, reach + 1, dtype=torch.float64)
    y = -x[:, None]
    return x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()


def line_kernel(length: Tensor, angle: Tensor) -> Tensor:
    """An antialiased line of one pixel's width through the origin.

    Each weight falls linearly from 1 on the line to 0 at one pixel's distance, ends included (fspecial "motion").

    Args:
        length: In pixels, (N,); 1 is the identity.
        angle: In radians, counter-clockwise from the horizontal, (N,).

    Returns:
        Kernels that sum to 1, (N, k, k).
    """
    half = ((length.to("cpu", torch.float64) - 1) / 2).clamp_min(0)[:, None, None]
    along, across = _line_coordinates(angle, math.ceil(float(half.max())) + 1)
    beyond = (along.abs() - half).clamp_min(0)
    return _normalised((1 - torch.hypot(across, beyond)).clamp_min(0))


def shake_kernel(length: Tensor, angle: Tensor) -> Tensor:
    """A line as :func:`line_kernel`, but its weight falls linearly from the middle to nothing at both ends."""
    half = (length.to("cpu", torch.float64) / 2).clamp_min(1)[:, None, None]
    along, across = _line_coordinates(angle, math.ceil(float(half.max())))
    return _normalised((1 - across.abs()).clamp_min(0) * (1 - along.abs() / half).clamp_min(0))


def motion_blur(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Shake along a straight line of ``strength`` pixels, (N,), at an angle drawn from the seed.

    The hand speeds up and brakes: most of the light falls in the middle. At constant speed a longer line undoes the
    blur of a shorter one on a striped surface.
    """
    angle = uniform_field(noise, (1,))[:, 0] * math.pi
    return correlate(images, shake_kernel(strength, angle)).clamp_(0, 1)


def motion_blur_uniform(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Shake at constant speed along a line of ``strength`` pixels, (N,), at an angle drawn from the seed."""
    angle = uniform_field(noise, (1,))[:, 0] * math.pi
    return correlate(images, line_kernel(strength, angle)).clamp_(0, 1)


def shake_path(noise: Tensor) -> Tensor:
    """Where the picture is while an unsteady hand moves: a bent path that is travelled at uneven speed.

    Args:
        noise: Seeds, int64, (N,).

    Returns:
        Places after equal times, in pixels as (x, y) around their mean, (N, T, 2); 6 to 24 pixels from start to end
        where the path is straight.
    """
    draw = uniform_field(noise, (6,)).double()[..., None]
    time = (torch.arange(_SHAKE_STEPS, dtype=torch.float64) + 0.5) / _SHAKE_STEPS
    start, bend, turns, phase, pause, length = draw.unbind(1)
    angle = 2 * math.pi * (start + 0.4 * bend * torch.sin(math.pi * (1 + turns) * time + 2 * math.pi * phase))
    # Between rests at which most of the light falls, the hand is quick: double contours, as in real photographs.
    speed = 1 + 0.9 * torch.cos(2 * math.pi * (time + pause))
    low, high = _SHAKE_LENGTH
    step = (low + (high - low) * length) * speed / _SHAKE_STEPS
    places = torch.stack((angle.cos() * step, angle.sin() * step), dim=-1).cumsum(1)
    return places - places.mean(1, keepdim=True)


def path_kernel(places: Tensor) -> Tensor:
    """The light that a point leaves on its way over the pixel grid.

    Args:
        places: In pixels as (x, y), (N, T, 2); each shares its light linearly among the four pixels around it.

    Returns:
        Kernels that sum to 1, (N, k, k).
    """
    reach = math.ceil(float(places.abs().max())) + 1
    grid = torch.arange(-reach, reach + 1, dtype=places.dtype)
    shares = (1 - (places[..., None] - grid).abs()).clamp_min(0)
    return _normalised(torch.einsum("ntx,nty->nyx", shares[:, :, 0], shares[:, :, 1]))


def camera_shake(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """The hand moves during the share ``strength`` in [0, 1], (N,), of the exposure, along a path of its own.

    The rest of the light falls where it should, so the error grows evenly with the strength, whatever the picture.
    """
    moving = path_kernel(shake_path(noise))
    still = torch.zeros_like(moving)
    still[:, still.shape[1] // 2, still.shape[2] // 2] = 1
    return correlate(images, torch.lerp(still, moving, strength.to("cpu", torch.float64)[:, None, None])).clamp_(0, 1)
