"""What is measured besides time: operations, the machine's matrix rate, memory."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from qualiclip_plugin.models.precision import PRECISIONS
from qualiclip_plugin.utils.memory import give_back

MATRIX = {"cpu": 2048, "cuda": 8192}
_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def finish(device: str) -> None:
    """Wait until a GPU has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def seconds(work: Callable[[], object], device: str) -> float:
    """Time of one call on the clock."""
    started = time.perf_counter()
    work()
    finish(device)
    return time.perf_counter() - started


def operations(work: Callable[[], object]) -> int:
    """Floating-point operations of matrix products and convolutions in torch, two a multiplication with addition."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


def matrix_rate(precision: str, device: str, rounds: int = 5) -> float:
    """Operations a second of a product of two square matrices, the best of ``rounds`` and of two libraries.

    Convolutions are not done by the library of matrix products, which on some processors is the slower one; a
    convolution of single pixels is a matrix product as well.
    """
    size = MATRIX[device]
    matrix = torch.rand(size, size, device=device, dtype=PRECISIONS[precision])
    image = matrix.view(1, size // 32, 32, size).permute(0, 3, 1, 2)  # one pixel a row, channels last
    kernels = matrix.view(size, size, 1, 1).to(memory_format=torch.channels_last)
    ways = (lambda: matrix @ matrix, lambda: torch.nn.functional.conv2d(image, kernels))
    for way in ways:
        way()
    finish(device)
    return 2 * size**3 / min(seconds(way, device) for way in ways for _ in range(rounds))


def peak_memory(work: Callable[[], object], device: str) -> int | None:
    """Bytes that a call takes beyond what was taken before it; ``None`` where the system does not tell."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    if not _CLEAR.exists():
        work()
        return None
    give_back()  # what the allocator keeps of earlier calls would hide what this one takes
    _CLEAR.write_text("5")  # forget the highest resident size so far
    before = _resident("VmRSS")
    work()
    return max(_resident("VmHWM") - before, 0)


def _resident(field: str) -> int:
    lines = _STATUS.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{field}:"))
