"""Linear filters with a kernel of their own for each sample of a batch."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

_NEGLIGIBLE = 1e-12


def per_image(values: Tensor, images: Tensor) -> Tensor:
    """Shape one number per sample, (N,), so that it multiplies images (N, 3, H, W); on their device and dtype."""
    return values.to(device=images.device, dtype=images.dtype, non_blocking=True).view(-1, 1, 1, 1)


def gaussian_operator(sigma: Tensor, size: int) -> Tensor:
    """Matrices that blur a line of pixels with a Gaussian.

    The line continues as its mirror image (half-sample symmetry, scipy's ``reflect``). The cosine transform then
    diagonalises every one of these matrices, each frequency's response falls as sigma grows, and so the distance
    to the unblurred line never falls: the ladder is ordered for any picture.

    Args:
        sigma: Standard deviation in pixels, (N,).

    Returns:
        Operators with rows that sum to 1, (N, size, size).
    """
    # The mirrored line repeats after 2 * size pixels: one period of the kernel holds all that is needed.
    period = 2 * size
    repeats = math.ceil(6 * float(sigma.max()) / period) if len(sigma) else 0
    distance = torch.arange(period, device=sigma.device, dtype=sigma.dtype)
    distance = distance + period * torch.arange(-repeats - 1, repeats + 1, device=sigma.device)[:, None]
    precision = (0.5 / sigma.square().clamp_min(1e-6))[:, None, None]
    kernel = torch.exp(-precision * distance.square()).sum(dim=1)
    kernel /= kernel.sum(dim=1, keepdim=True)
    # Denormal numbers would make the matrix product ten times slower.
    kernel = kernel.masked_fill_(kernel < _NEGLIGIBLE, 0)
    position = torch.arange(size, device=sigma.device)
    difference = (position[:, None] - position) % period
    mirrored = position[:, None] + position + 1
    return kernel[:, difference] + kernel[:, mirrored]


def separable(images: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Apply one operator along the height and one along the width.

    Dense matrix products: at training crops they beat depthwise convolutions, and a GPU has nothing faster.

    Args:
        images: (N, C, H, W).
        rows: Operators along the height, (N, H', H).
        columns: Operators along the width, (N, W', W).

    Returns:
        (N, C, H', W').
    """
    N, C, H, W = images.shape
    along_width = torch.bmm(images.reshape(N, C * H, W), columns.transpose(1, 2))
    stacked = along_width.view(N, C, H, -1)
    return torch.matmul(rows[:, None], stacked)


def gaussian_filter(images: Tensor, sigma: Tensor) -> Tensor:
    """Blur images (N, C, H, W) with standard deviations (N,) in pixels; mirrored borders."""
    sigma = sigma.to(images.dtype)
    # Built where sigma lives: its largest value is needed as a number, and a CPU tensor gives it without waiting.
    distinct, index = torch.unique(sigma, return_inverse=True)
    H, W = images.shape[-2:]
    index = index.to(images.device, non_blocking=True)

    def operators(size: int) -> Tensor:
        return gaussian_operator(distinct, size).to(images.device, non_blocking=True)[index]

    rows = operators(H)
    return separable(images, rows, rows if W == H else operators(W))


def correlate(images: Tensor, kernels: Tensor) -> Tensor:
    """Filter each image with its own square kernel; the border pixels repeat outwards.

    Args:
        images: (N, C, H, W).
        kernels: Odd-sized kernels, (N, k, k).

    Returns:
        (N, C, H, W).
    """
    N, C, H, W = images.shape
    k = kernels.shape[-1]
    padded = F.pad(images, (k // 2,) * 4, mode="replicate").reshape(1, N * C, H + k - 1, W + k - 1)
    weights = kernels.to(images, non_blocking=True).repeat_interleave(C, dim=0)[:, None]
    return F.conv2d(padded, weights, groups=N * C).view(N, C, H, W)
