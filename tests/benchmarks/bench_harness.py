"""What the harness costs beside the scorer, and what 10,000 scores that are there already cost a start.

    python tests/benchmarks/bench_harness.py                 # both, about ten minutes on two cores
    python tests/benchmarks/bench_harness.py --images 200    # a quick look

Prints one Markdown table. The overhead is that of a whole run (open, hash, decode, score, store, figures with
intervals) over a plain loop that reads the same files and calls the same scorer on one image at a time, in
turns. The start is that of a new process with everything stored, over one with ten images. Beside the clock stands
processor time, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image

from harness.data.open import open_dataset
from harness.results.store import Store
from harness.run.engine import evaluate
from harness.scorers.start import create_scorer
from qualiclip_plugin.utils.images import images_in, read_image, to_float
from tests.support.harness_data import opinion_folder, write_metadata

SIZE = (384, 512)
ROOT = Path(__file__).parents[2]


def write_photographs(folder: Path, number: int) -> Path:
    """JPEG crops of the scikit-image photographs, with opinions, no two alike."""
    from skimage import data

    folder.mkdir()
    photographs = [getattr(data, name)()[..., :3] for name in ("astronaut", "coffee", "rocket")]
    generator = np.random.default_rng(0)
    rows = []
    for index in range(number):
        photo = np.asarray(Image.fromarray(photographs[index % 3]).resize((640, 480)))
        top, left = (int(generator.integers(0, high)) for high in (480 - SIZE[0], 640 - SIZE[1]))
        crop = photo[top : top + SIZE[0], left : left + SIZE[1]]
        Image.fromarray(crop).save(folder / f"{index}.jpg", quality=int(generator.integers(20, 95)))
        rows.append({"file_name": f"{index}.jpg", "mos": float(generator.normal())})
    write_metadata(folder, rows)
    return folder


class Cost(NamedTuple):
    """What an action took, in seconds."""

    clock: float
    processor: float


def cost(action: Callable[[], object]) -> Cost:
    """Run an action; what its child processes took counts too."""
    clock, processor = time.perf_counter(), _processor()
    action()
    return Cost(time.perf_counter() - clock, _processor() - processor)


def _processor() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def overhead(folder: Path, name: str, repeats: int) -> tuple[list[Cost], list[Cost]]:
    """The plain loop and the whole run, in turns."""
    scorer = create_scorer(name, device="cpu")

    def bare() -> None:
        for path in images_in([folder]):
            scorer.score(to_float(read_image(path))[None])

    def run() -> None:
        with tempfile.TemporaryDirectory() as results:
            evaluate(scorer, open_dataset(str(folder)), Store(results))

    bare_costs, run_costs = [], []
    for _ in range(repeats):
        bare_costs.append(cost(bare))
        run_costs.append(cost(run))
    return bare_costs, run_costs


def start(folder: Path, results: Path) -> Cost:
    """A new process that finds everything stored."""
    command = [sys.executable, "-m", "harness", "run", "--scorer", "tests.support.harness_data:brightness", "--quiet"]
    options = ["--dataset", str(folder), "--output", str(results)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return cost(lambda: subprocess.run([*command, *options], env=environment, check=True, capture_output=True))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1000)
    parser.add_argument("--stored", type=int, default=10_000)
    parser.add_argument("--scorer", default="qualiclip-lite")
    parser.add_argument("--repeats", type=int, default=3)
    asked = parser.parse_args()
    # Threads that wait for each other on a busy machine would count as work of the scorer.
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as place:
        folder = write_photographs(Path(place, "photographs"), asked.images)
        bare, run = overhead(folder, asked.scorer, asked.repeats)
        sets = {
            number: opinion_folder(Path(place, f"set{number}"), number, size=lambda index: (16, 16 + index % 3))
            for number in (10, asked.stored)
        }
        results = {number: Path(place, f"results{number}") for number in sets}
        for number, images in sets.items():
            start(images, results[number])
        starts = [
            {number: start(images, results[number]) for number, images in sets.items()} for _ in range(asked.repeats)
        ]
    print(f"| {platform.machine()}, one thread, torch {torch.__version__} | clock | processor |")
    print("|---|---|---|")
    line(f"{asked.scorer}, {asked.images} images of {SIZE[1]}x{SIZE[0]}, plain loop", bare, "{:.1f} s")
    line("the same through the harness, all figures", run, "{:.1f} s")
    ratios = [
        Cost(*(whole / plain for whole, plain in zip(pair[1], pair[0], strict=True)))
        for pair in zip(bare, run, strict=True)
    ]
    line("ratio, median of the turns", ratios, "{:.3f}")
    few, many = ([taken[number] for taken in starts] for number in sets)
    line("a start with 10 stored scores", few, "{:.1f} s")
    line(f"a start with {asked.stored} stored scores", many, "{:.1f} s")
    more = [Cost(*(b - a for a, b in zip(*pair, strict=True))) for pair in zip(few, many, strict=True)]
    line("difference", more, "{:.1f} s")


def line(name: str, costs: list[Cost], form: str) -> None:
    """A row of the table: medians."""
    medians = [statistics.median(values) for values in zip(*costs, strict=True)]
    print(f"| {name} | {' | '.join(form.format(value) for value in medians)} |")


if __name__ == "__main__":
    main()
