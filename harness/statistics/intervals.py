"""Bootstrap intervals, and medians over the splits that a dataset prescribes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.checks import (
    MIN_IMAGES,
    Estimate,
    Floats,
    StatisticsError,
    finite_vectors,
    group_indices,
    undefined,
    why_undefined,
)
from harness.statistics.correlation import srcc
from harness.statistics.fitting import Form
from harness.statistics.ladders import d_test, ladder_correlations, p_test
from harness.statistics.resampling import (
    Statistic,
    bootstrap_draws,
    resampled_d_test,
    resampled_krcc,
    resampled_mean,
    resampled_p_test,
    resampled_plcc,
    resampled_plcc_fitted,
    resampled_rmse_fitted,
    resampled_srcc,
)

STATISTICS: tuple[str, ...] = ("srcc", "krcc", "plcc", "plcc_fitted", "rmse_fitted")
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
    makers: Mapping[str, Callable[[ArrayLike, ArrayLike], Statistic]] = {
        "srcc": resampled_srcc,
        "krcc": resampled_krcc,
        "plcc": resampled_plcc,
        "plcc_fitted": partial(resampled_plcc_fitted, form=form),
        "rmse_fitted": partial(resampled_rmse_fitted, form=form),
    }
    if name not in makers:
        raise StatisticsError(f"statistic: {name!r} is none of {', '.join(STATISTICS)}")
    return makers[name](scores, opinions)


def bootstrap_interval(
    scores: ArrayLike,
    opinions: ArrayLike,
    statistic: str = "srcc",
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    form: Form = "logistic4",
) -> Interval:
    """Interval of a statistic of scores against opinions.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        statistic: One of :data:`STATISTICS`; fits are made anew in every draw.
        clusters: Reference content of each image, (N,); None where images are independent.
        draws: How many resamples.
        seed: Same seed, same interval.
        level: Coverage.
        form: Curve of the fitted statistics.

    Returns:
        The interval; undefined where the statistic is, or for fewer than 3 clusters.

    Raises:
        StatisticsError: NaN, infinite values, different lengths or an unknown statistic.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    reason = why_undefined(scores=x, opinions=y) or too_few_clusters(clusters, len(x))
    if reason:
        return _no_interval(reason, level, draws)
    resampled = resampled_statistic(statistic, x, y, form)
    values = bootstrap_draws(resampled, len(x), clusters=clusters, draws=draws, seed=seed)
    return percentile_interval(values, level)


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


@dataclass(frozen=True)
class SplitSummary:
    """One statistic over several test splits.

    Attributes:
        median: Median over the splits; NaN where one of them is undefined.
        std: Standard deviation over the splits (n - 1); NaN for a single split.
        values: The statistic of each split, (S,).
        reason: Which split is undefined and why; empty where none is.
    """

    median: float
    std: float
    values: Floats
    reason: str = ""


def split_summary(
    scores: ArrayLike,
    opinions: ArrayLike,
    splits: Sequence[ArrayLike],
    statistic: Callable[[ArrayLike, ArrayLike], Estimate] = srcc,
) -> SplitSummary:
    """Median and spread of a statistic over test splits.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        splits: Indices of the test images of each split.
        statistic: Scores and opinions to an estimate.

    Returns:
        The summary; the median is undefined as soon as one split is, never taken over the rest.

    Raises:
        StatisticsError: NaN, different lengths, no split or an index that is not there.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    chosen = [np.asarray(split, dtype=np.intp) for split in splits]
    if not chosen:
        raise StatisticsError("splits: none given")
    for number, split in enumerate(chosen):
        if split.size and (split.min() < 0 or split.max() >= len(x)):
            raise StatisticsError(f"split {number}: index outside 0..{len(x) - 1}")
    estimates = [statistic(x[split], y[split]) for split in chosen]
    values = np.array([estimate.value for estimate in estimates])
    for number, estimate in enumerate(estimates):
        if not estimate.defined:
            return SplitSummary(float("nan"), float("nan"), values, f"split {number}: {estimate.reason}")
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return SplitSummary(float(np.median(values)), std, values)


def content_splits(
    contents: ArrayLike, *, splits: int = 10, test_share: float = 0.2, seed: int = 0
) -> list[NDArray[np.intp]]:
    """Random test splits in which every reference content is wholly inside or wholly outside.

    Args:
        contents: Reference content of each image, (N,).
        splits: How many.
        test_share: Share of the contents in each test split, in (0, 1); at least one content.
        seed: Same seed, same splits.

    Returns:
        Sorted test indices of each split.

    Raises:
        StatisticsError: ``test_share`` outside (0, 1) or fewer than two contents.
    """
    names, members = group_indices(contents, "contents", len(np.asarray(contents)))
    if not 0 < test_share < 1 or len(names) < 2:
        raise StatisticsError(f"splits: share {test_share} of {len(names)} contents cannot be taken out")
    size = min(len(names) - 1, max(1, round(test_share * len(names))))
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(len(names))[:size] for _ in range(splits)]
    return [np.flatnonzero(np.isin(members, test)) for test in chosen]


def by_group(
    scores: ArrayLike,
    opinions: ArrayLike,
    groups: ArrayLike,
    statistic: Callable[[ArrayLike, ArrayLike], Estimate] = srcc,
) -> dict[str, tuple[Estimate, int]]:
    """A statistic within each distortion type, level or subset.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        groups: Label of each image, (N,).
        statistic: Scores and opinions to an estimate.

    Returns:
        Label to the estimate and the number of images; every label is there, undefined ones with a reason.

    Raises:
        StatisticsError: NaN or different lengths.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    labels, members = group_indices(groups, "groups", len(x))
    rows = [np.flatnonzero(members == index) for index in range(len(labels))]
    return {str(k): (statistic(x[row], y[row]), len(row)) for k, row in zip(labels, rows, strict=True)}


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
