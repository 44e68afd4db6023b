"""What the process that leads a run on Ray pays for the number of shards: writes, listing and restart.

    python -m tests.benchmarks.bench_shards [--shards 10000 100000 1000000]

Prints two Markdown tables. The first one has milliseconds of the first write of a process into a folder, and the
median of those after it. The second one has seconds and memory of a run that goes on, until it knows what is missing:
the list of the sources, and the finished shards, whose hashes and rows it checks. Images are rows of Parquet files,
shards are hard links to a few files; no image is there. Each number has a process of its own.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pandas as pd
from tabulate import tabulate

from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.scoring.shards import ShardFolder
from qualiclip_plugin.scoring.sources import list_sources
from qualiclip_plugin.scoring.table import to_frame, write_scores
from qualiclip_plugin.utils.environment import processor_name
from tests.benchmarks.meters import peak_memory

BESIDE = (0, 100, 20_000, 100_000)
SHARDS = (10_000, 100_000, 1_000_000)
ROWS = 500
ROWS_A_FILE = 5_000_000
LINKS = 50_000
"""Fewer names of one file than file systems allow."""


def _frame() -> pd.DataFrame:
    return to_frame(ScoredImage(f"s3://bucket/photos/{n:012d}.jpg", n / ROWS, {}, 1024, 768) for n in range(ROWS))


def milliseconds(beside: int, writes: int = 30) -> list[float]:
    """Of each write of a shard into a folder with so many other files."""
    frame, times = _frame(), []
    with tempfile.TemporaryDirectory() as folder:
        for number in range(beside):
            Path(folder, f"shard-{number:07d}.parquet").touch()
        for number in range(beside, beside + writes):
            started = time.perf_counter()
            write_scores(frame, Path(folder, f"shard-{number:07d}.parquet"))
            times.append(1000 * (time.perf_counter() - started))
    return times


def make_finished(root: Path, shards: int) -> None:
    """A folder of so many finished shards, and beside it the Parquet files with their images' addresses."""
    packed = io.BytesIO()
    _frame().to_parquet(packed, index=False)
    name = f"{hashlib.sha256(packed.getvalue()).hexdigest()}.parquet"
    (root / "run" / "scores").mkdir(parents=True)
    for shard in range(shards):
        path = root / "run" / "scores" / f"shard-{shard:07d}-{name}"
        if shard % LINKS == 0:
            original = path
            path.write_bytes(packed.getvalue())
        else:
            os.link(original, path)
    (root / "source").mkdir()
    for number, start in enumerate(range(0, shards * ROWS, ROWS_A_FILE)):
        rows = min(ROWS_A_FILE, shards * ROWS - start)
        addresses = pd.Categorical.from_codes([0] * rows, ["s3://bucket/photos/photo.jpg"])
        pd.DataFrame({"url": addresses}).to_parquet(root / "source" / f"{number:06}.parquet")


def restart(root: Path) -> dict[str, float]:
    """Seconds of a run that goes on in a folder of :func:`make_finished`, by part, and MB that it takes."""
    seconds = {}

    def whole() -> None:
        started = time.perf_counter()
        listing = list_sources([str(root / "source")], ROWS, "url")
        seconds["list, s"] = time.perf_counter() - started
        folder = ShardFolder(root / "run", tuple(map(len, listing.portions)))
        started = time.perf_counter()
        if folder.failures() != dict.fromkeys(range(len(listing.portions)), 0):
            raise RuntimeError("a shard is missing")
        seconds["finished shards, s"] = time.perf_counter() - started

    taken = peak_memory(whole, "cpu")
    return {**seconds, "memory, MB": (taken or 0) / 1e6}


def _of_its_own(shards: int) -> dict[str, float]:
    with tempfile.TemporaryDirectory() as folder:
        make_finished(Path(folder), shards)
        code = f"from tests.benchmarks.bench_shards import *; print(json.dumps(restart(Path({folder!r}))))"
        answer = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, text=True).stdout
        found: dict[str, float] = json.loads(answer)
    return found


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=int, nargs="+", default=SHARDS)
    asked = parser.parse_args()
    milliseconds(0, 1)  # libraries are loaded
    rows = []
    for beside in BESIDE:
        first, *later = milliseconds(beside)
        rows.append({"files beside": f"{beside:,}", "first write, ms": first, "later, ms": statistics.median(later)})
    print(tabulate(rows, headers="keys", tablefmt="github", floatfmt=".1f"), end="\n\n")
    restarts = [{"shards": f"{n:,}", "images": f"{n * ROWS:,}", **_of_its_own(n)} for n in asked.shards]
    print(tabulate(restarts, headers="keys", tablefmt="github", floatfmt=".1f"))
    print(f"\n{ROWS} rows a shard; {processor_name()}; {time.strftime('%Y-%m-%d')}")


if __name__ == "__main__":
    main()
