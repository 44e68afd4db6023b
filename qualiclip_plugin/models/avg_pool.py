"""Average pooling of 2 x 2 pixels, as CLIP's ResNets halve their maps, near the speed of a GPU's memory.

torch's own kernel for channels-last maps divides for every value it writes and takes a third of a network's time in
half precision. This one, in Triton, divides once for every row. Where Triton cannot compile, on a CPU, for other
layouts and in compiled or exported graphs, torch's is used: both add the same four values in fp32.
"""

from __future__ import annotations

import importlib.util
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

BLOCK = 1024
"""Values that a program writes; a row of a map is shared out among several."""


class HalvingPool(nn.AvgPool2d):
    """``nn.AvgPool2d(2)`` that is fast for channels-last maps on a GPU."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, features: Tensor) -> Tensor:
        """(N, C, H, W) -> (N, C, H // 2, W // 2); an odd last row or column is dropped."""
        if torch.compiler.is_compiling() or not _served(features):
            return super().forward(features)
        pooled: Tensor = _Halve.apply(features)
        return pooled


def use_halving_pools(module: nn.Module) -> None:
    """Put :class:`HalvingPool` in place of every ``nn.AvgPool2d(2)`` inside a module, and leave out those of one
    pixel, in place."""
    for owner in list(module.modules()):
        for name, child in owner.named_children():
            if type(child) is nn.AvgPool2d and child.kernel_size == child.stride in (1, 2):
                setattr(owner, name, HalvingPool() if child.stride == 2 else nn.Identity())


def _served(features: Tensor) -> bool:
    return (
        features.is_cuda
        and features.dtype in (torch.float32, torch.float16, torch.bfloat16)
        and features.is_contiguous(memory_format=torch.channels_last)
        and min(features.shape[2:]) > 1
        and triton_works(features.device)
    )


def has_triton() -> bool:
    """Whether Triton is installed: it comes with torch where torch is made for NVIDIA's GPUs under Linux."""
    return importlib.util.find_spec("triton") is not None


@cache
def triton_works(device: torch.device) -> bool:
    """Whether Triton is installed and can compile for a GPU, with a C compiler and a folder that can be written."""
    if not has_triton():
        return False
    try:
        halve(
            torch.zeros((1, 8, 2, 2), dtype=torch.float32, device=device).contiguous(
                memory_format=torch.channels_last
            )
        )
    except Exception:  # whatever is missing: torch's kernel computes the same
        return False
    return True


class _Halve(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, features: Tensor) -> Tensor:
        context.size = features.shape
        return halve(features)

    @staticmethod
    @once_differentiable
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return spread(gradient, context.size)


def halve(features: Tensor) -> Tensor:
    """Means of 2 x 2 pixels of channels-last maps: (N, C, H, W) -> (N, C, H // 2, W // 2)."""
    from qualiclip_plugin.models.avg_pool_kernels import mean_of_four

    N, C, H, W = features.shape
    pooled = _empty(features, (N, C, H // 2, W // 2))
    _launch(mean_of_four, features, pooled, rows=pooled, sides=(H, W, H // 2, W // 2))
    return pooled


def spread(gradient: Tensor, size: torch.Size) -> Tensor:
    """The gradient of :func:`halve`: a quarter of each value to its four pixels, zero to a row that was dropped."""
    from qualiclip_plugin.models.avg_pool_kernels import quarters

    gradient = gradient.contiguous(memory_format=torch.channels_last)
    result = _empty(gradient, size)
    _launch(quarters, gradient, result, rows=result, sides=(*gradient.shape[2:], *size[2:]))
    return result


def _empty(like: Tensor, size: tuple[int, ...]) -> Tensor:
    return torch.empty(size, dtype=like.dtype, device=like.device, memory_format=torch.channels_last)


def _launch(kernel: Any, source: Tensor, target: Tensor, rows: Tensor, sides: tuple[int, ...]) -> None:
    """Run a kernel with one program for each row of ``rows`` and each ``BLOCK`` of its values."""
    N, C, H, W = rows.shape
    with torch.cuda.device_of(rows):
        kernel[(N * H, -(-W * C // BLOCK))](source, target, *sides, C, BLOCK)
