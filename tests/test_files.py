"""Temporary files: whose they are, and who removes them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qualiclip_plugin import files
from qualiclip_plugin.errors import QualiCLIPError
from qualiclip_plugin.files import atomic_folder, atomic_write, recorded_sha256, remove_leftovers

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the locks of POSIX")

WRITER = """
import sys, time
from pathlib import Path
from qualiclip_plugin.files import atomic_folder, atomic_write
folder = Path(sys.argv[1])
with atomic_write(folder / "file.csv", "w") as file, atomic_folder(folder / "inside") as inside:
    file.write("half")
    (inside / "part").write_text("half")
    print("ready", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def writer(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process in the middle of writing a file and a folder."""
    process = subprocess.Popen([sys.executable, "-c", WRITER, str(tmp_path)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_next_writer_removes_what_a_killed_one_left(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    assert len(names(tmp_path)) == 2
    with atomic_write(tmp_path / "other", "w") as file:
        file.write("whole")
    assert len(names(tmp_path)) == 3, "what is still written stays"
    writer.kill()
    writer.wait()
    with atomic_write(tmp_path / "other", "w") as file:
        file.write("whole")
    assert names(tmp_path) == ["other"]


def test_other_files_are_never_taken_for_leftovers(tmp_path: Path) -> None:
    kept = [".part", ".file.part", "file.csv.part", ".a.b.partial", ".x.0123abc.part", ".x.0123ABCD.part"]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".x.0123abcd.part").symlink_to(tmp_path / "file.csv.part")
    remove_leftovers(tmp_path)
    assert names(tmp_path) == sorted([*kept, ".x.0123abcd.part"])


def test_writers_survive_others_who_remove_leftovers_all_the_time(tmp_path: Path) -> None:
    stop = threading.Event()

    def sweep() -> None:
        while not stop.is_set():
            remove_leftovers(tmp_path)

    sweeper = threading.Thread(target=sweep)
    sweeper.start()
    try:
        for number in range(300):
            with atomic_write(tmp_path / f"{number % 3}", "w") as file:
                file.write(str(number))
            assert (tmp_path / f"{number % 3}").read_text() == str(number)
        with atomic_folder(tmp_path / "folder") as folder:
            (folder / "file").write_text("whole")
    finally:
        stop.set()
        sweeper.join()
    assert names(tmp_path) == ["0", "1", "2", "folder"]


def test_where_nothing_can_be_locked_nothing_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unsupported(handle: int, operation: int) -> None:
        raise OSError(95, "Operation not supported")

    (tmp_path / ".x.0123abcd.part").write_text("perhaps still written")
    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("whole")
    assert names(tmp_path) == [".x.0123abcd.part", "file"]


def test_a_folder_is_replaced_only_where_asked_for(tmp_path: Path) -> None:
    for number, replace in enumerate((False, False, True)):
        with atomic_folder(tmp_path / "folder", replace=replace) as folder:
            (folder / f"{number}").touch()
        assert names(tmp_path / "folder") == ["2" if replace else "0"]
    assert names(tmp_path) == ["folder"]


def test_the_system_applies_the_umask_which_belongs_to_all_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def change(mask: int) -> int:
        raise AssertionError("another thread may be creating a file")

    before = os.umask(0o027)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "umask", change)
            with atomic_write(tmp_path / "file", "w") as file, atomic_folder(tmp_path / "folder"):
                file.write("whole")
    finally:
        os.umask(before)
    modes = [(tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder")]
    assert modes == [0o640, 0o750]


def test_names_as_long_as_a_file_system_allows(tmp_path: Path) -> None:
    target = tmp_path / ("ä" * 127)
    with atomic_write(target, "w") as file:
        file.write("whole")
    assert target.read_text() == "whole"


def test_a_recorded_hash_is_one_or_an_error(tmp_path: Path) -> None:
    file = tmp_path / "weights"
    assert recorded_sha256(file) is None
    (tmp_path / "weights.sha256").write_text("a" * 64 + "  weights\n")
    assert recorded_sha256(file) == "a" * 64
    for damaged in (b"", b"a" * 63, b"\xff" * 64, b"A" * 64, b"a" * 64 + b"  weighty\n"):
        (tmp_path / "weights.sha256").write_bytes(damaged)
        with pytest.raises(QualiCLIPError, match=r"weights\.sha256 holds no SHA-256; delete it and weights"):
            recorded_sha256(file)
