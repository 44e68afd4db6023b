"""``training.png``: a run at a glance, for people who have not seen one before."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from qualiclip_plugin.distortions import GROUPS, get_table
from qualiclip_plugin.training.logs import FIGURES
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


def plot_training(folder: RunFolder, table: str, moved: Mapping[str, Mapping[str, float]]) -> None:
    """Draw ``training.png`` from the logs of a run.

    Args:
        folder: Folder of the run.
        table: Name of the distortion table, for the groups.
        moved: Of ``stages.movement``.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    rows, validation = read_log(folder.path / "log.csv"), read_log(folder.path / "validation.csv")
    figure, axes = plt.subplot_mosaic(LAYOUT, figsize=(12, 10), layout="constrained", height_ratios=(2, 3))
    for panel in axes.values():
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(alpha=0.3)
    _plot_losses(axes["loss"], rows)
    _plot_validation(axes["validation"], rows, validation)
    _plot_kinds(axes["kinds"], validation, table)
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
    """Mean over the last few values."""
    length = max(1, round(SMOOTH_SHARE * len(values)))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - length)
    # Sums to the end less sums to the start: the windows themselves would be as many as a tenth of the run's square.
    # What is not finite has no difference, so it is counted on its own.
    finite = np.isfinite(values)
    totals = np.concatenate([[0.0], np.cumsum(np.where(finite, values, 0.0))])
    faults = np.concatenate([[0], np.cumsum(~finite)])
    means = (totals[ends] - totals[starts]) / (ends - starts)
    return np.where(faults[ends] > faults[starts], np.nan, means).tolist()


def _plot_losses(axes: Axes, rows: Rows) -> None:
    _title(axes, "Loss", "faint: each step; lines: mean over the last steps")
    steps = _column(rows, "step")
    for name in [name for name in (rows[0] if rows else {}) if name not in {"step", *FIGURES}]:
        # The two ranking losses often lie on one another.
        style = "--" if name == "negative" else "-"
        (line,) = axes.plot(steps, _smooth(_column(rows, name)), style, label=name, linewidth=1.4)
        if name == "loss":
            line.set_linewidth(2.6)
            axes.plot(steps, _column(rows, name), color=line.get_color(), alpha=0.25, linewidth=0.8)
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
    names = sorted(groups, key=lambda name: (last[name], first[name]))
    for place, name in enumerate(names):
        colour = f"C{GROUPS.index(groups[name])}"
        axes.plot([first[name], last[name]], [place, place], color=colour, linewidth=2, alpha=0.5)
        axes.plot(first[name], place, "o", markerfacecolor="white", markeredgecolor=colour, markersize=5)
        axes.plot(last[name], place, "o", color=colour, markersize=6)
    for number, group in enumerate(GROUPS):
        if group in groups.values():
            axes.plot([], [], "o", color=f"C{number}", label=group)
    _legend(axes, "lower left")
    axes.set_yticks(range(len(names)), names, fontsize=8 if len(names) > 20 else 9)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.7, len(names) - 0.3))


def _plot_movement(axes: Axes, moved: Mapping[str, Mapping[str, float]]) -> None:
    _title(axes, "How far the weights moved", "in % of their length, from input to output")
    stages = list(moved)[::-1]
    percent = [100 * moved[stage]["relative"] for stage in stages]
    bars = axes.barh(stages, percent, color="C0")
    labels: list[Any] = [f"{value:.2g} %" if value else "not moved" for value in percent]
    axes.bar_label(bars, labels, padding=4, fontsize=9)
    axes.margins(x=0.25)
