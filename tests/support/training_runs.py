"""Training runs of a second on small photographs, for the tests of the trainer."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qualiclip_plugin.training.batches import Batch
from qualiclip_plugin.training.config import config_from_mapping
from qualiclip_plugin.training.run_folder import read_csv
from qualiclip_plugin.training.trainer import Trainer, TrainResult

RUN = [sys.executable, "-m", "qualiclip_plugin", "train"]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


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


def run_command(arguments: list[str], **options: Any) -> subprocess.CompletedProcess[str]:
    """Run a command of :func:`command` to its end."""
    return subprocess.run(
        arguments, env=ENVIRONMENT, capture_output=True, text=True, check=False, timeout=300, **options
    )


def trainer_that(act: Callable[[], None], settings: dict[str, Any], photos: str, output: Path, step: int) -> Trainer:
    """A trainer that does something before it trains a step (counted from 0)."""
    trainer = Trainer(config_from_mapping(settings), photos, str(output))
    train_step = trainer.train_step

    def acting(batch: Batch) -> dict[str, torch.Tensor]:
        if batch.step == step:
            act()
        return train_step(batch)

    trainer.train_step = acting  # type: ignore[method-assign]
    return trainer


class CrashError(Exception):
    """Stands for a crash."""


def crash() -> None:
    """Crash."""
    raise CrashError


def stop_after(settings: dict[str, Any], photos: str, output: Path, step: int) -> None:
    """Train to a step and crash there."""
    with pytest.raises(CrashError):
        trainer_that(crash, settings, photos, output, step).run()
