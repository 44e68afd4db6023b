"""Gradient magnitude similarity deviation: a full-reference distance that needs no learning.

Xue, Zhang, Mou, Bovik, "Gradient Magnitude Similarity Deviation: A Highly Efficient Perceptual Image Quality Index",
IEEE TIP 2014. Training can use it to order differently degraded crops of different photographs; no human opinion
enters.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

# T = 170 for luma in [0, 255] in the paper; luma here is in [0, 1].
STABILITY = 170.0 / 255.0**2
LUMA = (0.299, 0.587, 0.114)


def gmsd(images: Tensor, references: Tensor) -> Tensor:
    """Distance of each image from its reference.

    Args:
        images: RGB in [0, 1], (N, 3, H, W).
        references: Pristine images of the same shape.

    Returns:
        (N,), 0 for identical images, higher is worse (about 0.35 at most in practice).
    """
    first, second = _gradient_magnitude(images), _gradient_magnitude(references)
    similarity = (2 * first * second + STABILITY) / (first.square() + second.square() + STABILITY)
    return similarity.flatten(1).std(dim=1, correction=0)


def _gradient_magnitude(images: Tensor) -> Tensor:
    """Prewitt gradient magnitude of the luma at half size, (N, 1, H / 2, W / 2)."""
    luma = torch.einsum("nchw,c->nhw", images, images.new_tensor(LUMA))[:, None]
    half = F.avg_pool2d(luma, 2)
    across = images.new_tensor([[1.0, 0.0, -1.0]] * 3) / 3
    kernels = torch.stack([across, across.T])[:, None]
    gradients = F.conv2d(half, kernels, padding=1)
    # The square root has an infinite slope at 0; flat areas are common and a gradient may be wanted.
    return (gradients.square().sum(1, keepdim=True) + 1e-12).sqrt()
