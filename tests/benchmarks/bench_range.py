"""What the look at the range of an image costs, as a share of its score.

python -m tests.benchmarks.bench_range
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from qualiclip_plugin.models.qualiclip import check_range
from qualiclip_plugin.weights import load_model


def seconds(function: Callable[[torch.Tensor], object], images: torch.Tensor, rounds: int) -> float:
    """Shortest of the calls after one that warms up: what else the machine does makes the others longer."""
    taken = []
    for _ in range(rounds + 1):
        started = time.perf_counter()
        function(images)
        taken.append(time.perf_counter() - started)
    return min(taken[1:])


def main() -> None:
    """Print the share for ``lite`` on one thread of the CPU."""
    torch.set_num_threads(1)
    images = torch.rand(1, 3, 384, 512)
    looking = seconds(check_range, images, 200)
    scoring = seconds(load_model("lite"), images, 10)
    print(f"{looking * 1e6:.0f} us of {scoring * 1e3:.0f} ms: {looking / scoring:.2%} (torch {torch.__version__})")


if __name__ == "__main__":
    main()
