"""Colour: diffusion, shift and saturation; and the colour spaces they need (sRGB, D65)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from qualiclip_plugin.distortions.filters import gaussian_filter, per_image
from qualiclip_plugin.distortions.random_fields import uniform_field

# IEC 61966-2-1 and CIE 15: linear sRGB to XYZ, relative to the D65 white (the rows sum to 1 after division).
_WHITE = (0.95047, 1.0, 1.08883)
_RGB_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
# JFIF and T.800, six digits as in the latter: the columns are the RGB directions of Y, Cb, Cr.
YCBCR_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136, -0.714136), (1.0, 1.772, 0.0))
_DIFFUSION = 6.0  # the amount of KADID-10k's third level
_NEAREST, _FURTHEST = 3.0, 12.0  # pixels by which color_shift moves, KADID-10k's levels 2 to 5
_EDGE_SIGMA = 4.0  # smoothing of the edge map in color_shift, KADID-10k


def mix_channels(images: Tensor, matrix: Tensor) -> Tensor:
    """Multiply the channels (N, 3, H, W) by a 3 x 3 matrix."""
    return torch.einsum("ij,njhw->nihw", matrix.to(images, non_blocking=True), images)


def srgb_to_linear(values: Tensor) -> Tensor:
    """sRGB in [0, 1] to linear light in [0, 1]."""
    return torch.where(values <= 0.04045, values / 12.92, ((values.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)


def linear_to_srgb(values: Tensor) -> Tensor:
    """Linear light in [0, 1] to sRGB in [0, 1]."""
    return torch.where(values <= 0.0031308, values * 12.92, 1.055 * values.clamp_min(0.0031308) ** (1 / 2.4) - 0.055)


def _to_relative_xyz(device: torch.device) -> Tensor:
    matrix = torch.tensor(_RGB_TO_XYZ, dtype=torch.float64)
    return (matrix / torch.tensor(_WHITE, dtype=torch.float64)[:, None]).to(device, non_blocking=True)


def rgb_to_lab(images: Tensor) -> Tensor:
    """sRGB in [0, 1], (N, 3, H, W), to CIE L*a*b* (D65): L in [0, 100], a and b about [-110, 110]."""
    xyz = mix_channels(srgb_to_linear(images), _to_relative_xyz(images.device))
    f = torch.where(xyz > 0.008856, xyz.clamp_min(0.008856) ** (1 / 3), 7.787 * xyz + 16 / 116)
    x, y, z = f.unbind(1)
    return torch.stack((116 * y - 16, 500 * (x - y), 200 * (y - z)), dim=1)


def lab_to_rgb(lab: Tensor) -> Tensor:
    """CIE L*a*b* (D65), (N, 3, H, W), to sRGB; colours outside the gamut are clipped to [0, 1]."""
    lightness, a, b = lab.unbind(1)
    y = (lightness + 16) / 116
    f = torch.stack((y + a / 500, y, y - b / 200), dim=1)
    xyz = torch.where(f > 0.2068966, f**3, (f - 16 / 116) / 7.787)
    rgb = mix_channels(xyz, torch.linalg.inv(_to_relative_xyz(torch.device("cpu"))))
    return linear_to_srgb(rgb.clamp_(0, 1))


def luma(images: Tensor) -> Tensor:
    """ITU-R BT.601 luma, (N, 1, H, W)."""
    return mix_channels(images, torch.tensor([[0.299, 0.587, 0.114]]))


def _diffused(images: Tensor, amount: Tensor) -> Tensor:
    lab = rgb_to_lab(images)
    chroma = gaussian_filter(lab[:, 1:], 1.5 * amount + 2) * per_image(amount, images)
    return lab_to_rgb(torch.cat((lab[:, :1], chroma), dim=1))


def color_diffusion(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Let the colours flow: fade to the picture whose a*, b* are blurred and amplified, its lightness kept.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        strength: Share of the diffused picture in [0, 1], (N,).
        noise: Not used.

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    diffused = _diffused(images, torch.full((len(images),), _DIFFUSION))
    return torch.lerp(images, diffused, per_image(strength, images))


def color_diffusion_amount(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Blur a* and b* with deviation 1.5 ``strength`` + 2 pixels and multiply them by ``strength`` (KADID-10k)."""
    return _diffused(images, strength)


def edge_map(images: Tensor) -> Tensor:
    """Smoothed gradient magnitude of the grey image, scaled to [0, 1] in each image, (N, 1, H, W)."""
    grey = luma(images)
    down = torch.diff(grey, dim=2, append=grey[:, :, -1:])
    right = torch.diff(grey, dim=3, append=grey[..., -1:])
    edges = gaussian_filter(torch.hypot(down, right), torch.full((len(images),), _EDGE_SIGMA))
    low, high = edges.amin(dim=(1, 2, 3), keepdim=True), edges.amax(dim=(1, 2, 3), keepdim=True)
    return (edges - low) / (high - low).clamp_min(1e-6)


def translate(planes: Tensor, down: Tensor, right: Tensor) -> Tensor:
    """Move each plane (N, C, H, W) by whole pixels (N,); the border pixels repeat."""
    N, C, H, W = planes.shape
    device = planes.device
    rows = (torch.arange(H, device=device) - down.to(device)[:, None]).clamp_(0, H - 1)
    columns = (torch.arange(W, device=device) - right.to(device)[:, None]).clamp_(0, W - 1)
    index = (rows[:, :, None] * W + columns[:, None, :]).view(N, 1, H * W)
    return planes.reshape(N, C, H * W).gather(2, index.expand(N, C, H * W)).view(N, C, H, W)


def _shift_green(images: Tensor, distance: Tensor, angle: Tensor, opacity: Tensor) -> Tensor:
    """Lay the green plane, moved by ``distance`` pixels (N,), over itself near the edges."""
    down, right = ((distance * wave).round().long() for wave in (angle.sin(), angle.cos()))
    green = images[:, 1:2]
    moved = torch.lerp(green, translate(green, down, right), edge_map(images) * per_image(opacity, images))
    return torch.cat((images[:, :1], moved, images[:, 2:]), dim=1).clamp_(0, 1)


def color_shift(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Move the green plane near edges, by a distance and in a direction drawn from the seed.

    The strength is the opacity of the moved plane, (N,). A growing distance would not order the levels: where the
    scene repeats itself, a plane moved further fits better again.
    """
    draw = uniform_field(noise, (2,))
    distance = _NEAREST + (_FURTHEST - _NEAREST) * draw[:, 1]
    return _shift_green(images, distance, draw[:, 0] * 2 * math.pi, strength)


def color_shift_distance(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Move the green plane near edges by ``strength`` pixels, (N,), in a direction drawn from the seed."""
    angle = uniform_field(noise, (1,))[:, 0] * 2 * math.pi
    return _shift_green(images, strength.cpu(), angle, torch.ones(len(images)))


def saturation_hsv(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Multiply the HSV saturation by ``strength``, (N,); below 0 the colour turns into its complement.

    With hue and value fixed, each channel is value - saturation * something, so no conversion is needed.
    """
    value = images.amax(dim=1, keepdim=True)
    return (value - (value - images) * per_image(strength, images)).clamp_(0, 1)


def saturation_lab(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Multiply a* and b* by ``strength``, (N,); 1 is the identity."""
    lab = rgb_to_lab(images)
    return lab_to_rgb(torch.cat((lab[:, :1], lab[:, 1:] * per_image(strength, images)), dim=1))
