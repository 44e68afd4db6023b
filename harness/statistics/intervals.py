"""Intervals from what each content contributes: the jackknife with Student's t.

A statistic without one content in turn gives the content's pseudo-value (Tukey, 1958); for a mean of equally large
contents these are the means of the contents themselves. Their spread gives an interval that holds its
coverage with few contents, where percentiles of a bootstrap over contents do not: `results/statistics`.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from harness.statistics.registry import Images, Statistic, find, used
from harness.statistics.resampling import leave_one_out
from qualiclip_plugin.utils.statistics import MIN_IMAGES, Floats, StatisticsError


@dataclass(frozen=True)
class Interval:
    """An interval of a statistic.

    Attributes:
        low: Lower end; NaN if undefined.
        high: Upper end; NaN if undefined.
        level: Coverage aimed at, such as 0.95.
        contents: How many contents (or independent images) it is made from.
        reason: Why there is no interval; empty if there is one.
    """

    low: float
    high: float
    level: float = 0.95
    contents: int = 0
    reason: str = ""


def pseudo_values(whole: Floats, without: Floats) -> Floats:
    """G whole - (G - 1) without: for statistics (...) of the whole and without each of G groups, (G, ...)."""
    return len(without) * whole - (len(without) - 1) * without


def intervals(keys: Iterable[str], scores: ArrayLike, images: Images, *, level: float = 0.95) -> dict[str, Interval]:
    """Intervals of statistics; those with the same resampled form share its cost.

    Args:
        scores: Higher is better, (N,).
        images: What is known of the images, in the same order.
        level: Coverage, in (0, 1).

    Returns:
        Key to interval; undefined if the statistic is, for fewer than 3 contents, and where the contents show
        no spread, such as for a perfect order: an interval of no width would claim certainty.

    Raises:
        StatisticsError: An unknown key, a level outside (0, 1), or scores that cannot be used.
    """
    if not 0 < level < 1:
        raise StatisticsError(f"level: {level}, a number between 0 and 1 needed")
    made: dict[object, tuple[Floats, float, str]] = {}
    found = {}
    for key in keys:
        statistic = find(key)
        if statistic.resampled not in made:
            made[statistic.resampled] = without_each(statistic, scores, images)
        values, value, reason = made[statistic.resampled]
        found[key] = _no_interval(reason, level) if reason else _from_values(statistic, values, value, level)
    return found


def interval(key: str, scores: ArrayLike, images: Images, *, level: float = 0.95) -> Interval:
    """Interval of one statistic; see :func:`intervals`."""
    return intervals([key], scores, images, level=level)[key]


def without_each(statistic: Statistic, scores: ArrayLike, images: Images) -> tuple[Floats, float, str]:
    """A statistic of all contents and without each in turn, (1 + G, K); its estimate; or why there is none.

    The first of the values is the estimate but for the D-test, which is judged by thresholds of other contents.
    """
    nothing = np.empty((0, 1))
    part = used(statistic, scores, images)
    if isinstance(part, str):
        return nothing, np.nan, part
    value, reason = statistic.estimate(*part)
    groups = part[1].groups
    if reason := reason or too_few(int(groups.max()) + 1, part[1]):
        return nothing, value, reason
    values = leave_one_out(statistic.resampled(*part), groups)
    return values.reshape(len(values), -1), value, ""


def too_few(number: int, images: Images) -> str:
    """Why so few contents allow no interval; empty if there are enough."""
    what = "images" if images.independent else "contents"
    return "" if number >= MIN_IMAGES else f"{number} {what}, {MIN_IMAGES} needed for an interval"


def t_half_width(values: Floats, level: float = 0.95) -> float:
    """Half of Student's interval of a mean."""
    return float(stats.t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def _from_values(statistic: Statistic, values: Floats, value: float, level: float) -> Interval:
    own = values[:, statistic.column]
    number = len(own) - 1
    if np.isnan(own).any():
        return _no_interval(f"without one of {number} contents it has no value", level, number)
    least, most = statistic.range
    centre, half_range = ((least + most) / 2, (most - least) / 2) if statistic.bounded else (0.0, 1.0)
    scaled = (own - centre) / half_range
    if statistic.bounded:
        if np.abs(scaled).max() > 1 - 1e-9:
            return _no_interval(
                f"a perfect order: {number} contents are too few to say how sure it is", level, number
            )
        scaled = np.arctanh(scaled)
    pseudo = pseudo_values(scaled[0], scaled[1:])
    if np.ptp(pseudo) <= 1e-9 * max(1.0, float(np.abs(pseudo).max())):
        return _no_interval(f"the same on each of {number} contents: nothing says how sure it is", level, number)
    half = t_half_width(pseudo, level)
    ends = np.array([scaled[0] - half, scaled[0] + half])
    low, high = np.tanh(ends) * half_range + centre if statistic.bounded else ends
    if statistic.flattered:
        high = value + half
    return Interval(float(max(low, least)), float(min(high, most)), level, number)


def _no_interval(reason: str, level: float, contents: int = 0) -> Interval:
    return Interval(float("nan"), float("nan"), level, contents, reason)
