"""A picture that is not read is named and counted wherever a folder is read, and never left out without a word."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import fsspec
import pytest
from typer.testing import CliRunner

from harness.data.inspect import inspect, report
from harness.data.open import open_dataset
from harness.results.measure import Settings
from harness.run.progress import Silent
from harness.run.runner import RunRequest, run_all
from qualiclip_plugin.cli import app
from qualiclip_plugin.scoring.sources import list_sources
from qualiclip_plugin.training.photos import open_photos
from qualiclip_plugin.training.usable_photos import check_all
from tests.support.commands import run_main
from tests.support.harness_data import fake_scorer, opinion_folder, write_metadata
from tests.support.image_seeds import picture

UNREAD = {
    "drawing.psd": (b"8BPS\0\1", "a Photoshop document"),
    "new.jxl": (b"\xff\x0a", "a JPEG XL"),
    "shot.CR3": (b"\0\0\0\x18ftypcrx ", "a raw photograph"),
    "shot.orf": (b"IIRO", "a raw photograph"),
}


@pytest.fixture
def mix(tmp_path: Path) -> Path:
    """One picture that is read, and one of each of ``UNREAD``."""
    folder = tmp_path / "mix"
    folder.mkdir()
    picture(64, 64).save(folder / "ok.png")
    for name, (signature, _) in UNREAD.items():
        (folder / name).write_bytes(signature + bytes(200))
    return folder


def test_qualiclip_score(mix: Path) -> None:
    run = CliRunner().invoke(app, ["score", str(mix)])
    assert run.exit_code == 1
    assert len(run.stdout.splitlines()) == 2 + len(UNREAD)
    for name, (_, kind) in UNREAD.items():
        assert f"{name}: not read: {kind}" in run.stdout
    assert "4 of 5 images have no score" in run.stderr


def test_sources_of_a_cluster(mix: Path) -> None:
    assert list_sources([str(mix)], 10).images == 1 + len(UNREAD)
    storage = fsspec.filesystem("memory")
    for path in mix.iterdir():
        storage.pipe_file(f"/unread/{path.name}", path.read_bytes())
    assert list_sources(["memory://unread/"], 10).images == 1 + len(UNREAD)


def test_photographs_to_train_on(mix: Path) -> None:
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(1) as pool:
        usable = check_all(open_photos(str(mix)), 32, skipped, pool, lambda _: None)
    assert len(usable) == 1
    assert {Path(name).name for name in skipped} == set(UNREAD)
    assert all("not read: " in reason for reason in skipped.values())


def test_iqa_harness_check(mix: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_main(monkeypatch, "iqa-harness", "check", "--images", mix, "--min-score", 0) == 2
    said = capsys.readouterr().err
    assert "4 of 5 images cannot be read" in said
    for name, (_, kind) in UNREAD.items():
        assert f"{name}: not read: {kind}" in said


def test_a_labelled_picture_of_the_harness(mix: Path) -> None:
    names = sorted(path.name for path in mix.iterdir())
    write_metadata(mix, [{"file_name": name, "mos": at} for at, name in enumerate(names)])
    assert set(inspect(open_dataset(str(mix))).unreadable) == set(UNREAD)


def test_a_picture_without_a_row_in_the_metadata(tmp_path: Path) -> None:
    folder = opinion_folder(tmp_path / "set")
    (folder / "more").mkdir()
    picture().save(folder / "more" / "extra.png")
    (folder / "more" / "new.jxl").write_bytes(b"\xff\x0a")
    images = open_dataset(str(folder))
    assert images.unlisted == ("more/extra.png", "more/new.jxl")
    found = inspect(images)
    assert not found.sound
    assert "without a row in the metadata: 2\n  more/extra.png\n  more/new.jxl" in report(found)
    notes: list[str] = []
    reporter = Silent()
    reporter.note = notes.append  # type: ignore[method-assign]
    run_all(
        RunRequest((fake_scorer(),), (str(folder),), tmp_path / "out", settings=Settings(intervals=False)), reporter
    )
    assert notes[0] == "set: 2 images have no row in the metadata and no score: more/extra.png, more/new.jxl"
