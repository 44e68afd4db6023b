"""CLIP's ResNet on an NVIDIA GPU, without a pass over memory that is not a convolution or a pool.

cuDNN adds the bias, adds the other branch and applies ReLU in the kernel of the convolution; in half precision each
would otherwise take about as long as a small convolution. Nothing but the pools (``halving``) is compiled.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qualiclip_plugin.models.conv_towers import ResNetTower
from qualiclip_plugin.runtimes.part import FastPart


class FusedMap(FastPart):
    """The feature map of a tower whose BatchNorm is folded."""

    runtime = "cuda"

    def __init__(self, tower: ResNetTower) -> None:
        self._tower = tower
        self._blocks = [
            _Block(block) for layer in (tower.layer1, tower.layer2, tower.layer3, tower.layer4) for block in layer
        ]

    def __call__(self, images: Tensor) -> Tensor:
        """See :meth:`ResNetTower.feature_map`; errors as :meth:`FastPart.check`."""
        self.check(images)
        tower = self._tower
        features = tower.cast(images)
        for convolution in (tower.conv1, tower.conv2, tower.conv3):
            features = _with_relu(features, convolution)
        features = tower.avgpool(features)
        for block in self._blocks:
            features = block(features)
        return features


class _Block:
    """A bottleneck; the bias of its side branch is added with that of its last convolution."""

    def __init__(self, block: Any) -> None:
        self.block, self.bias = block, block.conv3.bias
        if block.downsample is not None:
            self.side_pool, self.side, _ = block.downsample
            self.bias = self.bias + self.side.bias

    def __call__(self, features: Tensor) -> Tensor:
        block = self.block
        inner = block.avgpool(_with_relu(_with_relu(features, block.conv1), block.conv2))
        if block.downsample is not None:
            features = F.conv2d(self.side_pool(features), self.side.weight)
        conv = block.conv3
        return torch.cudnn_convolution_add_relu(
            inner, conv.weight, features, 1.0, self.bias, conv.stride, conv.padding, conv.dilation, conv.groups
        )


def _with_relu(features: Tensor, conv: Any) -> Tensor:
    return torch.cudnn_convolution_relu(
        features, conv.weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups
    )


class Normalise(FastPart):
    """Bytes or floats -> normalised images in the type of the convolutions, in one pass.

    Args:
        mean: Of the channels, RGB in [0, 1], (1, 3, 1, 1).
        std: The same.
    """

    runtime = "cuda"

    def __init__(self, mean: Tensor, std: Tensor, dtype: torch.dtype) -> None:
        self._shift, self._scale, self._dtype = -mean / std, 1 / std, dtype

    def __call__(self, images: Tensor) -> Tensor:
        """(N, 3 or 1, H, W) -> (N, 3, H, W), channels last; errors as :meth:`FastPart.check`."""
        self.check(images)
        scale = self._scale / 255 if images.dtype == torch.uint8 else self._scale
        size = (images.shape[0], 3, *images.shape[2:])
        result = torch.empty(size, dtype=self._dtype, device=images.device, memory_format=torch.channels_last)
        return torch.addcmul(self._shift, images, scale, out=result)
