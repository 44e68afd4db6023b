"""What a shard costs to write beside thousands that are there already.

    python -m tests.benchmarks.bench_writes

Prints a Markdown table: milliseconds of the first write of a process into a folder, and the median of those after it.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

from tabulate import tabulate

from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.scoring.table import to_frame, write_scores
from qualiclip_plugin.utils.environment import processor_name

BESIDE = (0, 100, 20_000, 100_000)
ROWS = 500


def milliseconds(beside: int, writes: int = 30) -> list[float]:
    """Of each write of a shard into a folder with so many other files."""
    frame = to_frame(ScoredImage(f"s3://bucket/photos/{n:012d}.jpg", n / ROWS, {}, 1024, 768) for n in range(ROWS))
    times = []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(beside):
            Path(folder, f"shard-{number:07d}.parquet").touch()
        for number in range(beside, beside + writes):
            started = time.perf_counter()
            write_scores(frame, Path(folder, f"shard-{number:07d}.parquet"))
            times.append(1000 * (time.perf_counter() - started))
    return times


def main() -> None:
    """Measure and print the table."""
    milliseconds(0, 1)  # libraries are loaded
    rows = []
    for beside in BESIDE:
        first, *later = milliseconds(beside)
        rows.append({"files beside": f"{beside:,}", "first write, ms": first, "later, ms": statistics.median(later)})
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".1f"))
    print(f"\n{ROWS} rows a shard; {processor_name()}; {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
