"""``training.png``: a run at a glance, also for people who have not seen one before."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from qualiclip_plugin.distortions import GROUP_COLOURS, get_table
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.objective import losses_of
from qualiclip_plugin.training.run_folder import RunFolder, read_log
from qualiclip_plugin.utils.atomic import atomic_write

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Rows = list[dict[str, str]]

SMOOTH_SHARE = 0.1
"""Length of the moving mean, as a share of the run."""
LAYOUT: list[Any] = [["loss"] * 3 + ["validation"] * 3, ["kinds"] * 4 + ["movement"] * 2]
VALIDATION = {
    "ranking_accuracy": "levels in order",
    "d_test": "D-test",
    "l_test": "L-test",
    "srcc": "SRCC with people",
}
"""Columns of ``validation.csv`` besides the distortions, and what they are called in the picture."""


def plot_training(folder: RunFolder, config: TrainConfig, moved: Mapping[str, Mapping[str, float]]) -> None:
    """Draw ``training.png`` from the logs of a run.

    Args:
        config: Of the run: weights of the losses, table of distortions.
        moved: Of ``stages.movement``.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows, validation = read_log(folder.path / "log.csv"), read_log(folder.path / "validation.csv")
    figure, axes = plt.subplot_mosaic(LAYOUT, figsize=(12, 9), layout="constrained", height_ratios=(1, 1))
    for panel in axes.values():
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    _plot_losses(axes["loss"], rows, {loss.name: loss.weight(config) for loss in losses_of(config)})
    _plot_validation(axes["validation"], rows, validation)
    _plot_kinds(axes["kinds"], validation, config.table)
    _plot_movement(axes["movement"], moved)
    with atomic_write(folder.path / "training.png") as file:
        figure.savefig(file, dpi=110, format="png")
    plt.close(figure)


def _title(axes: Axes, title: str, explanation: str) -> None:
    axes.set_title(f"{title}\n", loc="left", fontsize=12, fontweight="bold")
    text = axes.text(0, 1.02, explanation, transform=axes.transAxes, fontsize=9, color="0.35")
    text.set_in_layout(False)


def _legend(axes: Axes, place: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=9, frameon=False, loc=place)


def _column(rows: Rows, name: str) -> list[float]:
    return [float(row[name]) if row.get(name) else float("nan") for row in rows]


def _smooth(values: list[float]) -> list[float]:
    """Mean over the last few values; none where one of them is not finite."""
    series = pd.Series(values, dtype="float64")
    known = series.where(np.isfinite(series))
    length = max(1, round(SMOOTH_SHARE * len(values)))
    means, faults = (one.rolling(length, min_periods=1) for one in (known, known.isna().astype("float64")))
    return means.mean().mask(faults.max() > 0).tolist()


def _plot_losses(axes: Axes, rows: Rows, weights: Mapping[str, float]) -> None:
    _title(axes, "Loss", "areas: its parts times their weights, mean over the last steps; faint: each step")
    steps = _column(rows, "step")
    parts = {name: weight for name, weight in weights.items() if weight}
    if rows:
        areas = [_smooth([weight * value for value in _column(rows, name)]) for name, weight in parts.items()]
        labels = [f"{name} x {weight:g}" if weight != 1 else name for name, weight in parts.items()]
        axes.stackplot(steps, areas, labels=labels, alpha=0.75)
        axes.plot(steps, _column(rows, "loss"), color="0.3", alpha=0.25, linewidth=0.8)
        axes.plot(steps, _smooth(_column(rows, "loss")), color="0.1", label="loss", linewidth=1.6)
    axes.set(xlabel="step")
    axes.set_ylim(bottom=0)
    _legend(axes, "best")


def _plot_validation(axes: Axes, rows: Rows, validation: Rows) -> None:
    explanation = "levels in order: share of level pairs scored in their order, 0.5 by chance"
    _title(axes, "Held-out photographs, first to last validation", explanation)
    axes.axhline(0.5, color="0.6", linestyle=":", linewidth=1)
    if rows:
        label = "levels in order, while training"
        axes.plot(_column(rows, "step"), _smooth(_column(rows, "accuracy")), label=label, color="0.8")
    for name, label in VALIDATION.items():
        if measured := [row for row in validation if row.get(name)]:
            values = _column(measured, name)
            change = " to ".join(f"{value:.2f}" for value in dict.fromkeys((values[0], values[-1])))
            steps = _column(measured, "step")
            axes.plot(steps, values, marker="o", markersize=5, linewidth=2, label=f"{label}: {change}")
    axes.set(xlabel="step")
    axes.set_ylim(top=1.01)
    _legend(axes, "best")


def _plot_kinds(axes: Axes, validation: Rows, table: str) -> None:
    explanation = "share of levels in order on held-out photographs; ring: first validation, dot: last"
    _title(axes, "By distortion, before and after", explanation)
    # A validation on scored images alone has rows without distortions.
    measured = validation[-1] if validation else {}
    groups = {name: kind.group for name, kind in get_table(table).items() if measured.get(name)}
    if not groups:
        axes.text(0.5, 0.5, "no held-out photographs", ha="center", va="center", transform=axes.transAxes)
        return
    first, last = ({name: float(row[name]) for name in groups} for row in (validation[0], validation[-1]))
    ordered = [name for name in groups if first[name] == last[name] == 1]
    names = sorted(groups.keys() - set(ordered), key=lambda name: (last[name], first[name], name))
    for place, name in enumerate(names):
        colour = GROUP_COLOURS[groups[name]]
        axes.plot([first[name], last[name]], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(first[name], place, "o", markerfacecolor="white", markeredgecolor=colour, markersize=7)
        axes.plot(last[name], place, "o", color=colour, markersize=6)
    for group, colour in GROUP_COLOURS.items():
        if group in map(groups.get, names):
            axes.plot([], [], "o", color=colour, label=group)
    _legend(axes, "lower right")
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > 20 else 9)
    low = min([first[name] for name in names] + [last[name] for name in names], default=0.9)
    axes.set(xlim=(low - 0.1 * (1 - low), 1 + 0.03 * (1 - low)), ylim=(-0.7, max(1, len(names)) - 0.3))
    if ordered:
        text = f"all levels in order, before and after: {', '.join(sorted(ordered))}"
        axes.set_xlabel(textwrap.fill(text, 90), fontsize=9, color="0.35", loc="left")


def _plot_movement(axes: Axes, moved: Mapping[str, Mapping[str, float]]) -> None:
    _title(axes, "How far the weights moved", "in % of their length, from input to output")
    still = [stage for stage, how in moved.items() if not how["relative"]]
    stages = [stage for stage in moved if stage not in still][::-1]
    percent = [100 * moved[stage]["relative"] for stage in stages]
    bars = axes.barh(stages, percent, color="C0", height=0.6)
    labels: list[Any] = [f"{value:.2g} %" for value in percent]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.margins(x=0.25)
    axes.set_ylim(-0.7, max(4, len(stages)) - 0.3)
    if still:
        axes.set_xlabel(textwrap.fill(f"not moved: {', '.join(still)}", 45), fontsize=9, color="0.35", loc="left")
