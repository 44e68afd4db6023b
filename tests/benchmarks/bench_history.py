"""How long common operations take, as ratios to a reference operation: a history that outlives a change of machine.

    python -m tests.benchmarks.bench_history            # measure, compare with the last stored run
    python -m tests.benchmarks.bench_history --update   # measure, and add the run to the history

Measured by pytest-benchmark, in one thread. Before every round of an operation its reference is timed: a slow machine
slows both and their ratio stays, a slow change slows one. An operation and its reference use the processor alike, so
that another processor moves their ratio little, and for about as long, so that other programs disturb both alike.
Exit code: 0 no operation became slower by more than the tolerance, 1 one did, 2 there is nothing to compare with.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tabulate import tabulate

from harness import statistics as st
from harness.results.measure import Settings
from harness.run.progress import reporter
from harness.run.runner import RunRequest, run_all
from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.training.sampling import degrade, sample_plan
from qualiclip_plugin.utils.environment import versions
from qualiclip_plugin.utils.images import read_image
from qualiclip_plugin.weights.loading import load_model
from tests.benchmarks.bench_training import device_text
from tests.conftest import load_photographs
from tests.support.harness_data import fake_scorer, opinion_folder

HISTORY = Path(__file__).parents[2] / "results" / "benchmarks" / "history.json"
ROUNDS = 15
TOLERANCE = 0.5
"""Accepted growth of a ratio. Ratios repeat within a few per cent on one machine, and within a third on others."""

Operation = Callable[[], object]


def _photograph(height: int = 384, width: int = 512) -> Image.Image:
    return Image.fromarray(np.resize(load_photographs()[0], (height, width, 3)))


def score_one_image(folder: Path) -> Operation:
    """From a PNG file of 512x384 pixels to its score by the packaged model."""
    path = folder / "photograph.png"
    _photograph().save(path)
    model = load_model("lite")
    return lambda: next(score_files([path], model, workers=0))


def decode_jpeg(folder: Path) -> Operation:
    """A JPEG of 1024x768 pixels to RGB."""
    buffer = io.BytesIO()
    _photograph().resize((1024, 768)).save(buffer, "JPEG", quality=90)
    return lambda: read_image(buffer.getvalue())


def degrade_a_batch(folder: Path) -> Operation:
    """Eight crop pairs of 160x160 pixels at five levels of sixteen drawn kinds."""
    generator = torch.Generator().manual_seed(0)
    crops = torch.rand(8, 2, 3, 160, 160, generator=generator)
    plan = sample_plan(8, generator=generator)
    return lambda: degrade(crops, plan)


def harness_over_cached_scores(folder: Path) -> Operation:
    """A run of the harness on 200 images that all have scores."""
    opinion_folder(folder / "set", 200, size=lambda index: (16, 16))
    scorer = fake_scorer()
    request = RunRequest((scorer,), (str(folder / "set"),), folder / "results", settings=Settings(intervals=False))
    run = lambda: run_all(request, reporter(quiet=True, json_log=False))
    run()
    return run


def statistics_with_intervals(folder: Path) -> Operation:
    """Intervals of SRCC and fitted PLCC of 300 images."""
    generator = np.random.default_rng(0)
    opinions = generator.normal(size=300)
    scores = opinions + generator.normal(size=300)
    return lambda: st.intervals(("srcc", "plcc_fit"), scores, st.rated(opinions))


def convolution() -> Operation:
    """A convolution of torch."""
    images, weights = torch.rand(4, 32, 96, 96), torch.rand(32, 32, 3, 3)
    return lambda: torch.nn.functional.conv2d(images, weights)


def inflation() -> Operation:
    """Decompression by zlib."""
    packed = zlib.compress(np.asarray(_photograph()).tobytes())
    return lambda: zlib.decompress(packed)


def interpretation() -> Operation:
    """A loop of the interpreter with small arrays."""
    values = np.random.default_rng(0).normal(size=300)
    return lambda: [float(np.argsort(values)[index % 300]) for index in range(200)]


OPERATIONS: dict[str, tuple[Callable[[Path], Operation], str, int]] = {
    "score one image": (score_one_image, "convolution", 20),
    "decode a JPEG": (decode_jpeg, "inflation", 1),
    "degrade a batch": (degrade_a_batch, "convolution", 25),
    "harness over cached scores": (harness_over_cached_scores, "interpretation", 250),
    "statistics with intervals": (statistics_with_intervals, "interpretation", 120),
}
"""What is timed, against which reference, and how often that is repeated to take about as long."""
REFERENCES: dict[str, Callable[[], Operation]] = {
    "convolution": convolution,
    "inflation": inflation,
    "interpretation": interpretation,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_operation(benchmark: Any, name: str, tmp_path: Path) -> None:
    make, reference_name, repeats = OPERATIONS[name]
    operation, reference = make(tmp_path), REFERENCES[reference_name]()
    seconds: list[float] = []

    def time_reference() -> None:
        started = time.perf_counter()
        for _ in range(repeats):
            reference()
        seconds.append((time.perf_counter() - started) / repeats)

    benchmark.pedantic(operation, setup=time_reference, rounds=ROUNDS, warmup_rounds=2)
    benchmark.extra_info |= {"reference": reference_name, "reference_seconds": min(seconds)}


@dataclass(frozen=True)
class Timing:
    """One operation in one run; the fastest rounds, which other programs disturbed least.

    Attributes:
        seconds: Of the operation.
        reference: Name of its reference.
        reference_seconds: Of the reference.
    """

    seconds: float
    reference: str
    reference_seconds: float

    @property
    def ratio(self) -> float:
        """Seconds of the operation over those of its reference."""
        return self.seconds / self.reference_seconds


def slower(now: Mapping[str, Timing], stored: Mapping[str, Timing], tolerance: float = TOLERANCE) -> list[str]:
    """Operations whose ratio grew by more than the tolerance."""
    return [name for name in now if name in stored and now[name].ratio > (1 + tolerance) * stored[name].ratio]


def measure(only: str = "") -> dict[str, Timing]:
    """Time the operations whose name has a word in it, through pytest-benchmark."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "run.json")
        options = ["-q", "-W", "ignore", "-p", "no:cacheprovider", "--benchmark-enable", f"--benchmark-json={path}"]
        code = pytest.main([__file__, *options, *(["-k", only] if only else [])])
        if code:
            raise SystemExit(int(code))
        rows = json.loads(path.read_text())["benchmarks"]
    return {row["params"]["name"]: Timing(row["stats"]["min"], **row["extra_info"]) for row in rows}


