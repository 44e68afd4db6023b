"""Bootstrap intervals."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from harness.statistics.checks import (
    MIN_IMAGES,
    Floats,
    StatisticsError,
    finite_vectors,
    group_indices,
    undefined,
    why_undefined,
)
from harness.statistics.fitting import Form
from harness.statistics.ladders import d_test, ladder_correlations, p_test
from harness.statistics.resampling import (
    Statistic,
    bootstrap_draws,
    resampled_d_test,
    resampled_fitted,
    resampled_krcc,
    resampled_mean,
    resampled_p_test,
    resampled_plcc,
    resampled_srcc,
)

FITTED = ("plcc_fitted", "rmse_fitted")
STATISTICS: tuple[str, ...] = ("srcc", "krcc", "plcc", *FITTED)
"""The statistics of scores against opinions that have intervals, by name."""

_LEAST_DEFINED = 0.9


@dataclass(frozen=True)
class Interval:
    """A percentile bootstrap interval.

    Attributes:
        low: Lower end; NaN where undefined.
        high: Upper end; NaN where undefined.
        level: Coverage aimed at, such as 0.95.
        draws: How many resamples were drawn.
        undefined_draws: How many of them had no value and were left out.
        reason: Why there is no interval; empty where there is one.
    """

    low: float
    high: float
    level: float = 0.95
    draws: int = 2000
    undefined_draws: int = 0
    reason: str = ""


def percentile_interval(values: ArrayLike, level: float = 0.95) -> Interval:
    """The middle ``level`` of bootstrap draws (Efron, 1979).

    Args:
        values: One value per draw, (B,); NaN where the draw had none.
        level: Coverage in (0, 1).

    Returns:
        The interval; undefined where more than a tenth of the draws has no value.

    Raises:
        StatisticsError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise StatisticsError(f"level: {level}, a number between 0 and 1 needed")
    drawn = np.asarray(values, dtype=np.float64)
    kept = drawn[~np.isnan(drawn)]
    missing = len(drawn) - len(kept)
    if not len(kept) or len(kept) < _LEAST_DEFINED * len(drawn):
        return _no_interval(f"{missing} of {len(drawn)} draws have no value", level, len(drawn), missing)
    low, high = np.quantile(kept, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high), level, len(drawn), missing)


def resampled_statistic(name: str, scores: ArrayLike, opinions: ArrayLike, form: Form = "logistic4") -> Statistic:
    """The named statistic as a function of bootstrap counts.

    Raises:
        StatisticsError: An unknown name, or arrays that cannot be used.
    """
    if name in FITTED:
        both, column = resampled_fitted(scores, opinions, form), FITTED.index(name)
        return lambda counts: both(counts)[:, column]
    makers: Mapping[str, Callable[[ArrayLike, ArrayLike], Statistic]] = {
        "srcc": resampled_srcc,
        "krcc": resampled_krcc,
        "plcc": resampled_plcc,
    }
    if name not in makers:
        raise StatisticsError(f"statistic: {name!r} is none of {', '.join(STATISTICS)}")
    return makers[name](scores, opinions)


