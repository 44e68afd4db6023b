"""What is no regular file, or too large a one, is refused by every reader without being read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.check.snapshot import read_baseline
from harness.data.spec import read_spec
from harness.results.store import Store
from qualiclip_plugin.training.run_folder import RunFolder, read_csv
from qualiclip_plugin.utils.atomic import recorded_sha256, sha256_file
from qualiclip_plugin.utils.environment import user_cache
from qualiclip_plugin.utils.errors import ConfigError, QualiCLIPError
from qualiclip_plugin.utils.regular_files import read_regular
from qualiclip_plugin.utils.tables import read_rows
from qualiclip_plugin.weights.pickles import load_pickle

READERS: dict[str, Callable[[Path], object]] = {
    "bytes": read_regular,
    "baseline": read_baseline,
    "cell": lambda path: Store(path.parent).read_cell(path),
    "specification": read_spec,
    "metadata": lambda path: list(read_rows(path)),
    "log": read_csv,
    "hash": sha256_file,
    "recorded hash": lambda path: recorded_sha256(path.with_suffix("")),
    "state": load_pickle,
}


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", ["pipe", "device", "folder"])
def test_what_is_no_file_is_refused(tmp_path: Path, reader: str, kind: str) -> None:
    path = tmp_path / "name.sha256"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        path.mkdir()
    with pytest.raises((OSError, QualiCLIPError), match=r"not a regular file|a folder"):
        READERS[reader](path)


@pytest.mark.parametrize("reader", ["baseline", "cell", "specification", "metadata", "log", "recorded hash"])
def test_a_file_with_a_hole_of_a_terabyte_is_refused(tmp_path: Path, reader: str) -> None:
    path = tmp_path / "name.sha256"
    path.touch()
    os.truncate(path, 2**40)
    with pytest.raises((OSError, QualiCLIPError), match="bytes, more than"):
        READERS[reader](path)


@pytest.mark.parametrize("name", ["checkpoint.json", "state.pt"])
def test_a_checkpoint_with_a_device_is_refused(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "checkpoints" / "step-00000001"
    folder.mkdir(parents=True)
    record = '{"step": 1, "position": 0, "config": {}, "sha256": {"state.pt": "", "weights.safetensors": ""}}'
    (folder / "checkpoint.json").write_text(record)
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to("/dev/zero")
    with pytest.raises(ConfigError, match="not a regular file"):
        RunFolder(tmp_path).load()


def test_a_list_of_skipped_photographs_has_its_columns(tmp_path: Path) -> None:
    (tmp_path / "skipped.csv").write_text("a,b\n1,2\n")
    with pytest.raises(ConfigError, match=r"skipped\.csv: no column 'photograph'"):
        RunFolder(tmp_path).read_skipped()


def test_a_user_without_a_home_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(os.path, "expanduser", lambda path: path)
    with pytest.raises(ConfigError, match=r"no home folder.*set HOME"):
        user_cache()
