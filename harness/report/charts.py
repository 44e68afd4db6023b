"""Geometry of the report's charts: data to SVG coordinates. The templates draw what these records hold."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from harness.report.data import Cell, ladder_rows
from qualiclip_plugin.utils.statistics import Floats

TICK_ROOM = 50
"""Units of a bar chart's axis that one tick takes: a label such as "-0.25" with air around it."""

MAX_POINTS = 4000
"""Points that a scatter plot draws; a browser becomes slow with more. The choice is seeded and stated."""


@dataclass(frozen=True)
class Axis:
    """A linear map from data to one SVG coordinate.

    Attributes:
        low: Data value at ``start``.
        high: Data value at ``end``.
    """

    low: float
    high: float
    start: float
    end: float
    ticks: tuple[tuple[float, str], ...] = ()

    def at(self, value: float) -> float:
        """Coordinate of a value, rounded to a tenth of a unit."""
        return round(self.start + (value - self.low) / (self.high - self.low) * (self.end - self.start), 1)


def axis(values: Sequence[float] | Floats, start: float, end: float, *, margin: float = 0.04, count: int = 5) -> Axis:
    """An axis that holds all values with some air around them."""
    low, high = (float(np.min(values)), float(np.max(values))) if len(values) else (0.0, 1.0)
    air = (high - low) * margin or max(abs(low) * 0.05, 0.5)
    low, high = low - air, high + air
    return Axis(low, high, start, end, ticks(low, high, count))


def ticks(low: float, high: float, count: int = 5) -> tuple[tuple[float, str], ...]:
    """About ``count`` round values between ``low`` and ``high`` and their labels."""
    raw = (high - low) / max(count, 1)
    power = 10.0 ** np.floor(np.log10(raw))
    step = float(min((1, 2, 2.5, 5, 10), key=lambda factor: abs(factor * power - raw)) * power)
    digits = max(0, (1 if round(step / power, 1) == 2.5 else 0) - int(np.floor(np.log10(step) + 1e-9)))
    first, last = int(np.ceil(low / step - 1e-9)), int(np.floor(high / step + 1e-9))
    return tuple((i * step, number(i * step, digits)) for i in range(first, last + 1))


def number(value: float | None, digits: int = 3) -> str:
    """A number for people: a true minus sign, no minus before zero, nothing for what is undefined."""
    if value is None or not math.isfinite(value):
        return ""
    text = f"{value:.{digits}f}"
    return text.replace("-", "\N{MINUS SIGN}") if float(text) else text.lstrip("-")


@dataclass(frozen=True)
class Scatter:
    """Score against opinion.

    Attributes:
        x: Axis of the scores as the scorer gives them.
        y: Axis of the opinions as the dataset gives them.
        points: Row number, x and y of each point, by rising score.
        curve: SVG path of the fit; empty if there is none.
    """

    x: Axis
    y: Axis
    points: list[tuple[int, float, float]]
    curve: str
    drawn: int
    total: int


def scatter(cell: Cell, width: float = 640, height: float = 400) -> Scatter | None:
    """Scatter plot of a cell with opinions; none if there are none."""
    if not cell.measured or not cell.has_opinions:
        return None
    scores, opinions = cell.rows["score"].to_numpy(dtype=float), cell.rows["opinion"].to_numpy(dtype=float)
    x, y = axis(scores, 52, width - 12), axis(opinions, height - 44, 12)
    shown = np.arange(len(scores))
    if len(shown) > MAX_POINTS:
        shown = np.random.default_rng(0).choice(shown, MAX_POINTS, replace=False)
    shown = shown[np.argsort(scores[shown], kind="stable")]
    points = [(int(i), x.at(scores[i]), y.at(opinions[i])) for i in shown]
    return Scatter(x, y, points, _curve(cell, x, y), len(shown), len(scores))


def _curve(cell: Cell, x: Axis, y: Axis) -> str:
    fit = cell.fit
    if fit is None or fit.reason:
        return ""
    raw = np.linspace(x.low, x.high, 120)
    # The fit was made on values turned to higher-is-better; the axes show them as they are.
    score_sign = -1.0 if cell.content["scorer"]["lower_better"] else 1.0
    opinion_sign = -1.0 if cell.content["dataset"]["opinion"]["lower_better"] else 1.0
    fitted = opinion_sign * fit.apply(score_sign * raw)
    return path([(x.at(a), y.at(b)) for a, b in zip(raw, fitted, strict=True)])


def path(points: Sequence[tuple[float, float]]) -> str:
    """SVG path through points."""
    return "M" + "L".join(f"{a:g} {b:g}" for a, b in points) if points else ""


@dataclass(frozen=True)
class Whisker:
    """An estimate with its interval on an axis shared by a column."""

    value: float
    low: float
    high: float
    zero: float | None


WHISKER_WIDTH = 120


