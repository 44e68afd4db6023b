"""Random fields that depend on nothing but a seed and a position.

A degradation's random draw is a function of the sample's seed and of the pixel's index, not of a generator's
state: a 32-bit integer hash (the two-round "lowbias32" mixer of C. Wellons' hash-prospector) maps (seed, index)
to a uniform number. So the same seed gives the same numbers on every device, in any batch and in any order, and
two samples with equal seeds share the draw, which is what keeps a ladder of levels ordered.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MULTIPLIER_1 = 0x7FEB352D
_MULTIPLIER_2 = 0x846CA68B - (1 << 32)  # the same bits as a signed 32-bit integer
_GOLDEN = 0x9E3779B9 - (1 << 32)


def _mix(bits: Tensor) -> Tensor:
    """Scramble 32-bit integers in place; the masks make the arithmetic shifts logical."""
    bits ^= (bits >> 16) & 0xFFFF
    bits *= _MULTIPLIER_1
    bits ^= (bits >> 15) & 0x1FFFF
    bits *= _MULTIPLIER_2
    bits ^= (bits >> 16) & 0xFFFF
    return bits


def _as_int32(values: Tensor) -> Tensor:
    # The low 32 bits, two's complement; a plain cast of an out-of-range int64 is not defined on every device.
    low = values & 0xFFFFFFFF
    return torch.where(low >= 1 << 31, low - (1 << 32), low).to(torch.int32)


def uniform_field(
    noise: Tensor, shape: Sequence[int], *, device: torch.device | str = "cpu", stream: int = 0
) -> Tensor:
    """Independent uniform numbers for each sample.

    Args:
        noise: Seeds of the samples, int64, (N,). Kept on the CPU it costs a GPU no synchronisation.
        shape: Shape of one sample's field. A field of fewer rows is a prefix of one with more.
        stream: Number of an independent field of the same seed.

    Returns:
        float32 in (0, 1), (N, *shape); samples of equal seed get equal fields.
    """
    seeds, index = torch.unique(noise, return_inverse=True)
    key_1 = _mix(_as_int32(seeds) ^ (stream * _MULTIPLIER_1 & 0x7FFFFFFF))
    key_2 = _mix(_as_int32(seeds >> 32) + key_1 * _GOLDEN)
    count = math.prod(shape)
    counter = torch.arange(count, dtype=torch.int32, device=device)
    bits = counter ^ key_1.to(device, non_blocking=True)[:, None]
    bits = _mix(_mix(bits) + key_2.to(device, non_blocking=True)[:, None])
    # 23 bits and a half: one bit more would round to 1, where the normal distribution's inverse is infinite.
    field = ((bits >> 9) & 0x7FFFFF).to(torch.float32).add_(0.5).mul_(2.0**-23)
    return field[index.to(device, non_blocking=True)].view(len(noise), *shape)


def normal_field(
    noise: Tensor, shape: Sequence[int], *, device: torch.device | str = "cpu", stream: int = 0
) -> Tensor:
    """Independent standard normal numbers, float32, (N, *shape); see :func:`uniform_field`.

    The inverse of the error function keeps one hash per number; the tails end at 5.3 standard deviations.
    """
    uniform = uniform_field(noise, shape, device=device, stream=stream)
    return uniform.mul_(2).sub_(1).erfinv_().mul_(math.sqrt(2))
