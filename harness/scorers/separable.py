"""IL-NIQE's filters in two passes.

pyiqa filters about a hundred maps an image with 11 x 11 derivatives of a Gaussian in float64, for which torch has no
fast convolution on a CPU. Each filter is a column times a row: filtering with both gives the same, to the last digits
of float64, for a fifth of the work.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor


def filter_in_two_passes() -> None:
    """Let pyiqa's IL-NIQE apply its filters as a column and a row; once per process, and of no effect on others."""
    from pyiqa.archs import niqe_arch

    whole = niqe_arch.conv2d
    if getattr(whole, "in_two_passes", False):
        return

    def conv2d(images: Tensor, weight: Tensor, **options: Any) -> Tensor:
        """Filter images (N, C, H, W) by a weight (C or 1, 1, h, w) that repeats one filter."""
        parts = column_and_row(weight[0, 0])
        for part in parts or ():
            images = whole(images, part.expand(len(weight), 1, -1, -1), **options)
        return images if parts else whole(images, weight, **options)

    conv2d.in_two_passes = True  # type: ignore[attr-defined]
    niqe_arch.conv2d = conv2d


def column_and_row(kernel: Tensor) -> tuple[Tensor, Tensor] | None:
    """A column (h, 1) and a row (1, w) whose product is the kernel (h, w); none if it is no such product."""
    import torch

    left, sizes, right = torch.linalg.svd(kernel)
    if len(sizes) < 2 or sizes[1] > 1e-13 * sizes[0]:
        return None
    return left[:, :1] * sizes[0], right[:1]