def whisker_axis(figures: Sequence[Mapping[str, Any]]) -> Axis | None:
    """The axis that the whiskers of figures share, with a few ticks; none if all are undefined."""
    known = [f[k] for f in figures for k in ("value", "low", "high") if f.get(k) is not None]
    if not known:
        return None
    made = axis(known, 14, WHISKER_WIDTH - 14, margin=0.02, count=2)
    # Labels such as "-0.25" need a third of the width each, and one tick alone shows no scale.
    finest = next(found for count in (4, 3, 2, 1) if len(found := ticks(made.low, made.high, count)) <= 3)
    return replace(made, ticks=finest)


def whiskers(figures: Sequence[Mapping[str, Any]]) -> list[Whisker | None]:
    """One whisker per figure, all on the axis of :func:`whisker_axis`; none if a figure is undefined."""
    shared = whisker_axis(figures)
    if shared is None:
        return [None for _ in figures]
    zero = shared.at(0) if shared.low <= 0 <= shared.high else None
    return [_whisker(figure, shared, zero) for figure in figures]


def _whisker(figure: Mapping[str, Any], shared: Axis, zero: float | None) -> Whisker | None:
    if figure.get("value") is None:
        return None
    value = float(figure["value"])
    ends = [float(figure[k]) if figure.get(k) is not None else value for k in ("low", "high")]
    return Whisker(shared.at(value), shared.at(ends[0]), shared.at(ends[1]), zero)


@dataclass(frozen=True)
class Bar:
    """One bar of a chart from a common zero."""

    label: str
    value: float | None
    reason: str
    n: int
    x: float
    width: float


@dataclass(frozen=True)
class Bars:
    """Horizontal bars on one axis; labels end before it, values stand behind it."""

    axis: Axis
    bars: list[Bar]
    width: float


def bars(
    groups: Mapping[str, Mapping[str, Any]], figure: str, *, ranked: bool, labels: float = 170, length: float = 390
) -> Bars | None:
    """A figure within each distortion type or level; none if there are no groups.

    Args:
        groups: Name to what a cell stores of it.
        ranked: Best first and undefined ones last; else in the order of the names.
    """
    found = {name: (group["figures"].get(figure, {}), group["n"]) for name, group in groups.items()}
    values = [entry["value"] for entry, _ in found.values() if entry.get("value") is not None]
    if not values:
        return None
    low, high = min([0.0, *values]), max([1.0, *values])
    scale = Axis(low, high, labels, labels + length, ticks(low, high, min(4, int(length // TICK_ROOM))))
    made = []
    for name, (entry, n) in found.items():
        value = entry.get("value")
        left, right = sorted((scale.at(0), scale.at(value or 0.0)))
        made.append(Bar(name, value, entry.get("reason", ""), n, left, round(right - left, 1)))
    made.sort(key=lambda bar: (len(bar.label), bar.label))
    if ranked:
        made.sort(key=lambda bar: (bar.value is None, -(bar.value or 0.0), bar.label))
    return Bars(scale, made, labels + length + 80)


@dataclass(frozen=True)
class LadderPlot:
    """Score against level for one distortion type.

    Attributes:
        l_test: Mean rank correlation of its ladders; none if undefined.
        lines: Content and SVG path of every ladder.
    """

    distortion: str
    l_test: float | None
    x: Axis
    y: Axis
    lines: list[tuple[str, str]]
    mean: str


def ladder_plots(cell: Cell, width: float = 210, height: float = 130) -> list[LadderPlot]:
    """A small plot per distortion type, worst order first, each on its own axis: mild types would be flat lines."""
    if not cell.measured:
        return []
    ladders = ladder_rows(cell.rows)
    scores = cell.rows["score"].to_numpy(dtype=float)
    levels = cell.rows["level"].to_numpy(dtype=float, na_value=np.nan)
    plots = []
    for kind in sorted({kind for kind, _ in ladders}):
        own = {content: indices for (name, content), indices in ladders.items() if name == kind}
        y = axis(scores[np.concatenate(list(own.values()))], height - 18, 6, count=3)
        x = _level_axis(levels[np.concatenate(list(own.values()))], 40, width - 6)
        lines = [
            (content, path([(x.at(levels[i]), y.at(scores[i])) for i in indices])) for content, indices in own.items()
        ]
        stored = (cell.content.get("distortions") or {}).get(kind, {}).get("figures", {})
        value = stored.get("l_test", {}).get("value")
        plots.append(LadderPlot(kind, value, x, y, lines, _mean_line(own, levels, scores, x, y)))
    return sorted(plots, key=lambda plot: (plot.l_test is None, plot.l_test, plot.distortion))


def _level_axis(levels: Floats, start: float, end: float) -> Axis:
    steps = np.unique(levels)
    low, high = float(steps[0]), float(steps[-1])
    shown = steps if len(steps) <= 7 else steps[[0, -1]]
    return Axis(low, high if high > low else low + 1, start, end, tuple((float(s), f"{s:g}") for s in shown))


def _mean_line(own: Mapping[str, Any], levels: Floats, scores: Floats, x: Axis, y: Axis) -> str:
    everything = np.concatenate(list(own.values()))
    steps = np.unique(levels[everything])
    means = [float(scores[everything[levels[everything] == step]].mean()) for step in steps]
    return path([(x.at(float(step)), y.at(mean)) for step, mean in zip(steps, means, strict=True)])
