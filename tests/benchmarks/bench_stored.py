"""What stored scores cost a run that has nothing to do, the table and the report: seconds and memory by their number.

``python -m tests.benchmarks.bench_stored --images 10000 100000 1000000``. Each number has a process of its own. The
scores of two scorers are made up and no image is there; a run with nothing to do looks at none. What it costs to open
and hash a dataset's files, which grows with their bytes, is left out; the memory of its labels is counted.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd

from harness.data.open import ImageSet, open_dataset
from harness.data.rows import Files
from harness.report import write_report
from harness.results.measure import Settings
from harness.results.store import Store
from harness.run.engine import evaluate, score_key
from harness.run.runner import check_stored, write_tables
from harness.scorers.kinds import Scorer
from tests.benchmarks.meters import peak_memory
from tests.support.harness_data import brightness, opinion_folder

SCORERS = ("first", "second")
DRAWS = 200


def image_set(folder: Path, number: int) -> ImageSet:
    """A dataset of ``number`` images that are not there."""
    real = open_dataset(f"stored={opinion_folder(folder, 8)}")
    one = real.table.iloc[[0]]
    table = one.loc[one.index.repeat(number)].reset_index(drop=True)
    generator = np.random.default_rng(0)
    names = [f"{index:07}.png" for index in range(number)]
    table = table.assign(
        file_name=names,
        opinion=generator.normal(size=number),
        image_hash=[hashlib.sha256(name.encode()).hexdigest() for name in names],
    ).astype(real.table.dtypes)
    return dataclasses.replace(real, table=table, rows=Files(names))


def store_scores(store: Store, scorer: Scorer, images: ImageSet) -> None:
    """One score an image, near its opinion, as a run leaves them."""
    noise = np.random.default_rng(len(scorer.name)).normal(size=len(images))
    rows = pd.DataFrame({"image_hash": images.table["image_hash"], "score": images.table["opinion"] + noise})
    rows = rows.assign(
        error="", seconds=0.01, height=384, width=512, device="cpu", finished="2026-01-01T00:00:00.000"
    )
    key = score_key(scorer, images)
    for part in np.array_split(np.arange(len(rows)), 4):
        store.append(key, rows.iloc[part].to_dict("records"))
    store.merge(key)


def measure(number: int, settings: Settings) -> str:
    """A row of the table."""
    cells = [f"{number:,}"]

    def measured(work: Callable[[], object], more: int | None = None) -> None:
        started = time.perf_counter()
        taken = peak_memory(work, "cpu") or 0
        cells.append(f"{time.perf_counter() - started:.1f}")
        if more is not None:
            cells.append(f"{(taken + more) / 2**20:.0f}")

    with tempfile.TemporaryDirectory() as place:
        store, images = Store(Path(place, "results")), image_set(Path(place, "images"), number)
        scorers = [Scorer(name, False, brightness, {"metric": name}) for name in SCORERS]
        for scorer in scorers:
            store_scores(store, scorer, images)
        measured(lambda: evaluate(scorers[0], images, store, settings=settings))
        evaluate(scorers[1], images, store, settings=settings)
        opened = dataclasses.replace(images)  # without what the first one has computed
        labels = int(images.table.memory_usage(deep=True).sum())
        measured(
            lambda: (check_stored(opened, store), evaluate(scorers[0], opened, store, settings=settings)), labels
        )
        measured(lambda: write_tables(store))
        measured(lambda: write_report(store.root, Path(place, "site"), draws=DRAWS), 0)
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, nargs="+", default=[10_000, 100_000])
    parser.add_argument("--no-intervals", action="store_true", help="figures without, which take most of their time")
    parser.add_argument("--one", action="store_true", help="in this process, without the head of the table")
    asked = parser.parse_args()
    if asked.one:
        print(measure(*asked.images, Settings(intervals=not asked.no_intervals)))
        return
    print("| stored scores of each of two scorers | first figures, s | nothing to do, s | MB more ", end="")
    print("| table, s | report, s | MB more |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for number in asked.images:
        options = ["--one", *(["--no-intervals"] if asked.no_intervals else []), "--images", str(number)]
        subprocess.run([sys.executable, "-m", "tests.benchmarks.bench_stored", *options], check=True)


if __name__ == "__main__":
    main()
