"""The Triton kernels of ``halving``, in a module of their own because they need Triton to be defined.

Maps are channels-last in memory, (N, H, W, C); sides change from image to image, so no code is made for single ones.
A program fills ``BLOCK`` values of one row of the target.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["H", "W", "h", "w"])
def mean_of_four(source, target, H, W, h, w, C: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of (N, h, w, C), each value the mean of 2 x 2 pixels of (N, H, W, C)."""
    row = tl.program_id(0)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = offsets < w * C
    top = ((row // h) * H + (row % h) * 2).to(tl.int64) * W * C
    left = offsets + offsets // C * C  # a pixel of the target is two of the source further on
    total = tl.load(source + top + left, mask=inside).to(tl.float32)
    total += tl.load(source + top + left + C, mask=inside).to(tl.float32)
    total += tl.load(source + top + W * C + left, mask=inside).to(tl.float32)
    total += tl.load(source + top + W * C + left + C, mask=inside).to(tl.float32)
    tl.store(target + row.to(tl.int64) * w * C + offsets, total * 0.25, mask=inside)


@triton.jit(do_not_specialize=["H", "W", "h", "w"])
def quarters(source, target, h, w, H, W, C: tl.constexpr, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
    """Rows of (N, H, W, C), each value a quarter of its pixel of (N, h, w, C), or zero past the last one."""
    row = tl.program_id(0)
    offsets = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    column, channel = offsets // C, offsets % C
    inside = offsets < W * C
    y = row % H // 2
    seen = inside & (column // 2 < tl.where(y < h, w, 0))
    start = ((row // H) * h + y).to(tl.int64) * w * C
    value = tl.load(source + start + column // 2 * C + channel, mask=seen, other=0.0).to(tl.float32)
    tl.store(target + row.to(tl.int64) * W * C + offsets, value * 0.25, mask=inside)
