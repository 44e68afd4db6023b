"""Temporary files: whose they are, and who removes them."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from qualiclip_plugin.utils import atomic as files
from qualiclip_plugin.utils.atomic import (
    atomic_folder,
    atomic_write,
    inside,
    recorded_sha256,
    remove_folder,
    remove_leftovers,
)
from qualiclip_plugin.utils.errors import DatasetError, QualiCLIPError

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="needs the locks of POSIX")

WRITER = """
import sys, time
from pathlib import Path
from qualiclip_plugin.utils.atomic import atomic_folder, atomic_write
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


def test_the_next_process_removes_what_a_killed_one_left(tmp_path: Path, writer: subprocess.Popen[str]) -> None:
    assert len(names(tmp_path)) == 2
    with atomic_write(tmp_path / "other", "w") as file:
        file.write("whole")
    assert len(names(tmp_path)) == 3, "what is still written stays"
    writer.kill()
    writer.wait()
    files._remove_leftovers_once.cache_clear()  # as in a new process
    with atomic_write(tmp_path / "other", "w") as file:
        file.write("whole")
    assert names(tmp_path) == ["other"]


LEFTOVER = ".qualiclip-tmp-0123456789abcdef"


def test_other_files_are_never_taken_for_leftovers(tmp_path: Path) -> None:
    kept = [
        *(".part", ".file.part", "file.csv.part", ".a.b.partial", ".x.0123abcd.part", ".photos.20261128.part"),
        *(f"{LEFTOVER}.part.gz", ".qualiclip-tmp-20261128.part", f"{LEFTOVER[1:]}.part"),
    ]
    for name in kept:
        (tmp_path / name).write_text("mine")
    (tmp_path / ".backup.20261128.partial").mkdir()
    (tmp_path / ".backup.20261128.partial" / "photo.jpg").write_text("mine")
    (tmp_path / f"{LEFTOVER}.part").symlink_to(tmp_path / "file.csv.part")
    os.mkfifo(tmp_path / f"{LEFTOVER}.partial")
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("whole")
    remove_leftovers(tmp_path)
    found = {*kept, ".backup.20261128.partial", f"{LEFTOVER}.part", f"{LEFTOVER}.partial", "file"}
    assert set(names(tmp_path)) == found
    assert (tmp_path / ".backup.20261128.partial" / "photo.jpg").read_text() == "mine"


def test_leftovers_of_other_users_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"{LEFTOVER}.part").touch()
    user = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: user + 1)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == [f"{LEFTOVER}.part"]
    monkeypatch.undo()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == []


def test_folders_of_any_depth_are_removed_and_links_in_them_not_followed(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "photo.jpg").touch()
    deep = tmp_path / f"{LEFTOVER}.partial"
    deep.mkdir()
    (deep / "link").symlink_to(tmp_path / "kept")
    (deep / "twin" / "twin").mkdir(parents=True)
    place = deep
    for _ in range(1800):  # ``Path.mkdir`` calls itself for every parent
        place /= "a"
        place.mkdir()
    (place / "file").touch()
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["kept"]
    assert names(tmp_path / "kept") == ["photo.jpg"]


def test_a_folder_is_listed_once_however_often_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[str] = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda place: listed.append(str(place)) or scandir(place))
    for number in range(3):
        with atomic_write(tmp_path / f"{number}", "w") as file:
            file.write("whole")
    assert listed == [str(tmp_path)]


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

    (tmp_path / f"{LEFTOVER}.part").write_text("perhaps still written")
    monkeypatch.setattr(files.fcntl, "flock", unsupported)
    with atomic_write(tmp_path / "file", "w") as file:
        file.write("whole")
    assert names(tmp_path) == [f"{LEFTOVER}.part", "file"]


def test_a_folder_is_replaced_only_where_asked_for(tmp_path: Path) -> None:
    for number, replace in enumerate((False, False, True)):
        with atomic_folder(tmp_path / "folder", replace=replace) as folder:
            (folder / f"{number}").touch()
        assert names(tmp_path / "folder") == ["2" if replace else "0"]
    assert names(tmp_path) == ["folder"]


REPLACER = """
import os, sys
from pathlib import Path
from qualiclip_plugin.utils.atomic import atomic_folder
folder, wanted = Path(sys.argv[1]), int(sys.argv[2])
rename, done = Path.rename, []
def stop(path, target):
    done.append(path)
    if len(done) > wanted:
        os._exit(9)
    return rename(path, target)
Path.rename = stop
with atomic_folder(folder, replace=True) as partial:
    (partial / "new").touch()
"""


@pytest.mark.parametrize("renames", [0, 1])
def test_a_kill_while_a_folder_is_replaced_costs_neither_the_old_nor_the_new(tmp_path: Path, renames: int) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old").touch()
    done = subprocess.run([sys.executable, "-c", REPLACER, str(tmp_path / "report"), str(renames)], check=False)
    assert done.returncode == 9
    assert (tmp_path / "report").exists() == (renames == 0)
    remove_leftovers(tmp_path)
    assert names(tmp_path) == ["report"]
    assert names(tmp_path / "report") == ["old"]


def test_a_failure_while_a_folder_is_replaced_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "old").touch()
    rename = Path.rename

    def fail(path: Path, target: Path) -> Path:
        if (path / "new").exists():
            raise OSError(5, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail)
    with (
        pytest.raises(OSError, match="Input/output"),
        atomic_folder(tmp_path / "report", replace=True) as partial,
    ):
        (partial / "new").touch()
    assert names(tmp_path) == ["report"]
    assert names(tmp_path / "report") == ["old"]


def test_a_folder_is_removed_whole(tmp_path: Path) -> None:
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []
    with pytest.raises(OSError, match="folder"):
        remove_folder(tmp_path / "folder")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "a/../../b",
        "/etc/passwd",
        "//host/x",
        "C:x",
        "..\\x",
        "a\0b",
        "https://host/x.png",
        "out/x",
        "out",
    ],
)
def test_no_name_leads_out_of_a_folder(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(DatasetError, match=r"row 3: .* leads out of the folder"):
        inside(folder, name, error=DatasetError, where="row 3")


def test_names_that_stay_in_a_folder(tmp_path: Path) -> None:
    (tmp_path / "folder" / "real").mkdir(parents=True)
    (tmp_path / "folder" / "link").symlink_to("real")
    (tmp_path / "alias").symlink_to("folder")
    for folder in (tmp_path / "folder", tmp_path / "alias"):
        for name in ("a.png", "a/b.png", "./a", "..a", "link/x", "caf\udce9.png"):
            assert inside(folder, name) == folder / name
    assert inside(tmp_path, "a", "b/c") == tmp_path / "a" / "b" / "c"


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
