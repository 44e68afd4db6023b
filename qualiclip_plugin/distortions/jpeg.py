"""JPEG as libjpeg computes it, batched.

It follows ITU-T T.81 and JFIF with libjpeg's defaults: 8-bit input, the Annex K tables scaled by quality, 4:2:0
chroma by 2 x 2 means, "fancy" (triangle) chroma upsampling. Every rounding of the format is a real one.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

from qualiclip_plugin.distortions.color import mix_channels

# ITU-T T.81, tables K.1 and K.2.
_LUMA_TABLE = (
    (16, 11, 10, 16, 24, 40, 51, 61),
    (12, 12, 14, 19, 26, 58, 60, 55),
    (14, 13, 16, 24, 40, 57, 69, 56),
    (14, 17, 22, 29, 51, 87, 80, 62),
    (18, 22, 37, 56, 68, 109, 103, 77),
    (24, 35, 55, 64, 81, 104, 113, 92),
    (49, 64, 78, 87, 103, 121, 120, 101),
    (72, 92, 95, 98, 112, 100, 103, 99),
)
_CHROMA_TABLE = (
    (17, 18, 24, 47, 99, 99, 99, 99),
    (18, 21, 26, 66, 99, 99, 99, 99),
    (24, 26, 56, 99, 99, 99, 99, 99),
    (47, 66, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
    (99, 99, 99, 99, 99, 99, 99, 99),
)
# JFIF 1.02, full range; chroma is centred on 128 in :func:`_to_ycbcr`.
_RGB_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168735892, -0.331264108, 0.5), (0.5, -0.418687589, -0.081312411))
_YCBCR_TO_RGB = ((1.0, 0.0, 1.402), (1.0, -0.344136286, -0.714136286), (1.0, 1.772, 0.0))

_HALF_TOLERANCE = 1e-4  # a half is a half in spite of the transform's float rounding


def quantization_tables(quality: Tensor) -> tuple[Tensor, Tensor]:
    """The luma and chroma tables of libjpeg for each quality in 1..100, (N,), as two tensors (N, 8, 8)."""
    quality = quality.round().clamp(1, 100)
    scale = torch.where(quality < 50, (5000 / quality).floor(), 200 - 2 * quality)[:, None, None]

    def scaled(table: tuple[tuple[int, ...], ...]) -> Tensor:
        base = torch.tensor(table, dtype=scale.dtype).to(scale.device, non_blocking=True)
        return ((base * scale + 50) / 100).floor().clamp_(1, 255)

    return scaled(_LUMA_TABLE), scaled(_CHROMA_TABLE)


@lru_cache(maxsize=8)
def _dct_basis(device: torch.device, dtype: torch.dtype) -> Tensor:
    """Orthonormal two-dimensional DCT-II of 8 x 8 blocks as one matrix, (64 frequencies, 64 pixels)."""
    index = torch.arange(8, dtype=torch.float64)
    line = torch.cos((2 * index + 1) * index[:, None] * math.pi / 16) / 2
    line[0] /= math.sqrt(2)
    return torch.kron(line, line).to(device, dtype, non_blocking=True)


def _round_away(values: Tensor) -> Tensor:
    """Round to the nearest integer, halves away from zero as libjpeg does; flat areas meet many halves."""
    magnitude = values.abs().add_(0.5 + _HALF_TOLERANCE).floor_()
    return magnitude.copysign_(values)


def _code_blocks(planes: Tensor, tables: Tensor) -> Tensor:
    """Transform, quantize and restore 8 x 8 blocks.

    Args:
        planes: 8-bit values, height and width multiples of 8, (N, C, H, W).
        tables: Quantization steps, (N, 8, 8).

    Returns:
        8-bit values, (N, C, H, W).
    """
    basis = _dct_basis(planes.device, planes.dtype)
    steps = tables.to(planes).view(-1, 1, 64, 1, 1)
    N, C, H, W = planes.shape
    blocks = F.pixel_unshuffle(planes - 128, 8).view(N, C, 64, H // 8, W // 8)
    coefficients = _round_away(torch.einsum("fp,ncphw->ncfhw", basis, blocks).div_(steps)).mul_(steps)
    restored = torch.einsum("fp,ncfhw->ncphw", basis, coefficients)
    samples = F.pixel_shuffle(restored.reshape(N, C * 64, H // 8, W // 8), 8)
    return samples.add_(128.5 + _HALF_TOLERANCE).floor_().clamp_(0, 255)


def _pad_to(planes: Tensor, multiple: int) -> Tensor:
    H, W = planes.shape[-2:]
    return F.pad(planes, (0, -W % multiple, 0, -H % multiple), mode="replicate")


def _halve(chroma: Tensor) -> Tensor:
    """2 x 2 means of 8-bit values, rounded up and down in turn along the line as libjpeg does."""
    total = F.avg_pool2d(chroma, 2, divisor_override=1)
    bias = 1 + torch.arange(total.shape[-1], device=chroma.device) % 2
    return ((total + bias) / 4).floor_()


def _double(chroma: Tensor) -> Tensor:
    """Triangle upsampling by 2 ("fancy"): 3/4 of the nearer and 1/4 of the further sample, each way."""

    def neighbours(values: Tensor) -> tuple[Tensor, Tensor]:
        before = torch.cat((values[..., :1], values[..., :-1]), dim=-1)
        after = torch.cat((values[..., 1:], values[..., -1:]), dim=-1)
        return 3 * values + before, 3 * values + after

    up, down = neighbours(chroma.transpose(2, 3))
    tall = torch.stack((up, down), dim=-1).flatten(-2).transpose(2, 3)
    left, right = neighbours(tall)
    # 8 and 7: libjpeg rounds the two halves in opposite directions so that the mean keeps its place.
    return torch.stack((((left + 8) / 16).floor(), ((right + 7) / 16).floor()), dim=-1).flatten(-2)


def jpeg(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Encode and decode as baseline JPEG with 4:2:0 chroma.

    Args:
        images: RGB in [0, 1], any size, (N, 3, H, W); rounded to 8 bits first.
        strength: libjpeg's quality, 1..100, (N,).
        noise: Not used.

    Returns:
        Images in [0, 1] at multiples of 1/255, (N, 3, H, W).
    """
    H, W = images.shape[-2:]
    luma_table, chroma_table = quantization_tables(strength)
    ycbcr = mix_channels((images * 255).round_(), torch.tensor(_RGB_TO_YCBCR))
    ycbcr[:, 1:] += 128
    ycbcr.round_().clamp_(0, 255)
    luma = _code_blocks(_pad_to(ycbcr[:, :1], 8), luma_table)[..., :H, :W]
    chroma = _code_blocks(_halve(_pad_to(ycbcr[:, 1:], 16)), chroma_table)
    chroma = _double(chroma[..., : (H + 1) // 2, : (W + 1) // 2])[..., :H, :W]
    rgb = mix_channels(torch.cat((luma, chroma - 128), dim=1), torch.tensor(_YCBCR_TO_RGB))
    return rgb.round_().clamp_(0, 255).div_(255)
