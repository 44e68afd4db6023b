"""Files a second where decoding is all that takes time: ``python -m tests.benchmarks.bench_decoding``.

A scorer that costs nothing scores JPEG files of two sizes; rates are those after the first quarter of the files, so
without the start of processes, whose seconds stand in a column of their own. Everything is measured in turn, so that
what else the machine does slows all alike; a ratio is the median of those of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.utils.memory import keep_freed
from qualiclip_plugin.utils.process_settings import usable_cores
from tests.benchmarks.scale import machine, photographs

SIZES = {(512, 384): 512, (1024, 768): 256}
"""Number of different files, by size."""


class Free(nn.Module):
    """Costs nothing."""

    reads_bytes = True

    def forward(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) -> zeros (N, 1)."""
        return torch.zeros(len(images), 1)


def rate(
    files: Sequence[Path], workers: int, processes: bool, model: nn.Module | None = None, batch_size: int = 0
) -> tuple[float, float]:
    """Files a second of a model, by itself :class:`Free`, and seconds until the first row."""
    started = time.perf_counter()
    rows = score_files(files, model or Free(), workers=workers, processes=processes, batch_size=batch_size)
    stamps = [time.perf_counter() for _ in rows]
    first = len(stamps) // 4
    return (len(stamps) - 1 - first) / (stamps[-1] - stamps[first]), stamps[0] - started


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--times", type=int, default=3, help="how often a run reads the files")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    cores = usable_cores()
    ways = {"one core, one by one": (0, False)}
    for number in dict.fromkeys((1, 2, cores)):
        ways[f"{number} thread{'s' * (number > 1)}"] = (number, False)
        ways[f"{number} process{'es' * (number > 1)}"] = (number, True)
    about = machine("cpu")
    print(f"{about['processor']}, {about['cores']} cores, load average {about['load'][0]}, {about['date']};", end=" ")
    print(
        ", ".join(f"{name} {about['versions'][name]}" for name in ("torch", "Pillow")) + f"; {asked.rounds} rounds\n"
    )
    columns = " | ".join(f"{width}x{height}, files a second | times one core" for width, height in SIZES)
    print(f"| decoded by | {columns} | start, s |")
    print("|---|---|---|---|---|---|")
    found: dict[str, list[list[tuple[float, float]]]] = {name: [] for name in ways}
    with tempfile.TemporaryDirectory() as folder:
        for size, number in SIZES.items():
            files = photographs(Path(folder, f"{size[0]}"), number, size) * asked.times
            rounds = [{name: rate(files, *way) for name, way in ways.items()} for _ in range(asked.rounds)]
            for name in ways:
                found[name].append([one[name] for one in rounds])
    for name, sizes in found.items():
        cells = []
        for rates, alone in zip(sizes, found["one core, one by one"], strict=True):
            ratio = statistics.median(mine[0] / one[0] for mine, one in zip(rates, alone, strict=True))
            cells += [f"{statistics.median(value for value, _ in rates):.0f}", f"{ratio:.2f}"]
        start = statistics.median(value for rates in sizes for _, value in rates)
        print(f"| {name} | {' | '.join(cells)} | {start:.2f} |")


if __name__ == "__main__":
    keep_freed()
    main()
