"""Everything that is to be measured on a GPU, what is worth most first: ``python -m tests.benchmarks.gpu``.

Each step is a command of its own with a limit of time. What it prints is kept in a file as it comes, so that a step
that fails costs no other, and an early end those after it alone. ``--only scores files`` runs some.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple


class Step(NamedTuple):
    """A command.

    Attributes:
        name: Of its file.
        arguments: Of the Python that runs this.
        minutes: It is stopped after so many.
    """

    name: str
    arguments: tuple[str, ...]
    minutes: float = 5


STEPS = (
    Step("checks", ("-m", "pytest", "-m", "gpu", "-q")),
    Step("scores", ("-m", "results.cuda.measure")),
    Step("training", ("tests/benchmarks/bench_training.py", "--config", "paper", "--repeats", "20")),
    Step("files", ("-m", "tests.benchmarks.bench_decoding", "--rounds", "3")),
    Step("lite", ("tests/benchmarks/bench_training.py", "--config", "lite", "--repeats", "20")),
    Step(
        "table",
        ("-m", "tests.benchmarks", "score", "--device", "cuda", "--document", "results/performance.md"),
        minutes=15,
    ),
    Step("degradations", ("-m", "tests.benchmarks.bench_degradations")),
)
FOLDER = Path("results/benchmarks/gpu")


def run(steps: Sequence[Step], folder: Path) -> dict[str, str]:
    """Run steps; what became of each, by name: ``done``, or why not."""
    folder.mkdir(parents=True, exist_ok=True)
    ends = {}
    for step in steps:
        started = time.monotonic()
        ends[step.name] = _run(step, folder / f"{step.name}.txt")
        print(f"{step.name}: {ends[step.name]} after {time.monotonic() - started:.0f} s\n", flush=True)
    return ends


def _run(step: Step, output: Path) -> str:
    with output.open("wb") as file:
        try:
            command = [sys.executable, *step.arguments]
            done = subprocess.run(
                command, stdout=file, stderr=subprocess.STDOUT, timeout=60 * step.minutes, check=False
            )
            code = done.returncode
            end = "done" if code == 0 else f"failed with exit code {code}"
        except subprocess.TimeoutExpired:
            end = f"stopped after its limit of {step.minutes:g} minutes"
    print(output.read_text(encoding="utf-8", errors="replace"))
    return end


def main() -> int:
    """Run the steps that are asked for; 1 where one is not done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=[step.name for step in STEPS], help="these steps alone")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder of what is printed")
    asked = parser.parse_args()
    ends = run([step for step in STEPS if not asked.only or step.name in asked.only], asked.output)
    print("\n".join(f"{name}: {end}" for name, end in ends.items()))
    return int(any(end != "done" for end in ends.values()))


if __name__ == "__main__":
    sys.exit(main())
