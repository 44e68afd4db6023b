"""The trainer: exact repetition, exact continuation, many processes as one, and errors before any work."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import typer
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from typer.testing import CliRunner

from qualiclip_plugin.errors import ConfigError, DatasetError
from qualiclip_plugin.training import run_folder
from qualiclip_plugin.training.batches import Batch
from qualiclip_plugin.training.cli import train_command
from qualiclip_plugin.training.config import config_from_mapping
from qualiclip_plugin.training.draws import draw_plan, relevant_pairs
from qualiclip_plugin.training.optimizer import learning_rate
from qualiclip_plugin.training.run_folder import RunFolder, read_csv
from qualiclip_plugin.training.trainer import Trainer, TrainResult
from qualiclip_plugin.weights import load_model

RUN = [sys.executable, "-m", "qualiclip_plugin.training.cli"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory, photographs: list[np.ndarray]) -> str:
    """Eight small photographs."""
    folder = tmp_path_factory.mktemp("photos")
    for number, photo in enumerate(photographs):
        for part in range(2):
            crop = photo[60 : 60 + 96, 100 * part : 100 * part + 112]
            Image.fromarray(crop).save(folder / f"photo{number}{part}.png")
    return str(folder)


@pytest.fixture(scope="module")
def settings(tiny_checkpoint: Path) -> dict[str, Any]:
    """A run of a second."""
    return {
        "weights": str(tiny_checkpoint),
        "steps": 6,
        "batch_size": 2,
        "crop_size": 64,
        "levels": 3,
        "distortions": ["gaussian_blur", "jpeg", "white_noise", "darken"],
        "learning_rate": 1e-3,
        "schedule": "cosine",
        "cpu": True,
        "workers": 2,
        "validation_photos": 0,
        "validation_size": 64,
        "save_every": 2,
    }


@pytest.fixture(scope="module")
def whole(settings: dict[str, Any], photos: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of ``settings``."""
    output = tmp_path_factory.mktemp("whole") / "run"
    run(settings, photos, output)
    return output


def run(settings: dict[str, Any], photos: str, output: Path, **options: Any) -> TrainResult:
    return Trainer(config_from_mapping(settings), photos, str(output), **options).run()


def weights(output: Path) -> dict[str, torch.Tensor]:
    return load_file(output / "model.safetensors")


def losses(output: Path) -> list[tuple[str, ...]]:
    return [tuple(row[k] for k in ("step", "loss", "accuracy")) for row in read_csv(output / "log.csv")]


