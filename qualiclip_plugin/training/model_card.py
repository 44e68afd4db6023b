"""The record of a run before its first step, and the card of its result."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.distributed import device_name
from qualiclip_plugin.training.lite.start import LITE_START
from qualiclip_plugin.training.run_folder import RunFolder, read_log
from qualiclip_plugin.utils.environment import git_revision, versions
from qualiclip_plugin.weights.checkpoint import read_weights
from qualiclip_plugin.weights.loading import load_cards


def _public(source: str) -> str:
    """A folder's own name: where it lies on this machine is nobody's business who gets the weights."""
    return Path(source).resolve().name if Path(source).exists() else source


def starting_record(weights: str) -> dict[str, Any]:
    """What a result inherits from its starting weights: licence, and whether human scores entered them.

    Args:
        weights: A name or a path; ``None`` is returned for what a file does not say.
    """
    if weights == LITE_START:
        return {"weights": weights, "licence": "Apache-2.0", "opinion_aware": False}
    card = load_cards().get(weights)
    known: Mapping[str, Any] = asdict(card) if card else read_weights(Path(weights)).header.get("card", {})
    return {"weights": weights, **{name: known.get(name) for name in ("licence", "opinion_aware")}}


def inherited(start: Mapping[str, Any], licence: str | None = None) -> dict[str, Any]:
    """What a result takes over from its start, of :func:`starting_record`, unless it has a licence of its own."""
    # Training adds no human score; what the starting weights have seen stays in the result.
    return {"opinion_aware": start["opinion_aware"], "licence": licence or start["licence"]}


def run_record(
    config: TrainConfig, photographs: Mapping[str, Any], trained_stages: list[str], accelerator: Accelerator
) -> dict[str, Any]:
    """What ``run.json`` says."""
    return {
        "config": config.to_dict(),
        "start": starting_record(config.weights),
        "photographs": dict(photographs),
        "trained_stages": trained_stages,
        "processes": accelerator.num_processes,
        "device": device_name(accelerator.device),
        **_today(),
    }


def build_card(
    folder: RunFolder,
    config: TrainConfig,
    skipped: int,
    validation: Mapping[str, Any],
    moved: Mapping[str, Mapping[str, float]],
) -> dict[str, Any]:
    """What people should know about the weights of a finished run.

    Args:
        folder: Its ``run.json`` and ``log.csv`` are read.
        config: The configuration that the run ended with.
        skipped: Number of photographs that were left out.
        moved: Of ``stages.movement``.
    """
    run = folder.read_run()
    kept = ("start", "trained_stages", "processes", "device")
    return {
        **{name: run[name] for name in kept},
        "photographs": {**run["photographs"], "source": _public(run["photographs"]["source"])},
        "config": config.to_dict(),
        "steps": config.steps,
        "skipped_photographs": skipped,
        **inherited(run["start"], config.licence),
        "validation": dict(validation),
        "weights_moved": dict(moved),
        "seconds_of_training": round(training_seconds(folder), 1),
        **_today(),
    }


def _today() -> dict[str, Any]:
    return {"date": time.strftime("%Y-%m-%d"), "git_revision": git_revision(), "versions": versions()}


def training_seconds(folder: RunFolder) -> float:
    """Time that the logged steps took, without validation and saving."""
    return sum(float(row["seconds"]) for row in read_log(folder.path / "log.csv"))


def describe_movement(moved: Mapping[str, Mapping[str, float]]) -> str:
    """Relative distance of each stage, with the share of changed weights where it is not all; then what stayed."""
    phrases = []
    for stage, figures in moved.items():
        share = figures["changed"]
        part = f" ({share:.0%} of its weights)" if share < 0.995 else ""
        phrases += [f"{stage} {figures['relative']:.2g}{part}"] if share else []
    stayed = [stage for stage, figures in moved.items() if not figures["changed"]]
    return ", ".join(phrases or ["none"]) + (f"; unchanged: {', '.join(stayed)}" if stayed else "")
