"""Spatial distortions: jitter, misplaced patches, pixelation, quantization, colour blocks; and resizing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from qualiclip_plugin.distortions.filters import per_image, separable
from qualiclip_plugin.distortions.random_fields import normal_field, uniform_field

_JITTER_PASSES = 5  # KADID-10k warps five times; the sum of their displacements is drawn at once
_PATCH = 16
_PATCH_SHIFT = 8
_BLOCK = 32


def jitter(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Scatter the pixels: each is read at a normally distributed distance from its place.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        strength: Deviation of each of KADID-10k's five passes in pixels, (N,).
        noise: Seeds, int64, (N,); the directions are the same for all strengths.

    Returns:
        Images in [0, 1], (N, 3, H, W).
    """
    H, W = images.shape[-2:]
    field = normal_field(noise, (H, W, 2), device=images.device).to(images.dtype)
    rows = torch.arange(H, device=images.device, dtype=images.dtype)[:, None].expand(H, W)
    columns = torch.arange(W, device=images.device, dtype=images.dtype).expand(H, W)
    place = torch.stack((columns, rows), dim=-1) + field * per_image(strength * _JITTER_PASSES**0.5, images)
    size = torch.tensor((W, H), dtype=images.dtype).to(images.device, non_blocking=True)
    grid = (2 * place + 1) / size - 1
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False).clamp_(0, 1)