def assert_same(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def command(settings: dict[str, Any], photos: str, output: Path, *more: str) -> list[str]:
    config = output.parent / f"{output.name}.yaml"
    config.write_text(json.dumps(settings))
    return [*RUN, "--config", str(config), "--photos", photos, "--output", str(output), *more]


def signal_at_step(arguments: list[str], output: Path, step: int, number: int) -> subprocess.CompletedProcess[str]:
    """Start a run, send it a signal once its log has reached a step, and wait for its end."""
    process = subprocess.Popen(arguments, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(read_csv(output / "log.csv")) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, "", errors)


def test_a_run_leaves_everything_that_is_promised(settings, photos: str, tmp_path: Path) -> None:
    result = run(settings | {"validate_every": 3, "validation_photos": 1}, photos, tmp_path / "run")
    output = tmp_path / "run"
    assert (result.step, result.stopped_by, result.model) == (6, None, output / "model.safetensors")
    assert [row["step"] for row in read_csv(output / "log.csv")] == list("123456")
    assert [row["step"] for row in read_csv(output / "validation.csv")] == ["0", "3", "6"]
    assert (output / "training.png").stat().st_size > 10_000
    assert RunFolder(output).steps() == [4, 6]
    validation = read_csv(output / "validation.csv")

    model = load_model(str(output / "model.safetensors"))
    assert 0 <= model(torch.rand(1, 3, 64, 80)).item() <= 1
    from qualiclip_plugin.checkpoint import read_weights

    card = read_weights(output / "model.safetensors").header["card"]
    assert card["config"]["steps"] == 6
    assert card["photographs"]["trained_on"] == 7
    assert card["validation"] == result.validation
    assert card["opinion_aware"] is False
    assert {"date", "versions", "device", "git_revision", "seconds_of_training"} <= set(card)
    assert all(0 < stage["relative"] < 1 for stage in card["weights_moved"].values())
    assert set(result.validation["kinds"]) >= {"jpeg", "haze"}
    assert 0.5 <= result.validation["d_test"] <= 1
    assert -1 <= result.validation["l_test"] <= 1

    # Continuing a finished run writes its end again and changes nothing.
    before = weights(output)
    again = run(settings | {"validate_every": 3, "validation_photos": 1}, photos, output, resume=True)
    assert again.step == 6
    assert_same(weights(output), before)
    assert read_csv(output / "validation.csv") == validation


def test_equal_seeds_give_equal_weights_whatever_does_not_matter(
    settings, photos: str, whole: Path, tmp_path: Path
) -> None:
    scored = tmp_path / "scored"
    shutil.copytree(photos, scored)
    names = sorted(path.name for path in scored.iterdir())
    (scored / "metadata.csv").write_text("file_name,mos\n" + "".join(f"{n},{i}\n" for i, n in enumerate(names)))
    other = {"workers": 1, "save_every": 5, "keep": 1, "validate_every": 2, "scored_data": str(scored)}
    result = run(settings | other, photos, tmp_path / "second")
    assert -1 <= result.validation["srcc"] <= 1
    run(settings | {"seed": 1}, photos, tmp_path / "third")
    assert_same(weights(whole), weights(tmp_path / "second"))
    assert losses(whole) == losses(tmp_path / "second")
    assert losses(whole) != losses(tmp_path / "third")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_continues_bit_for_bit(settings, photos: str, tmp_path: Path, number: int) -> None:
    settings = settings | {"steps": 40, "save_every": 3, "ema": 0.9}
    run(settings, photos, tmp_path / "whole")
    output = tmp_path / "stopped"
    ended = signal_at_step(command(settings, photos, output), output, 4, number)
    stopped_at = RunFolder(output).steps()[-1]
    assert 3 <= stopped_at < 40, "the signal came too late to interrupt anything"
    assert not (output / "model.safetensors").exists()
    if number == signal.SIGTERM:
        assert ended.returncode == 143
        assert f"after step {stopped_at}; continue with --resume" in ended.stderr
        assert len(read_csv(output / "log.csv")) == stopped_at
        done = subprocess.run(
            command(settings, photos, output, "--resume"),
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    else:
        assert ended.returncode == -signal.SIGKILL
        assert len(read_csv(output / "log.csv")) - stopped_at <= 3
        run(settings, photos, output, resume=True)
    assert_same(weights(output), weights(tmp_path / "whole"))
    assert losses(output) == losses(tmp_path / "whole")
    last = [folder / "checkpoints" / "step-00000040" for folder in (output, tmp_path / "whole")]
    assert_same(*(load_file(folder / "averaged.safetensors") for folder in last))
    first, second = (torch.load(folder / "state.pt", weights_only=True)["optimizer"] for folder in last)
    assert all(
        torch.equal(first["state"][key]["exp_avg_sq"], second["state"][key]["exp_avg_sq"]) for key in first["state"]
    )


def test_two_processes_equal_one(settings, photos: str, tmp_path: Path) -> None:
    settings = settings | {
        "batch_size": 4,
        "steps": 4,
        # Adam turns rounding errors of vanishing gradients into steps of this size.
        "learning_rate": 1e-4,
        "pristine": True,
        "content_weight": 0.5,
        "content_mild": 0,
        "content_severe": 3,
        "metric_weight": 0.5,
        "attribute_weight": 0.5,
        "start_pull": 0.1,
    }
    run(settings, photos, tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    arguments = launch + command(settings, photos, tmp_path / "two")[1:]
    done = subprocess.run(arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    one, two = (read_csv(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for part in ("loss", "consistency", "positive", "negative", "content", "metric", "attribute", "accuracy"):
            assert float(first[part]) == pytest.approx(float(second[part]), abs=1e-5), (part, first["step"])
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(value, weights(tmp_path / "two")[name], atol=1e-4, rtol=1e-3)
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


def test_a_streamed_run_continues_bit_for_bit(settings, photos: str, tmp_path: Path) -> None:
    settings = settings | {"streaming": True, "shuffle_buffer": 3, "steps": 8}
    run(settings, photos, tmp_path / "whole")
    stop_after(settings, photos, tmp_path / "part", 4)
    run(settings, photos, tmp_path / "part", resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))


class CrashError(Exception):
    """Stands for a crash."""


def stop_after(settings: dict[str, Any], photos: str, output: Path, step: int) -> None:
    """Train to a step and crash there."""
    trainer = Trainer(config_from_mapping(settings), photos, str(output))
    train_step = trainer.train_step

    def crashing(batch: Batch) -> dict[str, torch.Tensor]:
        if batch.step == step:
            raise CrashError
        return train_step(batch)

    trainer.train_step = crashing  # type: ignore[method-assign]
    with pytest.raises(CrashError):
        trainer.run()


def test_a_run_that_crashed_before_its_first_checkpoint_continues_from_the_start(
    settings, photos: str, whole: Path, tmp_path: Path
) -> None:
    stop_after(settings, photos, tmp_path / "part", 1)
    assert RunFolder(tmp_path / "part").steps() == []
    run(settings, photos, tmp_path / "part", resume=True)
    assert_same(weights(whole), weights(tmp_path / "part"))


def test_folders_that_cannot_serve_are_refused_before_work(
    settings, photos: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match="nothing to resume"):
        run(settings, photos, tmp_path / "new", resume=True)
    stop_after(settings, photos, tmp_path / "run", 3)
    with pytest.raises(ConfigError, match="already holds a run"):
        run(settings, photos, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"learning_rate: 0\.001 -> 0\.002"):
        run(settings | {"learning_rate": 2e-3}, photos, tmp_path / "run", resume=True)
    shutil.copytree(photos, tmp_path / "other")
    (tmp_path / "other" / "photo00.png").unlink()
    with pytest.raises(ConfigError, match="photographs"):
        run(settings, str(tmp_path / "other"), tmp_path / "run", resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write"):
        run(settings, photos, tmp_path / "file" / "run")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigError, match="MB free"):
        run(settings, photos, tmp_path / "full")
    assert not (tmp_path / "full" / "run.json").exists()


def test_a_disk_that_fills_up_keeps_the_last_good_checkpoint(
    settings, photos: str, whole: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = run_folder._write_checkpoint

    def full(folder: Path, step: int, state: Any) -> None:
        if step == 4:
            (folder / "weights.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(folder, step, state)

    monkeypatch.setattr(run_folder, "_write_checkpoint", full)
    with pytest.raises(ConfigError, match=r"step 4.*No space left.*step 2 is whole"):
        run(settings, photos, tmp_path / "run")
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000002"]
    monkeypatch.undo()
    run(settings, photos, tmp_path / "run", resume=True)
    assert_same(weights(tmp_path / "run"), weights(whole))


def test_an_altered_checkpoint_is_refused(settings, photos: str, tmp_path: Path) -> None:
    stop_after(settings, photos, tmp_path / "run", 5)
    path = tmp_path / "run" / "checkpoints" / "step-00000004" / "weights.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"step-00000004 was altered \(weights.safetensors\)"):
        run(settings, photos, tmp_path / "run", resume=True)
    shutil.rmtree(path.parent)
    assert run(settings, photos, tmp_path / "run", resume=True).step == 6


def test_a_second_process_is_kept_out(settings, photos: str, tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.lock()
    with pytest.raises(ConfigError, match="another process"):
        RunFolder(tmp_path).lock()
    folder.unlock()


def test_skipped_photographs_are_listed(settings, photos: str, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    shutil.copytree(photos, folder)
    Image.fromarray(np.zeros((30, 90, 3), np.uint8)).save(folder / "small.png")
    (folder / "broken.png").write_bytes((folder / "photo00.png").read_bytes()[:500])
    for check in (True, False):
        output = tmp_path / f"checked-{check}"
        run(settings | {"check_photos": check, "steps": 12}, str(folder), output)
        names = {Path(row["photograph"]).name for row in read_csv(output / "skipped.csv")}
        assert names == {"small.png", "broken.png"}
    # What was met before an interruption stays listed.
    (folder / "small.png").unlink()
    (folder / "broken.png").unlink()
    unchecked = settings | {"check_photos": False, "steps": 12}
    (output / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match="photographs"):
        run(unchecked, str(folder), output, resume=True)
    assert len(read_csv(output / "skipped.csv")) == 2


def test_no_usable_photograph_is_an_error(settings, photos: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="0 usable photographs"):
        run(settings | {"crop_size": 256}, photos, tmp_path / "run")


def test_only_the_chosen_stages_move(settings, photos: str, tmp_path: Path) -> None:
    run(settings | {"train_layers": 2, "batch_norm": "train"}, photos, tmp_path / "run")
    before, after = load_file(tmp_path / "run" / "start.safetensors"), weights(tmp_path / "run")
    moved = {name.split(".")[1] for name, value in after.items() if not torch.equal(value, before[name])}
    assert moved == {"layer4", "attnpool"}
    assert any("running_mean" in name for name in after if not torch.equal(after[name], before[name]))
    with pytest.raises(ConfigError, match="no stage layer9; there are stem, layer1"):
        run(settings | {"train_layers": ["layer9"]}, photos, tmp_path / "other")
    with pytest.raises(ConfigError, match=r"1\.\.6"):
        run(settings | {"train_layers": 7}, photos, tmp_path / "other")


def test_batch_norm_keeps_its_statistics_by_default(whole: Path) -> None:
    before, after = load_file(whole / "start.safetensors"), weights(whole)
    assert all(torch.equal(after[name], before[name]) for name in after if "running" in name)
    assert torch.equal(after["text_features"], before["text_features"])


def test_a_pull_keeps_the_weights_near_their_start(settings, photos: str, tmp_path: Path) -> None:
    def moved(name: str, **changes: Any) -> float:
        changes |= {"optimizer": "sgd", "learning_rate": 1e-2, "weight_decay": 0.0}
        run(settings | changes, photos, tmp_path / name)
        before, after = load_file(tmp_path / name / "start.safetensors"), weights(tmp_path / name)
        return sum((after[k] - before[k]).square().sum().item() for k in after)

    free, pulled = moved("free"), moved("pulled", start_pull=20.0)
    assert 0 < pulled < 0.8 * free


def test_averaged_weights_are_the_result(settings, photos: str, tmp_path: Path) -> None:
    run(settings | {"ema": 0.5, "save_every": 1, "keep": 99}, photos, tmp_path / "run")
    name = "image_encoder.layer1.0.conv1.weight"
    expected = load_file(tmp_path / "run" / "start.safetensors")[name]
    for step in range(1, 7):
        now = load_file(tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "weights.safetensors")[name]
        expected = 0.5 * expected + 0.5 * now
    torch.testing.assert_close(weights(tmp_path / "run")[name], expected)


def test_gradient_checkpointing_changes_nothing(settings, photos: str, whole: Path, tmp_path: Path) -> None:
    run(settings | {"gradient_checkpointing": True}, photos, tmp_path / "checkpointed")
    for name, value in weights(whole).items():
        torch.testing.assert_close(value, weights(tmp_path / "checkpointed")[name], atol=1e-5, rtol=1e-4)


@pytest.mark.slow
def test_a_compiled_run_agrees(settings, photos: str, whole: Path, tmp_path: Path) -> None:
    if shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    run(settings | {"compile": True}, photos, tmp_path / "compiled")
    for compiled, plain in zip(losses(tmp_path / "compiled"), losses(whole), strict=True):
        assert float(compiled[1]) == pytest.approx(float(plain[1]), abs=1e-2)


def test_half_precision_results(settings, photos: str, tmp_path: Path) -> None:
    run(settings | {"save_precision": "fp16", "steps": 2}, photos, tmp_path / "run")
    assert all(value.dtype == torch.float16 for value in weights(tmp_path / "run").values())


def test_autocast_keeps_fp32_weights(settings, photos: str, tmp_path: Path) -> None:
    # Accelerate allows one precision a process.
    AcceleratorState._reset_state(reset_partial_state=True)
    changes = {"mixed_precision": "bf16", "channels_last": True, "clip_norm": 1.0, "optimizer": "sgd", "steps": 3}
    try:
        run(settings | changes, photos, tmp_path / "run")
    finally:
        AcceleratorState._reset_state(reset_partial_state=True)
    trained = load_file(tmp_path / "run" / "checkpoints" / "step-00000003" / "weights.safetensors")
    assert all(value.dtype != torch.bfloat16 for value in trained.values())
    first = read_csv(tmp_path / "run" / "log.csv")[0]
    assert 0 < float(first["loss"]) < 10
    # Similarities are computed in fp32: a multiple of bf16's spacing would show in the consistency margin of .0025.
    assert float(first["consistency"]) * 2**12 % 1 != 0


def test_scored_data_that_cannot_be_used_is_refused(settings, photos: str, tmp_path: Path) -> None:
    def refused(text: str, message: str) -> None:
        (tmp_path / "metadata.csv").write_text(text)
        with pytest.raises(DatasetError, match=message):
            run(settings | {"scored_data": str(tmp_path)}, photos, tmp_path / "run")

    refused("file_name,mos\nmissing.png,1\n", r"missing\.png")
    refused("file_name,mos\nmissing.png,good\n", "no number")
    refused("file,mos\nmissing.png,1\n", "file_name")


def test_tensorboard_logs_on_request(settings, photos: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(settings | {"steps": 2}, photos, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_a_loss_that_is_not_finite_stops_the_run(settings, photos: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="lower the learning rate"):
        run(settings | {"learning_rate": 1e3, "steps": 50, "schedule": "constant"}, photos, tmp_path / "run")


def test_learning_rate_is_a_function_of_the_step(settings) -> None:
    def rates(**changes: Any) -> list[float]:
        config = config_from_mapping(settings | {"learning_rate": 1.0, "steps": 10} | changes)
        return [learning_rate(config, step) for step in range(10)]

    assert rates(schedule="constant") == [1.0] * 10
    assert rates(schedule="constant", warmup=4)[:5] == [0.25, 0.5, 0.75, 1.0, 1.0]
    assert rates(schedule="cosine")[5] == pytest.approx(0.5)
    one_cycle = rates(schedule="onecycle")
    parameter = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.SGD([parameter], lr=1.0)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 1.0, total_steps=10, pct_start=0.4)
    # PyTorch counts the peak as step pct_start * steps - 1.
    expected = []
    for _ in range(10):
        expected.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step() if len(expected) < 10 else None
    np.testing.assert_allclose(one_cycle, expected, rtol=1e-6)


def test_plans_are_drawn_for_the_step_and_name_their_prompt_pairs(settings) -> None:
    config = config_from_mapping(settings | {"batch_size": 40, "compositions": [1, 2]})
    assert draw_plan(config, 3) == draw_plan(config, 3)
    assert draw_plan(config, 3) != draw_plan(config, 4)
    plan = draw_plan(config, 0)
    relevant = relevant_pairs(plan, config)
    for kinds, row in zip(plan.kinds, relevant, strict=True):
        assert row[1] == row[2] == ("gaussian_blur" in kinds)
        assert row[4] == ("white_noise" in kinds)
        assert not row[[0, 3, 5, 6]].any()


def test_errors_of_the_command_are_one_line(tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(train_command)
    arguments = ["--config", "laptop", "--photos", "skimage", "--output", str(tmp_path / "run")]
    done = CliRunner().invoke(app, [*arguments, "--set", "stepz=1"])
    assert done.exit_code == 2
    assert done.stderr.strip() == "error: laptop: unknown setting 'stepz'; did you mean steps?"
    assert not (tmp_path / "run").exists()
