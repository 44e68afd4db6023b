"""Results from strangers: cells, scores, labels, identities and baselines."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np

from harness.check import compare as regression
from harness.check import snapshot
from harness.check.limits import Limits, hold
from harness.check.report import to_json, to_junit, to_markdown
from harness.data.open import open_dataset
from harness.leaderboard.render import FORMATS, render
from harness.report.data import load_cells
from harness.results.measure import Settings
from harness.results.store import Store
from harness.run.engine import evaluate
from tests.support.harness_data import fake_scorer, opinion_folder

_PATTERNS = {
    "cell": "cells/*/*",
    "part": "scores/*/*/*/part-*",
    "labels": "datasets/*",
    "identity": "**/identity.json",
}


@cache
def results() -> tuple[dict[str, bytes], dict[str, str]]:
    """Files of a results folder by kind, and where each lies."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        images = open_dataset(str(opinion_folder(folder / "set", 8)))
        evaluate(fake_scorer(), images, Store(folder / "results"), settings=Settings(intervals=False))
        patterns = {
            "cell": "cells/*/*",
            "part": "scores/*/*/*/part-*",
            "labels": "datasets/*",
            "identity": "**/identity.json",
        }
        found = {kind: next((folder / "results").glob(pattern)) for kind, pattern in patterns.items()}
        places = {kind: path.relative_to(folder / "results").as_posix() for kind, path in found.items()}
        return {kind: path.read_bytes() for kind, path in found.items()}, places


def read_result(kind: str) -> Callable[[bytes, Path], None]:
    """A results folder in which one file is the given one: its tables in every form, and what reports load."""

    def read(data: bytes, folder: Path) -> None:
        contents, places = results()
        for other, place in places.items():
            # Named as earlier releases did: a hash in its name would keep every change of a part out.
            path = folder / (place if other != "part" else str(Path(place).with_name("part-0.parquet")))
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data if other == kind else contents[other])
        store = Store(folder)
        cells = store.cells()
        for form in (*FORMATS, "csv"):
            render(cells, form)
        load_cells(store)

    return read


def result_seeds(kind: str) -> Callable[[], dict[str, bytes]]:
    def seeds() -> dict[str, bytes]:
        content = results()[0][kind]
        if kind != "cell":
            return {kind: content}
        cell = json.loads(content)
        cell.pop("seal")  # which would keep every change out
        return {"cell": json.dumps(cell).encode()}

    return seeds


def read_baseline(data: bytes, folder: Path) -> None:
    path = folder / "baseline.json"
    path.write_bytes(data)
    known = snapshot.read_baseline(path)
    current = snapshot.read_baseline(_baseline_file(folder))
    for comparison in (hold(current, known, Limits(min_score=0.5, max_drop=0.1)), regression.compare(current, known)):
        for write in (to_markdown, to_json, to_junit):
            write(comparison)


def _baseline_file(folder: Path) -> Path:
    path = folder / "now.json"
    path.write_bytes(baseline_seeds()["baseline"])
    return path


@cache
def baseline_seeds() -> dict[str, bytes]:
    pixels = {f"p/{kind}": np.full((40, 40, 3), number, np.uint8) for number, kind in enumerate(("pristine", "dark"))}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "baseline.json")
        snapshot.write_baseline(path, snapshot.take_snapshot(snapshot.Pictures(pixels), ("entropy",)))
        return {"baseline": path.read_bytes()}
