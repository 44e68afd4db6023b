"""A ``qualiclip score`` that is interrupted goes on where it was, and ends as if nothing had happened."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qualiclip_plugin.scoring.local import ScoredImage
from qualiclip_plugin.scoring.ray_engine import ScoreRequest
from qualiclip_plugin.scoring.unfinished import UnfinishedScores, rows_of
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.images import images_in
from tests.support.commands import run_main

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Six files of which the third is no picture."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(6):
        Image.new("RGB", (32, 32), (40 * number, 9, 9)).save(folder / f"{number}.png")
    (folder / "2.png").write_bytes(b"none")
    return images_in([folder])


class Scorer:
    """Gives rows, and remembers of which files."""

    def __init__(self) -> None:
        self.seen: list[str] = []

    def __call__(self, files: Iterable[Path]) -> Iterator[ScoredImage]:
        for file in files:
            self.seen.append(file.name)
            error = "no picture" if file.name == "2.png" else None
            score = None if error else 1 / (3 + int(file.stem))
            yield ScoredImage(str(file), score, {"sharp": 0.1}, 32, 32, error, "a note")


def run(files: list[Path], most: int = 99, **identity: Any) -> tuple[list[ScoredImage], list[str], UnfinishedScores]:
    """Score at most so many files: the rows, the names of those that were scored, and what is kept."""
    scorer = Scorer()
    with UnfinishedScores(files[0].parents[1] / "scores.csv", identity) as unfinished:
        rows = list(islice(rows_of(files, unfinished, scorer), most))
    return rows, scorer.seen, unfinished


NAMES = [f"{number}.png" for number in range(6)]


def test_only_what_is_missing_is_scored(files: list[Path]) -> None:
    whole = list(Scorer()(files))
    assert run(files, 4)[1] == NAMES[:4]
    rows, scored, unfinished = run(files)
    assert rows == whole
    assert scored == ["2.png", *NAMES[4:]], "a file without a score is tried again"
    assert len(unfinished) == 3
    assert run(files[::-1])[:2] == (whole[::-1], ["2.png"])
    with unfinished:
        unfinished.remove()
    assert not unfinished.path.exists()
    assert unfinished.path.name == "scores.csv.unfinished"


def test_a_changed_file_is_scored_again(files: list[Path]) -> None:
    run(files)
    os.utime(files[0], ns=(1, 1))
    content = files[1].read_bytes()
    before = files[1].stat().st_mtime_ns
    files[1].write_bytes(content + b"0")
    os.utime(files[1], ns=(before, before))
    assert run(files)[1] == NAMES[:3]
    assert run(files)[1] == ["2.png"]


def test_another_run_is_told_and_begun_anew(files: list[Path]) -> None:
    run(files, precision="fp32", weights="lite")
    _, scored, unfinished = run(files, precision="bf16", weights="lite")
    assert unfinished.changed == ("precision: fp32 -> bf16",)
    assert scored == NAMES
    assert run(files, precision="bf16", weights="lite")[1] == ["2.png"]


@pytest.mark.parametrize("damage", ["cut", "altered", "a line of another"])
def test_a_damaged_line_and_what_follows_is_scored_again(files: list[Path], damage: str) -> None:
    path = run(files)[2].path
    lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) == 6
    lines[3] = {"cut": lines[3][:50], "altered": lines[3].replace(b"0.1", b"0.2"), "a line of another": b"[1]\n"}[
        damage
    ]
    path.write_bytes(b"".join(lines[: 4 if damage == "cut" else 6]))
    assert run(files)[:2] == (list(Scorer()(files)), ["2.png", "3.png", "4.png", "5.png"])
    assert run(files)[1] == ["2.png"]


@pytest.mark.parametrize("length", [0, 5, 60])
def test_a_beginning_that_was_cut_off_is_written_again(files: list[Path], length: int) -> None:
    path = run(files)[2].path
    path.write_bytes(path.read_bytes()[:length])
    assert run(files)[1] == NAMES
    assert run(files)[1] == ["2.png"]


def test_what_is_in_the_way_is_named(files: list[Path]) -> None:
    path = files[0].parents[1] / "scores.csv.unfinished"
    path.write_text("a diary")
    with pytest.raises(ConfigError, match=r"scores\.csv\.unfinished: no scores of an interrupted run"):
        run(files)
    assert path.read_text() == "a diary"
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(ConfigError, match=r"scores\.csv\.unfinished: not a regular file"):
        run(files)
    path.unlink()
    with UnfinishedScores(path.with_suffix(""), {}), pytest.raises(ConfigError, match="another process is scoring"):
        run(files)
    assert run(files)[1] == NAMES


def test_a_full_disk_keeps_the_rows_before(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    from tests.plugin.training.test_run_folder import file_size_limit

    size = run(files)[2].path.stat().st_size
    run(files, 0, other=1)
    with (
        file_size_limit(size - 100),
        pytest.raises(ConfigError, match="unfinished: cannot be written: File too large"),
    ):
        run(files)
    assert run(files)[1] == ["2.png", "5.png"]


def interrupted(number: int) -> Callable[..., Iterator[ScoredImage]]:
    """``ScoreRequest.score`` that is sent a signal while it scores its third image."""
    score = ScoreRequest.score

    def scoring(*arguments: Any, **options: Any) -> Iterator[ScoredImage]:
        for index, row in enumerate(score(*arguments, **options)):
            if index == 2:
                os.kill(os.getpid(), number)
            yield row

    return scoring


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_command_goes_on(
    files: list[Path],
    tiny_checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    number: int,
    code: int,
) -> None:
    monkeypatch.chdir(tmp_path)
    files[2].unlink()
    command = ("score", "pictures", "--weights", tiny_checkpoint, "--device", "cpu", "--attributes", "--output")
    assert run_main(monkeypatch, "qualiclip", *command, "whole.csv") == 0
    table = capsys.readouterr().out
    with monkeypatch.context() as patch:
        patch.setattr(ScoreRequest, "score", interrupted(number))
        assert run_main(patch, "qualiclip", *command, "scores.csv") == code
        said = f"stopped by {signal.Signals(number).name}: 3 of 5 images are done"
        assert f"{said}; the same command goes on from there" in capsys.readouterr().err
        assert {path.name for path in tmp_path.glob("scores*")} == {"scores.csv.unfinished"}
        # Without a file the rows that are done are all there is to show.
        assert run_main(patch, "qualiclip", *command[:-1]) == code
        stopped = capsys.readouterr()
        assert f"{said}\n" in stopped.err
        assert stopped.out.splitlines() == table.splitlines()[:4]
    assert run_main(monkeypatch, "qualiclip", *command, "scores.csv", "--precision", "bf16") == 0
    assert "was of another run (precision: fp32 -> bf16); begun anew" in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_command_goes_on(files: list[Path], tiny_checkpoint: Path, tmp_path: Path) -> None:
    for number in range(60):
        Image.effect_noise((400, 400), 50).convert("RGB").save(files[0].parent / f"noise{number:02}.png")
    command = [sys.executable, "-m", "qualiclip_plugin", "score", "pictures", "--weights", str(tiny_checkpoint)]
    command += ["--device", "cpu", "--output"]
    killed = subprocess.Popen([*command, "scores.csv"], cwd=tmp_path, stdout=subprocess.DEVNULL)
    unfinished = tmp_path / "scores.csv.unfinished"
    deadline = time.monotonic() + 120
    while (not unfinished.exists() or unfinished.read_bytes().count(b"\n") < 10) and time.monotonic() < deadline:
        time.sleep(0.005)
    killed.kill()
    killed.wait()
    assert not (tmp_path / "scores.csv").exists()
    resumed = subprocess.run([*command, "scores.csv"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert resumed.returncode == 1
    assert "rows of an interrupted run are taken up" in resumed.stderr
    subprocess.run([*command, "whole.csv"], cwd=tmp_path, capture_output=True, check=False)
    assert (tmp_path / "scores.csv").read_bytes() == (tmp_path / "whole.csv").read_bytes()
    assert not unfinished.exists()
