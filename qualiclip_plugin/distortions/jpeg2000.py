"""A batched model of lossy JPEG 2000 (ITU-T T.800): the same transform and quantizer, a formula for the coder.

A codec spends its bits where they lower the squared error most, which comes to one quantization step for all
wavelet coefficients in orthonormal units. So the model rounds to 8 bits, applies the irreversible colour transform
and the 9/7 wavelet, quantizes with a dead zone at the step whose rate meets the ratio, and goes back. Only the
arithmetic coder is replaced: the number of bits that it would write is read off the quantized coefficients
(the "rho-domain" observation that the rate is nearly linear in the number of non-zeros: He and Mitra, IEEE TCSVT
12(10), 2002), with constants fitted to OpenJPEG.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

from qualiclip_plugin.distortions.color import YCBCR_TO_RGB, mix_channels

# T.800, table F.4: the lifting steps of the 9/7 filter, and the scaling that makes them nearly orthonormal.
_LIFTING = (-1.586134342059924, -0.052980118572961, 0.882911075530934, 0.443506852043971)
_SCALING = 1.230174104914001 / math.sqrt(2)
_LEVELS = 5
# T.800, annex G: the irreversible colour transform, and the error in RGB of a unit error in Y, Cb and Cr.
_TO_YCBCR = ((0.299, 0.587, 0.114), (-0.168736, -0.331264, 0.5), (0.5, -0.418688, -0.081312))
_ERROR_GAIN = (1.732, 1.805, 1.573)
# Fitted to the files of OpenJPEG 2.5 at ratios from 16 to 170 and sizes from 112 to 352.
_BITS_PER_NONZERO = 4.05
_BITS_PER_DOUBLING = 1.33
_BITS_OF_HEADERS = 2290.0
_LARGEST_SHARE_OF_HEADERS = 0.6  # in the smallest files a codec leaves out bands with their headers
_SMALLEST_STEP = 1 / 2  # where the 8-bit rounding of the pixels hides the quantizer
_BINS_PER_OCTAVE = 32
_BINS = 15 * _BINS_PER_OCTAVE  # up to the largest coefficient that 8-bit pixels can give


@lru_cache(maxsize=64)
def _analysis(size: int) -> Tensor:
    """The one-level 9/7 transform of a line as a matrix, low band first, float64, (size, size)."""
    if size == 1:
        return torch.ones(1, 1, dtype=torch.float64)
    line = torch.eye(size, dtype=torch.float64)
    before = torch.arange(size).sub(1).abs()
    after = (size - 1) - torch.arange(size).sub(size - 2).abs()
    for step, weight in enumerate(_LIFTING):
        index = torch.arange(1 - step % 2, size, 2)
        line[index] += weight * (line[before[index]] + line[after[index]])
    return torch.cat((line[0::2] / _SCALING, line[1::2] * _SCALING))


@lru_cache(maxsize=128)
def _matrix(size: int, inverse: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    matrix = _analysis(size)
    return (torch.linalg.inv(matrix) if inverse else matrix).to(device, dtype, non_blocking=True)


def _bands(H: int, W: int) -> list[tuple[int, int]]:
    """Sizes of the low band that each level transforms."""
    sizes: list[tuple[int, int]] = []
    while len(sizes) < _LEVELS and max(H, W) > 1:
        sizes.append((H, W))
        H, W = (H + 1) // 2, (W + 1) // 2
    return sizes


def wavelet_transform(planes: Tensor, inverse: bool = False) -> Tensor:
    """Five levels of the 9/7 wavelet, symmetric borders, the low band in the upper left corner; (N, C, H, W)."""
    result = planes.clone()
    bands = _bands(*planes.shape[-2:])
    for H, W in reversed(bands) if inverse else bands:
        rows, columns = (_matrix(size, inverse, planes.device, planes.dtype) for size in (H, W))
        result[..., :H, :W] = rows @ (result[..., :H, :W] @ columns.T)
    return result


@lru_cache(maxsize=8)
def _cost_matrix(device: torch.device) -> Tensor:
    """Bits of a coefficient in magnitude bin j at the step of bin i, (bins i, bins j), float64."""
    bins = torch.arange(_BINS, dtype=torch.float64)
    doublings = torch.log2(1 + torch.exp2((bins - bins[:, None] + 0.5) / _BINS_PER_OCTAVE).floor())
    cost = _BITS_PER_NONZERO + _BITS_PER_DOUBLING * doublings
    return torch.where(bins >= bins[:, None], cost, 0).to(device, non_blocking=True)


def step_for_bits(magnitudes: Tensor, bits: Tensor) -> Tensor:
    """The smallest quantization step at which the coefficients fit.

    The rate depends on the magnitudes' histogram alone, so one histogram on a logarithmic scale gives the rates at
    all steps at once, and no search is needed.

    Args:
        magnitudes: Absolute coefficients in orthonormal units, (N, M).
        bits: Bits there are, (N, 1).

    Returns:
        To two percent, (N, 1).
    """
    position = (magnitudes / _SMALLEST_STEP).log2_().mul_(_BINS_PER_OCTAVE).floor_()
    # The first place collects what is too small to survive any step.
    place = position.clamp_(-1, _BINS - 1).to(torch.int64).add_(1)
    counts = torch.zeros(len(magnitudes), _BINS + 1, dtype=torch.float64, device=magnitudes.device)
    counts.scatter_add_(1, place, torch.ones((), dtype=torch.float64, device=place.device).expand_as(place))
    fits = counts[:, 1:] @ _cost_matrix(magnitudes.device).T <= bits
    first = torch.where(fits.any(dim=1, keepdim=True), fits.to(torch.int8).argmax(dim=1, keepdim=True), _BINS)
    return _SMALLEST_STEP * torch.exp2(first.to(magnitudes.dtype) / _BINS_PER_OCTAVE)


def jpeg2000(images: Tensor, strength: Tensor, noise: Tensor) -> Tensor:
    """Encode and decode as JPEG 2000 at a compression ratio.

    Args:
        images: RGB in [0, 1], any size, (N, 3, H, W); rounded to 8 bits first.
        strength: Compression ratio against 24 bits per pixel, (N,).
        noise: Not used.

    Returns:
        Images in [0, 1] at multiples of 1/255, (N, 3, H, W).
    """
    N, _, H, W = images.shape
    gain = torch.tensor(_ERROR_GAIN).to(images, non_blocking=True).view(3, 1, 1)
    ycbcr = mix_channels((images * 255).round_().sub_(128), torch.tensor(_TO_YCBCR))
    coefficients = wavelet_transform(ycbcr) * gain
    magnitudes = coefficients.abs()
    bits = (24.0 * H * W / strength.to(images, non_blocking=True)).view(N, 1)
    headers = (_LARGEST_SHARE_OF_HEADERS * bits).clamp_max(_BITS_OF_HEADERS)
    step = step_for_bits(magnitudes.flatten(1), bits - headers).view(N, 1, 1, 1)
    quantized = (magnitudes / step).floor_()
    # The middle of each interval, but nothing in the dead zone.
    restored = torch.where(quantized > 0, (quantized + 0.5) * step, 0.0).copysign_(coefficients)
    rgb = mix_channels(wavelet_transform(restored / gain, inverse=True), torch.tensor(YCBCR_TO_RGB))
    return rgb.add_(128).round_().clamp_(0, 255).div_(255)
