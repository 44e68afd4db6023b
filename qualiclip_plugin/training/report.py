"""The end of a run: the weights with their card, and a picture of the curves."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from qualiclip_plugin.checkpoint import save_checkpoint
from qualiclip_plugin.files import atomic_write
from qualiclip_plugin.provenance import git_revision, versions
from qualiclip_plugin.training.run_folder import RunFolder, read_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from qualiclip_plugin.training.trainer import Trainer

SMOOTH_SHARE = 0.1
"""Length of the moving mean in the picture, as a share of the run."""


def finish(trainer: Trainer, validation: dict[str, Any]) -> Path:
    """Write ``model.safetensors`` and ``training.png``, and name what was found.

    Returns:
        Path of the weights.
    """
    moved = trainer.movement()
    path = trainer.folder.path / "model.safetensors"
    stored = torch.float16 if trainer.config.save_precision == "fp16" else torch.float32
    with trainer.result_weights():
        save_checkpoint(path, trainer.model, build_card(trainer, validation, moved), dtype=stored)
    plot_training(trainer.folder, moved)
    trainer.display.say("weights moved: " + ", ".join(describe_movement(moved)))
    trainer.display.say(f"saved {path}")
    return path


def build_card(trainer: Trainer, validation: dict[str, Any], moved: dict[str, dict[str, float]]) -> dict[str, Any]:
    """What people should know about the weights of a finished run."""
    run = trainer.folder.read_run()
    return {
        "config": trainer.config.to_dict(),
        "photographs": run["photographs"],
        "skipped_photographs": len(trainer.skipped),
        "trained_stages": trainer.stage_names,
        "opinion_aware": False,
        "licence": trainer.config.licence,
        "validation": validation,
        "weights_moved": moved,
        "device": run["device"],
        "processes": run["processes"],
        "steps": trainer.step,
        "seconds_of_training": round(training_seconds(trainer.folder), 1),
        "date": time.strftime("%Y-%m-%d"),
        "git_revision": git_revision(),
        "versions": versions(),
    }


def training_seconds(folder: RunFolder) -> float:
    """Time that the logged steps took, without validation and saving."""
    return sum(float(row["seconds"]) for row in read_log(folder.path / "log.csv"))


def describe_movement(moved: dict[str, dict[str, float]]) -> list[str]:
    """One phrase a stage: relative distance, and the share of changed weights where it is not all or nothing."""
    phrases = []
    for stage, figures in moved.items():
        share = figures["changed"]
        part = f" ({share:.0%} of its weights)" if 0 < share < 0.995 else ""
        phrases.append(f"{stage} {figures['relative']:.2g}{part}")
    return phrases


def plot_training(folder: RunFolder, moved: dict[str, dict[str, float]]) -> None:
    """Draw ``training.png``: loss parts, ranking accuracy, validation, movement of the weights."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows = read_log(folder.path / "log.csv")
    validation = read_log(folder.path / "validation.csv")
    figure, axes = plt.subplots(2, 2, figsize=(11, 9), layout="constrained", height_ratios=(2, 3))
    _plot_losses(axes[0, 0], rows)
    _plot_accuracy(axes[0, 1], rows, validation)
    _plot_kinds(axes[1, 0], validation)
    _plot_movement(axes[1, 1], moved)
    with atomic_write(folder.path / "training.png") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _column(rows: list[dict[str, str]], name: str) -> list[float]:
    return [float(row[name]) if row.get(name) else float("nan") for row in rows]


def _smooth(values: list[float]) -> list[float]:
    """Mean over the last few values."""
    length = max(1, round(SMOOTH_SHARE * len(values)))
    windows = [values[max(0, i + 1 - length) : i + 1] for i in range(len(values))]
    return [sum(window) / len(window) for window in windows]


def _plot_losses(axes: Axes, rows: list[dict[str, str]]) -> None:
    steps = _column(rows, "step")
    other = {"step", "accuracy", "learning_rate", "images_per_second", "data_wait", "seconds"}
    for name in [name for name in (rows[0] if rows else {}) if name not in other]:
        # The two ranking losses often lie on one another.
        style = "--" if name == "negative" else "-"
        width = 2.2 if name == "loss" else 1.2
        axes.plot(steps, _smooth(_column(rows, name)), style, label=name, linewidth=width)
    axes.set(title="Loss and its parts (moving mean)", xlabel="step")
    axes.set_ylim(bottom=0)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_accuracy(axes: Axes, rows: list[dict[str, str]], validation: list[dict[str, str]]) -> None:
    axes.plot(_column(rows, "step"), _smooth(_column(rows, "accuracy")), label="training batches", color="0.6")
    names = {
        "ranking_accuracy": "held-out ranking accuracy",
        "d_test": "D-test",
        "l_test": "L-test",
        "srcc": "SRCC, scored data",
    }
    for name, label in names.items():
        if validation and validation[0].get(name):
            axes.plot(_column(validation, "step"), _column(validation, name), marker="o", markersize=4, label=label)
    axes.set(title="Ranking accuracy and validation", xlabel="step")
    axes.set_ylim(top=1.01)
    axes.legend(fontsize=8)
    axes.grid(alpha=0.3)


def _plot_kinds(axes: Axes, validation: list[dict[str, str]]) -> None:
    axes.set(title="Held-out ranking accuracy by distortion, last validation", xlim=(0, 1))
    if not validation:
        axes.text(0.5, 0.5, "no held-out photographs", ha="center", va="center", transform=axes.transAxes)
        return
    other = {"step", "ranking_accuracy", "d_test", "l_test", "srcc"}
    last = {name: float(value) for name, value in validation[-1].items() if name not in other and value}
    names = sorted(last, key=lambda name: last[name])
    axes.barh(names, [last[name] for name in names])
    axes.tick_params(axis="y", labelsize=6 if len(names) > 20 else 8)
    axes.margins(y=0.01)
    axes.grid(axis="x", alpha=0.3)


def _plot_movement(axes: Axes, moved: dict[str, dict[str, float]]) -> None:
    distances = [figures["relative"] for figures in moved.values()]
    bars = axes.bar(list(moved), distances)
    axes.bar_label(bars, [f"{distance:.2g}" for distance in distances], fontsize=8)
    axes.set(title="How far the weights moved", ylabel="L2 distance / L2 norm at the start")
    axes.margins(y=0.1)
    if any(distances):
        # Linear below the smallest movement, so that a stage that stayed shows as 0.
        axes.set_yscale("symlog", linthresh=min(distance for distance in distances if distance))
        axes.set_ylim(bottom=0)
    axes.tick_params(axis="x", labelrotation=35)
    axes.grid(axis="y", alpha=0.3)