def read_history(path: Path) -> list[dict[str, Any]]:
    """Stored runs, oldest first; none where there is no history."""
    return json.loads(path.read_text(encoding="utf-8"))["runs"] if path.exists() else []


def timings_of(run: Mapping[str, Any]) -> dict[str, Timing]:
    """The timings of a stored run."""
    return {name: Timing(**row) for name, row in run["operations"].items()}


def table(now: Mapping[str, Timing], stored: Mapping[str, Timing], tolerance: float) -> str:
    """The comparison as Markdown."""
    late = slower(now, stored, tolerance)
    rows = [
        (
            name,
            f"{1000 * timing.seconds:.2f} ms",
            timing.reference,
            f"{stored[name].ratio:.3f}" if name in stored else "",
            f"{timing.ratio:.3f}",
            f"{timing.ratio / stored[name].ratio - 1:+.0%}" if name in stored else "new",
            "slower" if name in late else "",
        )
        for name, timing in now.items()
    ]
    headers = ["operation", "fastest", "reference", "stored ratio", "ratio", "change", ""]
    return tabulate(rows, headers, tablefmt="pipe")


def main(arguments: list[str] | None = None) -> int:
    """Measure, compare or store, and return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--update", action="store_true", help="add this run to the history")
    parser.add_argument("--history", type=Path, default=HISTORY)
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help="accepted growth of a ratio")
    parser.add_argument("--only", default="", help="operations whose name has this word in it")
    options = parser.parse_args(arguments)
    runs = read_history(options.history)
    if not runs and not options.update:
        print(f"{options.history}: no history; --update begins one", file=sys.stderr)
        return 2
    torch.set_num_threads(1)
    now = measure(options.only)
    stored = timings_of(runs[-1]) if runs else {}
    print(table(now, stored, options.tolerance))
    if not options.update:
        return int(bool(slower(now, stored, options.tolerance)))
    run = {
        "date": time.strftime("%Y-%m-%d"),
        "device": device_text(torch.device("cpu")),
        "versions": versions(),
        "operations": {name: asdict(timing) for name, timing in now.items()},
    }
    options.history.parent.mkdir(parents=True, exist_ok=True)
    options.history.write_text(json.dumps({"runs": [*runs, run]}, indent=1) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
