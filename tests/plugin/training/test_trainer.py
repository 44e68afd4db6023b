"""The trainer: exact repetition, exact continuation, many processes as one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qualiclip_plugin.training.lite.start import LITE_START
from qualiclip_plugin.training.model_card import starting_record
from qualiclip_plugin.training.run_folder import RunFolder, read_csv
from qualiclip_plugin.weights.checkpoint import read_weights, save_checkpoint
from qualiclip_plugin.weights.loading import load_model
from tests.support.training_runs import (
    ENVIRONMENT,
    RUN,
    assert_same,
    command,
    losses,
    run,
    run_command,
    stop_after,
    trainer_that,
    weights,
)

pytestmark = pytest.mark.usefixtures("one_thread")


def test_a_run_leaves_everything_that_is_promised(run_settings, photo_folder: str, tmp_path: Path) -> None:
    result = run(run_settings | {"validate_every": 3, "validation_photos": 1}, photo_folder, tmp_path / "run")
    output = tmp_path / "run"
    assert (result.step, result.stopped_by, result.model) == (6, None, output / "model.safetensors")
    assert [row["step"] for row in read_csv(output / "log.csv")] == list("123456")
    assert [row["step"] for row in read_csv(output / "validation.csv")] == ["0", "3", "6"]
    assert (output / "training.png").stat().st_size > 10_000
    assert RunFolder(output).steps() == [4, 6]
    validation = read_csv(output / "validation.csv")

    model = load_model(str(output / "model.safetensors"))
    assert 0 <= model(torch.rand(1, 3, 64, 80)).item() <= 1
    card = read_weights(output / "model.safetensors").header["card"]
    assert card["config"]["steps"] == 6
    assert card["photographs"]["trained_on"] == 7
    assert card["photographs"]["source"] == Path(photo_folder).name, "and not where that folder lies"
    assert card["validation"] == result.validation
    assert card["start"]["weights"] == run_settings["weights"]
    assert {"date", "versions", "device", "git_revision", "seconds_of_training"} <= set(card)
    assert all(0 < stage["relative"] < 1 for stage in card["weights_moved"].values())
    assert set(result.validation["kinds"]) >= {"jpeg", "haze"}
    assert 0.5 <= result.validation["d_test"] <= 1
    assert -1 <= result.validation["l_test"] <= 1

    # Continuing a finished run writes its end again and changes nothing.
    before = weights(output)
    again = run(run_settings | {"validate_every": 3, "validation_photos": 1}, photo_folder, output, resume=True)
    assert again.step == 6
    assert_same(weights(output), before)
    assert read_csv(output / "validation.csv") == validation


def test_a_result_inherits_what_its_starting_weights_have_seen(
    run_settings, photo_folder: str, tiny_model, tmp_path: Path
) -> None:
    assert starting_record("lite") == {"weights": "lite", "licence": "Apache-2.0", "opinion_aware": False}
    assert starting_record(LITE_START)["opinion_aware"] is False
    assert starting_record("qualiclip+") == {
        "weights": "qualiclip+",
        "licence": "CC BY-NC 4.0",
        "opinion_aware": True,
    }
    start = tmp_path / "start.safetensors"
    save_checkpoint(start, tiny_model, {"opinion_aware": True, "licence": "CC0-1.0"})
    for licence, expected in ((None, "CC0-1.0"), ("MIT", "MIT")):
        output = tmp_path / expected
        run(run_settings | {"weights": str(start), "licence": licence, "steps": 1}, photo_folder, output)
        card = read_weights(output / "model.safetensors").header["card"]
        assert (card["opinion_aware"], card["licence"]) == (True, expected)


def test_equal_seeds_give_equal_weights_whatever_does_not_matter(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    scored = tmp_path / "scored"
    shutil.copytree(photo_folder, scored)
    names = sorted(path.name for path in scored.iterdir())
    (scored / "metadata.csv").write_text("file_name,mos\n" + "".join(f"{n},{i}\n" for i, n in enumerate(names)))
    other = {"workers": 1, "save_every": 5, "keep": 1, "validate_every": 2, "scored_data": str(scored)}
    result = run(run_settings | other, photo_folder, tmp_path / "second")
    assert -1 <= result.validation["srcc"] <= 1
    run(run_settings | {"seed": 1}, photo_folder, tmp_path / "third")
    assert_same(weights(finished_run), weights(tmp_path / "second"))
    assert losses(finished_run) == losses(tmp_path / "second")
    assert losses(finished_run) != losses(tmp_path / "third")


def signal_at_step(arguments: list[str], output: Path, step: int, number: int) -> subprocess.CompletedProcess[str]:
    """Start a run, send it a signal once its log has reached a step, and wait for its end."""
    process = subprocess.Popen(arguments, env=ENVIRONMENT, text=True, stderr=subprocess.PIPE)
    deadline = time.monotonic() + 240
    while len(read_csv(output / "log.csv")) < step and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(number)
    _, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(arguments, process.returncode, "", errors)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_run_continues_bit_for_bit(
    run_settings, photo_folder: str, tmp_path: Path, number: int
) -> None:
    settings = run_settings | {"steps": 40, "save_every": 3, "ema": 0.9}
    run(settings, photo_folder, tmp_path / "whole")
    output = tmp_path / "stopped"
    ended = signal_at_step(command(settings, photo_folder, output), output, 4, number)
    stopped_at = RunFolder(output).steps()[-1]
    assert 3 <= stopped_at < 40, "the signal came too late to interrupt anything"
    assert not (output / "model.safetensors").exists()
    if number == signal.SIGTERM:
        assert ended.returncode == 143
        assert f"after step {stopped_at}; continue with --resume" in ended.stderr
        assert len(read_csv(output / "log.csv")) == stopped_at
        done = run_command(command(settings, photo_folder, output, "--resume"))
        assert done.returncode == 0, done.stderr
    else:
        assert ended.returncode == -signal.SIGKILL
        assert len(read_csv(output / "log.csv")) - stopped_at <= 3
        run(settings, photo_folder, output, resume=True)
    assert_same(weights(output), weights(tmp_path / "whole"))
    assert losses(output) == losses(tmp_path / "whole")
    last = [folder / "checkpoints" / "step-00000040" for folder in (output, tmp_path / "whole")]
    assert_same(*(load_file(folder / "averaged.safetensors") for folder in last))
    first, second = (torch.load(folder / "state.pt", weights_only=True)["optimizer"] for folder in last)
    assert all(
        torch.equal(first["state"][key]["exp_avg_sq"], second["state"][key]["exp_avg_sq"]) for key in first["state"]
    )


def test_a_validation_that_a_signal_forestalled_is_made_up_for(
    run_settings, photo_folder: str, tmp_path: Path
) -> None:
    settings = run_settings | {"validate_every": 3, "validation_photos": 1}
    run(settings, photo_folder, tmp_path / "whole")
    trainer = trainer_that(lambda: os.kill(os.getpid(), signal.SIGTERM), settings, photo_folder, tmp_path / "run", 2)
    assert (result := trainer.run()).stopped_by == "SIGTERM"
    assert result.step == 3
    assert result.model is None
    run(settings, photo_folder, tmp_path / "run", resume=True)
    stopped, whole = (read_csv(tmp_path / name / "validation.csv") for name in ("run", "whole"))
    assert [row["step"] for row in whole] == ["0", "3", "6"]
    assert stopped == whole


def test_two_processes_equal_one(run_settings, photo_folder: str, tmp_path: Path) -> None:
    settings = run_settings | {
        "batch_size": 4,
        "steps": 4,
        # Adam would hide a gradient that is too large by a factor.
        "optimizer": "sgd",
        "learning_rate": 1e-4,
        # A hinge's gradient jumps where rounding carries a term across its margin: here the ranking terms stay
        # active, and the terms of consistency, which no margin keeps so, weigh little.
        "consistency_weight": 0.05,
        "ranking_margin": 4,
        "content_margin": 4,
        "metric_margin": 4,
        "attribute_margin": 4,
        "pristine": True,
        "content_weight": 0.5,
        "content_mild": 0,
        "content_severe": 3,
        "metric_weight": 0.5,
        "attribute_weight": 0.5,
        "start_pull": 0.1,
    }
    run(settings, photo_folder, tmp_path / "one")
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2", "--standalone"]
    arguments = launch + command(settings, photo_folder, tmp_path / "two")[1:]
    done = run_command(arguments)
    assert done.returncode == 0, done.stderr
    one, two = (read_csv(tmp_path / name / "log.csv") for name in ("one", "two"))
    assert len(one) == len(two) == 4
    for first, second in zip(one, two, strict=True):
        for part in ("loss", "consistency", "positive", "negative", "content", "metric", "attribute", "accuracy"):
            assert float(first[part]) == pytest.approx(float(second[part]), rel=1e-5, abs=1e-5), (part, first["step"])
    start = load_file(tmp_path / "one" / "start.safetensors")
    alone, together = weights(tmp_path / "one"), weights(tmp_path / "two")
    moved = torch.cat([(value - start[name]).flatten() for name, value in alone.items()])
    apart = torch.cat([(value - together[name]).flatten() for name, value in alone.items()])
    assert moved.abs().max() > 1e-4
    assert apart.norm() < 1e-2 * moved.norm()
    assert json.loads((tmp_path / "two" / "run.json").read_text())["processes"] == 2


def test_a_streamed_run_continues_bit_for_bit(run_settings, photo_folder: str, tmp_path: Path) -> None:
    settings = run_settings | {"streaming": True, "shuffle_buffer": 3, "steps": 8}
    run(settings, photo_folder, tmp_path / "whole")
    stop_after(settings, photo_folder, tmp_path / "part", 4)
    run(settings, photo_folder, tmp_path / "part", resume=True)
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "part"))


def test_a_run_that_crashed_before_its_first_checkpoint_continues_from_the_start(
    run_settings, photo_folder: str, finished_run: Path, tmp_path: Path
) -> None:
    stop_after(run_settings, photo_folder, tmp_path / "part", 1)
    assert RunFolder(tmp_path / "part").steps() == []
    run(run_settings, photo_folder, tmp_path / "part", resume=True)
    assert_same(weights(finished_run), weights(tmp_path / "part"))


def test_tensorboard_logs_on_request(run_settings, photo_folder: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    run(run_settings | {"steps": 2}, photo_folder, tmp_path / "run", tensorboard=True)
    assert list((tmp_path / "run").rglob("events.out.tfevents.*"))


def test_errors_of_the_command_are_one_line(tmp_path: Path) -> None:
    arguments = ["--config", "laptop", "--photos", "skimage", "--output", str(tmp_path / "run"), "--set", "stepz=1"]
    done = run_command([*RUN, *arguments])
    assert done.returncode == 2
    assert done.stderr.strip() == "error: --set stepz=1: unknown setting 'stepz'; did you mean steps?"
    assert not (tmp_path / "run").exists()
