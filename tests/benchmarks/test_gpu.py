"""The list of what is measured on a GPU: a step that fails or takes too long costs no other."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.benchmarks.gpu import STEPS, Step, run

ROOT = Path(__file__).parents[2]


def test_every_step_is_kept_whatever_becomes_of_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = (
        Step("first", ("-c", "print('a figure'); raise SystemExit(3)")),
        Step("second", ("-c", "print('half', flush=True); import time; time.sleep(60)"), minutes=0.02),
        Step("third", ("-c", "print('all')")),
    )
    ends = run(steps, tmp_path / "new")
    assert list(ends.values()) == ["failed with exit code 3", "stopped after its limit of 0.02 minutes", "done"]
    kept = [(tmp_path / "new" / f"{step.name}.txt").read_text() for step in steps]
    assert [text.strip() for text in kept] == ["a figure", "half", "all"]
    assert "a figure" in capsys.readouterr().out


def test_every_step_names_something_that_is_there() -> None:
    for step in STEPS:
        first, second = step.arguments[:2]
        assert find_spec(second) is not None if first == "-m" else (ROOT / first).is_file()
