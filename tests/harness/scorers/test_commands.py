"""Scorers of the user's own: stopped in time, unable to end the run, and told apart when what they use changes."""

from __future__ import annotations

import contextlib
import shlex
import sys
import threading
import time
from pathlib import Path

import psutil
import pytest
import torch

from harness.results.store import Store
from harness.run.runner import write_tables
from harness.scorers import commands
from harness.scorers.commands import ScorerStoppedError, score_by_command
from harness.scorers.names import ScorerError
from harness.scorers.sources import own_files
from harness.scorers.start import create_scorer

IMAGES = torch.rand(1, 3, 8, 8)


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def test_a_command_that_takes_too_long_is_stopped() -> None:
    with pytest.raises(ScorerStoppedError, match=r"took more than 0\.1 s for one batch"):
        score_by_command(shell("sleep 60"), IMAGES, 0.1)


def test_a_command_that_prints_without_end_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(commands, "MAX_OUTPUT", 1000)
    monkeypatch.setattr(commands, "_LOOK_EVERY", 0.01)
    with pytest.raises(ScorerStoppedError, match="printed more than 1000 bytes"):
        score_by_command(shell("while :; do echo 0123456789; done"), IMAGES, 60)


def test_a_child_that_is_left_behind_holds_nothing_and_ends(tmp_path: Path) -> None:
    noted = tmp_path / "child"
    command = f"sleep 900 & echo $! > {shlex.quote(str(noted))}; echo '[1]'"
    # The child has inherited standard output, and this does not wait for it.
    assert score_by_command(shell(command), IMAGES, 800).tolist() == [1]
    # It is killed in the meantime; a test that waits for one that lives on fails by its own time limit.
    with contextlib.suppress(psutil.NoSuchProcess):
        while psutil.Process(int(noted.read_text())).status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


@pytest.mark.parametrize("text", ["sys.exit(0)", "raise GeneratorExit"])
@pytest.mark.parametrize("when", ["import", "call"])
def test_a_scorer_cannot_end_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest, text: str, when: str
) -> None:
    monkeypatch.chdir(tmp_path)
    name = f"ends_{abs(hash(request.node.name))}"
    body = "import sys\n" + (f"{text}\n" if when == "import" else "")
    (tmp_path / f"{name}.py").write_text(body + f"def score(images):\n    {text}\n")
    with pytest.raises(ScorerError, match="wanted to end the program"):
        create_scorer(f"{name}:score@lower_better=false").score(IMAGES)


def test_a_changed_helper_changes_the_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "kit").mkdir()
    (tmp_path / "kit" / "__init__.py").write_text("")
    (tmp_path / "kit" / "deep.py").write_text("factor = 1\n")
    (tmp_path / "kit" / "near.py").write_text("def f():\n    from .deep import factor\n    return factor\n")
    (tmp_path / "own_scorer.py").write_text(
        "import torch\nfrom kit import near\ndef score(x):\n    return x.mean((1, 2, 3))\n"
    )
    names = ["own_scorer:score@lower_better=false", f"cmd:{sys.executable} own_scorer.py@lower_better=false"]
    files = ["own_scorer.py", "kit/near.py", "kit/deep.py", "kit/__init__.py"]
    assert {str(file.relative_to(tmp_path)) for file in own_files(Path("own_scorer.py"))} == set(files)
    before = [create_scorer(name).identity for name in names]
    (tmp_path / "kit" / "deep.py").write_text("factor = 2\n")
    after = [create_scorer(name).identity for name in names]
    assert all(old != new for old, new in zip(before, after, strict=True))
    assert create_scorer(f"{names[0]},version=2").identity != after[0]


def test_a_command_without_a_file_says_its_version() -> None:
    with pytest.raises(ScorerError, match="say which version the program has: @version=1"):
        create_scorer("cmd:true@lower_better=false")
    first, second = (create_scorer(f"cmd:true@lower_better=false,version={n}").identity for n in (1, 2))
    assert first != second


@pytest.mark.parametrize("timeout", ["0", "-1", "soon", "true", ".inf", ".nan"])
def test_a_timeout_is_a_number_of_seconds(timeout: str) -> None:
    with pytest.raises(ScorerError, match="timeout is a number of seconds"):
        create_scorer(f"cmd:true@lower_better=false,version=1,timeout={timeout}")


def test_tables_are_written_by_one_run_at_a_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, most = [0], [0]

    def cells(_: Store) -> list[object]:
        inside[0] += 1
        most[0] = max(most[0], inside[0])
        time.sleep(0.02)
        inside[0] -= 1
        return []

    monkeypatch.setattr(Store, "cells", cells)
    threads = [threading.Thread(target=write_tables, args=[Store(tmp_path)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert (tmp_path / "leaderboard.csv").exists()