def _owners(corners: Tensor, side: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """The first rectangle that covers each pixel.

    Args:
        corners: Top left corners in drawing order, int64, (N, P, 2).
        side: Height and width of the rectangles.
        size: Height and width of the image.

    Returns:
        Numbers in 0..P, P where no rectangle lies, (N, H * W).
    """
    N, P, _ = corners.shape
    device = corners.device
    inside = torch.arange(side[0], device=device)[:, None] * size[1] + torch.arange(side[1], device=device)
    pixels = (corners[..., :1] * size[1] + corners[..., 1:]) + inside.flatten()
    order = torch.arange(P, device=device)[:, None].expand(N, P, inside.numel())
    owners = torch.full((N, size[0] * size[1]), P, dtype=torch.int64, device=device)
    return owners.scatter_reduce_(1, pixels.view(N, -1), order.reshape(N, -1), "amin")


def _corners(draw: Tensor, side: tuple[int, int], size: tuple[int, int]) -> Tensor:
    room = torch.tensor((size[0] - side[0] + 1, size[1] - side[1] + 1)).to(draw.device, non_blocking=True)
    return torch.minimum((draw * room).long(), room - 1)


def non_eccentricity_patch(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Copy ``strength`` patches of 16 x 16, (N,), to places up to 8 pixels away, unseen at a glance.

    A stronger ladder step holds the milder one's patches, and where two meet the earlier one stays, so a pixel
    once misplaced is misplaced the same way at all higher levels.
    """
    N, C, H, W = images.shape
    count = int(strength.max())
    side = (min(_PATCH, H), min(_PATCH, W))
    draw = uniform_field(noise, (count, 4), device=images.device)
    target = _corners(draw[..., :2], side, (H, W))
    shift = ((draw[..., 2:] * 2 - 1) * _PATCH_SHIFT).round().long()
    limit = torch.tensor((H - side[0], W - side[1])).to(images.device, non_blocking=True)
    source = torch.minimum((target + shift).clamp_min(0), limit)
    rows, columns = (source - target).unbind(2)  # no matrix product: GPUs have none of whole numbers
    offset = rows * W + columns
    owner = _owners(target, side, (H, W))
    moved = F.pad(offset, (0, 1)).gather(1, owner)
    moved = moved.masked_fill(owner >= strength.to(images.device, non_blocking=True)[:, None], 0)
    index = torch.arange(H * W, device=images.device) + moved
    flat = images.reshape(N, C, H * W)
    return flat.gather(2, index[:, None].expand(N, C, H * W)).view(N, C, H, W)


def color_block(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Cover the image with ``strength`` squares of 32 pixels, (N,), in random colours; earlier ones stay on top."""
    N, C, H, W = images.shape
    count = int(strength.max())
    side = (min(_BLOCK, H), min(_BLOCK, W))
    draw = uniform_field(noise, (count, 5), device=images.device)
    owner = _owners(_corners(draw[..., :2], side, (H, W)), side, (H, W))
    palette = F.pad(draw[..., 2:].to(images.dtype), (0, 0, 0, 1)).transpose(1, 2)
    blocks = palette.gather(2, owner[:, None].expand(N, C, H * W)).view(N, C, H, W)
    covered = (owner < strength.to(images.device, non_blocking=True)[:, None]).view(N, 1, H, W)
    return torch.where(covered, blocks, images)


def _mean_operator(block: Tensor, size: int) -> Tensor:
    """Matrices that replace each run of ``block`` pixels, int64 (N,), by its mean, float64 (N, size, size)."""
    run = torch.arange(size, device=block.device) // block[:, None]
    same = (run[:, :, None] == run[:, None, :]).to(torch.float64)
    return same / same.sum(dim=2, keepdim=True)


def pixelate(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Replace each square of ``strength`` pixels, (N,), by its mean.

    Where each side divides the next, the means are projections onto nested spaces: the error never falls.
    """
    block = strength.to(images.device, torch.int64, non_blocking=True)
    rows, columns = (_mean_operator(block, size).to(images.dtype) for size in images.shape[-2:])
    return separable(images, rows, columns).clamp_(0, 1)


def pixelate_nearest(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Shrink by .95 - strength**.6 and enlarge again, nearest pixel both ways (KADID-10k's formula)."""
    H, W = images.shape[-2:]
    scale = 0.95 - strength.cpu().to(torch.float64) ** 0.6
    rows, columns = (_nearest_index(scale, size).to(images.device, non_blocking=True) for size in (H, W))
    picked = images.gather(2, rows[:, None, :, None].expand_as(images))
    return picked.gather(3, columns[:, None, None, :].expand_as(images))


def _nearest_index(scale: Tensor, size: int) -> Tensor:
    small = (size * scale).floor().clamp_min(1)[:, None]
    low = (torch.arange(size) * (small / size)).floor()
    return (low * (size / small)).floor().long().clamp_(0, size - 1)


def quantization(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Keep ``strength`` values per channel, (N,): each of as many equal intervals is replaced by its mean.

    Where each count divides the next milder one, the means are projections onto nested spaces: the error never
    falls. Sums run in integers, whose order of addition does not matter, so that a GPU repeats itself exactly.
    """
    N, C, H, W = images.shape
    count = strength.to(images.device, torch.int64, non_blocking=True).view(N, 1, 1)
    most = int(strength.max())
    flat = images.reshape(N, C, H * W)
    cell = (flat * count).long().clamp_(min=0).minimum(count - 1)
    fixed = (flat.to(torch.float64) * 2**24).round_().long()
    sums = torch.zeros(N, C, most, dtype=torch.int64, device=images.device)
    members = sums.clone()
    sums.scatter_add_(2, cell, fixed)
    members.scatter_add_(2, cell, torch.ones_like(cell))
    means = sums.to(torch.float64) / (members.clamp_min(1).to(torch.float64) * 2**24)
    return means.to(images.dtype).gather(2, cell).view(N, C, H, W)


def quantization_stretched(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Round down to ``strength`` equal steps, (N,), and stretch the result over [0, 1] (ARNIQA's reading)."""
    count = per_image(strength, images)
    steps = (images * count).floor().minimum(count - 1)
    low, high = steps.amin(dim=(1, 2, 3), keepdim=True), steps.amax(dim=(1, 2, 3), keepdim=True)
    return (steps - low) / (high - low).clamp_min(1)


def resize(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Shrink by the factor ``strength`` >= 1, (N,), with antialiasing and enlarge again, both bicubic."""
    H, W = images.shape[-2:]
    factors = strength.cpu()
    resized = torch.empty_like(images)
    for factor in factors.unique().tolist():
        chosen = (factors == factor).nonzero()[:, 0].to(images.device, non_blocking=True)
        small = (max(1, round(H / factor)), max(1, round(W / factor)))
        less = F.interpolate(images[chosen], small, mode="bicubic", antialias=True, align_corners=False)
        more = F.interpolate(less, (H, W), mode="bicubic", align_corners=False)
        resized[chosen] = more.clamp_(0, 1)
    return resized