def bootstrap_intervals(
    scores: ArrayLike,
    opinions: ArrayLike,
    statistics: Sequence[str] = ("srcc",),
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    form: Form = "logistic4",
) -> dict[str, Interval]:
    """Intervals of statistics of scores against opinions, all over the same resamples.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        statistics: Some of :data:`STATISTICS`; the fitted ones share one fit in every draw.
        clusters: Reference content of each image, (N,); None where images are independent.
        draws: How many resamples.
        seed: Same seed, same intervals.
        level: Coverage.
        form: Curve of the fitted statistics.

    Returns:
        Name to interval; undefined where the statistic is, or for fewer than 3 clusters.

    Raises:
        StatisticsError: NaN, infinite values, different lengths or an unknown statistic.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    if reason := why_undefined(scores=x, opinions=y) or too_few_clusters(clusters, len(x)):
        return {name: _no_interval(reason, level, draws) for name in statistics}

    def drawn(statistic: Statistic) -> Floats:
        return bootstrap_draws(statistic, len(x), clusters=clusters, draws=draws, seed=seed)

    fitted = drawn(resampled_fitted(x, y, form)) if set(statistics) & set(FITTED) else np.empty((0, 2))
    return {
        name: percentile_interval(
            fitted[:, FITTED.index(name)] if name in FITTED else drawn(resampled_statistic(name, x, y)), level
        )
        for name in statistics
    }


def bootstrap_interval(scores: ArrayLike, opinions: ArrayLike, statistic: str = "srcc", **options: Any) -> Interval:
    """Interval of one statistic; see :func:`bootstrap_intervals`."""
    return bootstrap_intervals(scores, opinions, (statistic,), **options)[statistic]


def mean_interval(
    values: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of a mean, such as the share of pairs or the mean over ladders.

    Args:
        values: One value per item, (N,).
        clusters: Content of each item, (N,); None where items are independent.
        draws: How many resamples.
        seed: Same seed, same interval.
        level: Coverage.

    Returns:
        The interval; undefined for fewer than 3 items or clusters.

    Raises:
        StatisticsError: NaN, infinite values or not one cluster per value.
    """
    (v,) = finite_vectors(values=values)
    return _interval(resampled_mean(v), len(v), clusters, draws, seed, level)


def l_test_interval(
    scores: ArrayLike,
    levels: ArrayLike,
    contents: ArrayLike,
    kinds: ArrayLike,
    *,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of :func:`harness.statistics.l_test`, whole contents drawn at a time.

    Raises:
        StatisticsError: See :func:`harness.statistics.ladder_correlations`.
    """
    ladders = ladder_correlations(scores, levels, contents, kinds)
    if ladders.tied == len(ladders.values):
        return _no_interval("all scores of every ladder are the same", level, draws)
    resampled = resampled_mean(ladders.credited)
    return _interval(resampled, len(ladders.values), ladders.contents, draws, seed, level)


def d_test_interval(
    scores: ArrayLike,
    pristine: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of :func:`harness.statistics.d_test`, whole contents drawn at a time.

    The threshold is chosen anew in every draw, and with few contents it follows the draw: the interval of
    a handful of photographs lies rather above the estimate than around it.

    Raises:
        StatisticsError: See :func:`harness.statistics.d_test`.
    """
    _, reason = d_test(scores, pristine)
    if reason:
        return _no_interval(reason, level, draws)
    resampled = resampled_d_test(scores, pristine)
    return _interval(resampled, len(np.asarray(scores)), clusters, draws, seed, level)


def p_test_interval(
    scores: ArrayLike,
    better: ArrayLike,
    worse: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """Interval of :func:`harness.statistics.p_test`, whole contents drawn at a time.

    Raises:
        StatisticsError: See :func:`harness.statistics.p_test`.
    """
    _, reason = p_test(scores, better, worse)
    if reason:
        return _no_interval(reason, level, draws)
    resampled = resampled_p_test(scores, better, worse)
    return _interval(resampled, len(np.asarray(scores)), clusters, draws, seed, level)


def _interval(
    resampled: Statistic,
    number: int,
    clusters: ArrayLike | None,
    draws: int,
    seed: int,
    level: float,
) -> Interval:
    if reason := too_few_clusters(clusters, number):
        return _no_interval(reason, level, draws)
    return percentile_interval(bootstrap_draws(resampled, number, clusters=clusters, draws=draws, seed=seed), level)


def too_few_clusters(clusters: ArrayLike | None, number: int) -> str:
    """Why so few clusters allow no interval; empty where there are enough."""
    found = number if clusters is None else len(group_indices(clusters, "clusters", number)[0])
    what = "images" if clusters is None else "contents"
    return "" if found >= MIN_IMAGES else f"{found} {what}, {MIN_IMAGES} needed for an interval"


def _no_interval(reason: str, level: float, draws: int, missing: int = 0) -> Interval:
    return Interval(float("nan"), float("nan"), level, draws, missing, undefined(reason).reason)
