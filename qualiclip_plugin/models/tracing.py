"""Networks that can be traced into a graph for images of all sizes."""

from __future__ import annotations

import copy

import torch.nn.functional as F
from timm.layers import Conv2dSame
from torch import Tensor, nn

from qualiclip_plugin.utils.errors import ConfigError

EXAMPLE_SIZE = (2, 3, 70, 101)
"""Of no use but to trace; unequal, so that no two dimensions are taken for one."""


class _SameConv(nn.Module):
    """timm's convolution at stride 2 with TensorFlow's padding, which depends on whether a side is odd.

    timm takes the larger of zero and a rounded size, from which a graph of free size cannot tell that its maps are
    large enough, and which a graph in lower precision rounds to another size; the rest of a division by two, in
    whole numbers, says the same.
    """

    def __init__(self, conv: Conv2dSame) -> None:
        super().__init__()
        if conv.stride != (2, 2) or any(side % 2 == 0 for side in conv.kernel_size) or conv.dilation != (1, 1):
            raise ConfigError(f"cannot trace a 'same' convolution of {conv.kernel_size} at stride {conv.stride}")
        self.conv = conv

    def forward(self, images: Tensor) -> Tensor:
        conv, (rows, columns) = self.conv, self.conv.kernel_size
        height, width = images.shape[2:]
        before = [(kernel - 3) // 2 + side % 2 for kernel, side in ((columns, width), (rows, height))]
        after = [(kernel - 1) // 2 for kernel in (columns, rows)]
        padded = F.pad(images, [before[0], after[0], before[1], after[1]])
        return F.conv2d(padded, conv.weight, conv.bias, conv.stride, groups=conv.groups)


def for_graphs(model: nn.Module) -> nn.Module:
    """A copy of a model that computes the same and can be traced for all sizes."""
    copied = copy.deepcopy(model)
    for name, module in list(copied.named_modules()):
        if isinstance(module, Conv2dSame):
            parent, _, child = name.rpartition(".")
            setattr(copied.get_submodule(parent), child, _SameConv(module))
    return copied
