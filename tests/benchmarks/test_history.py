"""The history of timings: a slow machine raises no alarm, a slow change does."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks.bench_history import HISTORY, OPERATIONS, Timing, main, read_history, slower, timings_of

ROOT = Path(__file__).parents[2]
STORED = {
    name: Timing(0.1 * (index + 1), reference, 0.05)
    for index, (name, (_, reference, _)) in enumerate(OPERATIONS.items())
}


def test_a_slow_machine_raises_no_alarm() -> None:
    slowed = {
        name: replace(row, seconds=7 * row.seconds, reference_seconds=7 * row.reference_seconds)
        for name, row in STORED.items()
    }
    assert slower(slowed, STORED) == []


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_slow_change_raises_one_also_on_a_fast_machine(name: str) -> None:
    fast = {
        key: replace(row, seconds=row.seconds / 3, reference_seconds=row.reference_seconds / 3)
        for key, row in STORED.items()
    }
    changed = {**fast, name: replace(fast[name], seconds=2 * fast[name].seconds)}
    assert slower(changed, STORED) == [name]
    assert slower(changed, STORED, tolerance=1.5) == []


def test_a_faster_or_new_operation_is_no_alarm() -> None:
    now = {**STORED, "new": Timing(1.0, "convolution", 0.1)}
    now["decode a JPEG"] = replace(now["decode a JPEG"], seconds=0.001)
    assert slower(now, STORED) == []


def test_without_a_history_there_is_nothing_to_compare(tmp_path: Path) -> None:
    assert main(["--history", str(tmp_path / "none.json")]) == 2


def test_the_stored_history_has_every_operation() -> None:
    run = read_history(HISTORY)[-1]
    assert {"date", "device", "versions"} <= run.keys()
    assert {name: row.reference for name, row in timings_of(run).items()} == {
        name: reference for name, (_, reference, _) in OPERATIONS.items()
    }


PLANT = """
import sys
from tests.benchmarks import bench_history as bench

def twice(make, times):
    def made(*arguments):
        operation = make(*arguments)
        return lambda: [operation() for _ in range(times)]
    return made

def everywhere(table, times):
    for name, entry in table.items():
        table[name] = (twice(entry[0], times), *entry[1:]) if isinstance(entry, tuple) else twice(entry, times)

operation, reference = int(sys.argv[1]), int(sys.argv[2])
everywhere(bench.OPERATIONS, operation)
everywhere(bench.REFERENCES, reference)
sys.exit(bench.main(["--history", sys.argv[3], "--only", "decode", *sys.argv[4:]]))
"""


def measured(history: Path, operation: int, reference: int, *arguments: str) -> int:
    """Measure with an operation and a reference that do their work several times; the exit code."""
    command = [sys.executable, "-c", PLANT, str(operation), str(reference), str(history), *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, check=False).returncode


@pytest.mark.slow
def test_planted_slowness_through_the_command(tmp_path: Path) -> None:
    history = tmp_path / "history.json"
    assert measured(history, 1, 1, "--update") == 0
    assert json.loads(history.read_text())["runs"][0]["operations"].keys() == {"decode a JPEG"}
    assert measured(history, 4, 4) == 0, "a machine four times as slow"
    assert measured(history, 4, 1) == 1, "a change that makes it four times as slow"
    assert measured(history, 1, 4) == 0, "a reference that became slower"
