"""What a run is refused before any work, and what it keeps when the disk fails."""

from __future__ import annotations

import json
import re
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from qualiclip_plugin.training.config import config_from_mapping
from qualiclip_plugin.training.run_folder import RunFolder, read_csv
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, ImageError, QualiCLIPError
from tests.support.harness_data import opinion_folder
from tests.support.training_runs import assert_same, losses, run, stop_after, weights

pytestmark = pytest.mark.usefixtures("one_thread")


def test_folders_that_cannot_serve_are_refused_before_work(
    run_settings, photo_folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(run_settings, photo_folder, tmp_path / "new", resume=True)
    stop_after(run_settings, photo_folder, tmp_path / "run", 3)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(run_settings, photo_folder, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.002"):
        run(run_settings | {"learning_rate": 2e-3}, photo_folder, tmp_path / "run", resume=True)
    shutil.copytree(photo_folder, tmp_path / "other")
    (tmp_path / "other" / "photo00.png").unlink()
    with pytest.raises(ConfigError, match="photographs"):
        run(run_settings, str(tmp_path / "other"), tmp_path / "run", resume=True)
    swapped = shutil.copytree(photo_folder, tmp_path / "swapped")
    shutil.copy(swapped / "photo00.png", swapped / "photo01.png")
    with pytest.raises(ConfigError, match="photographs fingerprint"):
        run(run_settings, str(swapped), tmp_path / "run", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        run(run_settings, photo_folder, tmp_path / "file" / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="MB free"):
        run(run_settings, photo_folder, tmp_path / "full")
    assert not (tmp_path / "full" / "run.json").exists()


def test_a_run_goes_on_after_its_photographs_have_moved(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    stop_after(run_settings, photo_folder, tmp_path / "run", 3)
    moved = shutil.copytree(photo_folder, tmp_path / "moved")
    run(run_settings, str(moved), tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), weights(finished_run))


def test_a_run_that_left_nothing_but_its_starting_weights_can_begin_again(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "run").mkdir()
    shutil.copy(finished_run / "start.safetensors", tmp_path / "run")
    assert run(run_settings, photo_folder, tmp_path / "run").step == 6


def test_a_trainer_that_fails_before_work_gives_its_folder_back(
    run_settings, photo_folder: str, tmp_path: Path
) -> None:
    # As in a notebook, which keeps the failed trainer alive in its traceback.
    with pytest.raises(DatasetError, match="0 usable") as failure:
        run(run_settings | {"crop_size": 256}, photo_folder, tmp_path / "run")
    assert run(run_settings, photo_folder, tmp_path / "run").step == 6
    assert failure.traceback


@pytest.mark.parametrize("wrong", [{"weights": "lit"}, {"mixed_precision": "fp16"}, {"distortions": ["blurr"]}])
def test_a_trainer_that_fails_before_work_leaves_no_empty_folder(
    run_settings, photo_folder: str, tmp_path: Path, wrong: dict[str, Any]
) -> None:
    (tmp_path / "mine").mkdir()
    for output in ("new/run", "mine"):
        with pytest.raises(QualiCLIPError):
            run(run_settings | wrong, photo_folder, tmp_path / output)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """No file may grow beyond a size in bytes, as on a disk that is full."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_full_disk_is_named_and_keeps_the_last_good_checkpoint(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    last = finished_run / "checkpoints" / "step-00000006"
    files = (finished_run / "start.safetensors", last / "weights.safetensors", last / "state.pt")
    start, network, state = (file.stat().st_size for file in files)
    assert start < network < state
    output = tmp_path / "run"
    with file_size_limit(start - 1), pytest.raises(ConfigError, match=r"cannot write to \S+: File too large"):
        run(run_settings, photo_folder, output)
    # Nothing was begun, so the same command may be given again.
    for size in (network - 1, state - 1):
        nothing = r"step 2 cannot be written to \S+ \(File too large\); no checkpoint was written yet"
        with file_size_limit(size), pytest.raises(ConfigError, match=nothing):
            run(run_settings, photo_folder, output)
        shutil.rmtree(output)
    stop_after(run_settings, photo_folder, output, 3)
    kept = r"step 4 cannot be written to \S+ \(File too large\); the checkpoint of step 2 is whole"
    with file_size_limit(state - 1), pytest.raises(ConfigError, match=kept):
        run(run_settings, photo_folder, output, resume=True)
    assert [path.name for path in (output / "checkpoints").iterdir()] == ["step-00000002"]
    run(run_settings, photo_folder, output, resume=True)
    assert_same(weights(output), weights(finished_run))


def test_a_resumed_run_removes_what_a_kill_left_too_many(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    # Killed after the last checkpoint was moved into its place and before the old ones were removed.
    kept = sorted(path.name for path in (finished_run / "checkpoints").iterdir())
    shutil.copytree(finished_run, tmp_path / "run")
    checkpoints = tmp_path / "run" / "checkpoints"
    shutil.copytree(checkpoints / kept[0], checkpoints / "step-00000001")
    run(run_settings, photo_folder, tmp_path / "run", resume=True)
    assert sorted(path.name for path in checkpoints.iterdir()) == kept


def test_a_finished_run_goes_on_where_its_schedule_allows(run_settings, photo_folder: str, tmp_path: Path) -> None:
    settings = run_settings | {"schedule": "constant", "warmup": 3}
    whole, extended = tmp_path / "whole", tmp_path / "extended"
    run(settings | {"steps": 4}, photo_folder, whole)
    for steps in (2, 4):
        run(settings | {"steps": steps}, photo_folder, extended, resume=steps > 2)
        assert json.loads((extended / "run.json").read_text())["config"]["steps"] == steps
    assert_same(weights(whole), weights(extended))
    assert losses(whole) == losses(extended)
    with pytest.raises(ConfigError, match="has done 4 steps: it cannot go on to steps=2"):
        run(settings | {"steps": 2}, photo_folder, extended, resume=True)


def test_a_schedule_with_an_end_says_how_to_train_on(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    match = r"steps: 6 -> 9.*steps=6 and train on from its result in a new one, --set weights=(\S+) --output ANOTHER"
    with pytest.raises(ConfigError, match=match) as refused:
        run(run_settings | {"steps": 9}, photo_folder, finished_run, resume=True)
    result = re.search(match, str(refused.value))[1]
    assert run(run_settings | {"steps": 1, "weights": result}, photo_folder, tmp_path / "another").step == 1


def test_a_checkpoint_holds_its_configuration_and_every_state(run_settings, finished_run: Path) -> None:
    folder = finished_run / "checkpoints" / "step-00000006"
    record = json.loads((folder / "checkpoint.json").read_text())
    assert config_from_mapping(record["config"]) == config_from_mapping(run_settings)
    assert (record["step"], record["position"]) == (6, 6)
    state = torch.load(folder / "state.pt", weights_only=True)
    assert set(state) == {"optimizer", "scaler", "schedule", "generators"}
    assert state["schedule"] == {"name": "cosine", "step": 6}
    assert set(state["generators"][0]) == {"python", "numpy", "torch", "cuda"}


@pytest.mark.parametrize("name", ["weights.safetensors", "checkpoint.json"])
def test_an_altered_checkpoint_is_refused(run_settings, photo_folder: str, tmp_path: Path, name: str) -> None:
    stop_after(run_settings, photo_folder, tmp_path / "run", 5)
    path = tmp_path / "run" / "checkpoints" / "step-00000004" / name
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"step-00000004 was altered \({name}.*remove it"):
        run(run_settings, photo_folder, tmp_path / "run", resume=True)
    shutil.rmtree(path.parent)
    assert run(run_settings, photo_folder, tmp_path / "run", resume=True).step == 6


def test_a_file_that_a_checkpoint_lacks_is_named(run_settings, photo_folder: str, tmp_path: Path) -> None:
    stop_after(run_settings, photo_folder, tmp_path / "run", 5)
    (tmp_path / "run" / "checkpoints" / "step-00000004" / "state.pt").unlink()
    with pytest.raises(ConfigError, match=r"step-00000004.state\.pt: cannot be read: No such file"):
        run(run_settings, photo_folder, tmp_path / "run", resume=True)


def test_a_second_process_is_kept_out(run_settings, photo_folder: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    with pytest.raises(ConfigError, match="another process"):
        RunFolder(tmp_path).lock()
    folder.release()


def test_skipped_photographs_are_listed(run_settings, photo_folder: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photo_folder, folder)
    Image.fromarray(np.zeros((30, 90, 3), np.uint8)).save(folder / "small.png")
    (folder / "broken.png").write_bytes((folder / "photo00.png").read_bytes()[:500])
    for check in (True, False):
        output = tmp_path / f"checked-{check}"
        run(run_settings | {"check_photos": check, "steps": 12}, str(folder), output)
        names = {Path(row["photograph"]).name for row in read_csv(output / "skipped.csv")}
        assert names == {"small.png", "broken.png"}
    # What was met before an interruption stays listed.
    (folder / "small.png").unlink()
    (folder / "broken.png").unlink()
    unchecked = run_settings | {"check_photos": False, "steps": 12}
    (output / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="photographs"):
        run(unchecked, str(folder), output, resume=True)
    assert len(read_csv(output / "skipped.csv")) == 2


@pytest.mark.parametrize(
    ("check", "message"), [(True, "0 usable photographs"), (False, "100 photographs in a row cannot be used")]
)
def test_skipped_photographs_are_listed_whatever_ends_the_run(
    run_settings, photo_folder: str, tmp_path: Path, check: bool, message: str
) -> None:
    settings = run_settings | {"check_photos": check, "validation_photos": 0, "validate_every": 0}
    with pytest.raises(DatasetError, match=message):
        run(settings | {"crop_size": 256}, photo_folder, tmp_path / "run")
    listed = {Path(row["photograph"]).name for row in read_csv(tmp_path / "run" / "skipped.csv")}
    assert listed <= {path.name for path in Path(photo_folder).iterdir()}
    assert len(listed) == 8 if check else listed


def test_the_list_of_a_try_that_failed_is_not_the_next_ones(run_settings, photo_folder: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 usable"):
        run(run_settings | {"crop_size": 256}, photo_folder, tmp_path / "run")
    assert (tmp_path / "run" / "skipped.csv").exists()
    run(run_settings, photo_folder, tmp_path / "run")
    assert not (tmp_path / "run" / "skipped.csv").exists()


def test_a_trainer_that_is_kept_out_leaves_the_list_alone(run_settings, photo_folder: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path / "run")
    folder.check(resume=False)
    folder.lock()
    folder.write_skipped({"photo": "broken"})
    with pytest.raises(ConfigError, match="another process"):
        run(run_settings, photo_folder, tmp_path / "run")
    assert folder.read_skipped() == {"photo": "broken"}
    folder.release()


def test_no_usable_photograph_is_an_error(run_settings, photo_folder: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 usable photographs"):
        run(run_settings | {"crop_size": 256}, photo_folder, tmp_path / "run")


def test_scored_data_that_cannot_be_used_is_refused_before_the_first_step(
    run_settings, photo_folder: str, tmp_path: Path
) -> None:
    scored = opinion_folder(tmp_path / "scored")
    settings = run_settings | {"scored_data": str(scored), "validate_every": 0}
    (scored / "7.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"7\.png: not an image"):
        run(settings, photo_folder, tmp_path / "run")
    (scored / "metadata.csv").write_text("")
    with pytest.raises(DatasetError, match=r"metadata\.csv: no rows"):
        run(settings, photo_folder, tmp_path / "run")
    assert not (tmp_path / "run" / "log.csv").exists()
