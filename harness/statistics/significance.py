"""Is one scorer better than another on the same images?

Paired bootstrap on resampled contents, Williams' t for dependent correlations, and the F-test on residual
variance; several comparisons at once by Holm. Reference: ITU-T P.1401 (2020).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from harness.statistics.checks import (
    MIN_IMAGES,
    Estimate,
    Floats,
    StatisticsError,
    finite_vector,
    finite_vectors,
)
from harness.statistics.correlation import krcc, plcc, srcc
from harness.statistics.fitting import Form, fit_logistic, plcc_fitted, rmse_fitted
from harness.statistics.intervals import percentile_interval, resampled_statistic, too_few_clusters
from harness.statistics.resampling import bootstrap_draws, resampled_mean


class Outcome(NamedTuple):
    """A two-sided test of two scorers.

    Attributes:
        statistic: Positive where the first scorer is ahead (the F-test: a ratio of variances, above 1
            where the second leaves less error); NaN where undefined.
        p_value: Two-sided, in [0, 1]; NaN where undefined.
        reason: Why there is no result; empty where there is one.
    """

    statistic: float
    p_value: float
    reason: str = ""


def williams_t(r12: float, r13: float, r23: float, n: int) -> Outcome:
    """Williams' test that two correlations with the same variable are equal.

    t = (r12 - r13) sqrt[(n-1)(1+r23) / (2 (n-1)/(n-3) |R| + rbar^2 (1-r23)^3)], rbar = (r12+r13)/2,
    |R| = 1 - r12^2 - r13^2 - r23^2 + 2 r12 r13 r23, with n-3 degrees of freedom (Williams, JRSS B 1959).

    Args:
        r12: Correlation of the first scorer with the opinions.
        r13: Correlation of the second scorer with the opinions.
        r23: Correlation between the scorers.
        n: Number of images.

    Returns:
        t and its two-sided p; undefined for n < 4, for scorers that agree perfectly or in reverse, and where both
        together leave no error.

    Raises:
        StatisticsError: A correlation outside [-1, 1], or three that no data can have.
    """
    for name, value in (("r12", r12), ("r13", r13), ("r23", r23)):
        if not -1 <= value <= 1:
            raise StatisticsError(f"{name}: {value} is no correlation")
    determinant = 1 - r12**2 - r13**2 - r23**2 + 2 * r12 * r13 * r23
    if determinant < -1e-9:
        raise StatisticsError(f"no data has correlations {r12}, {r13} and {r23} at once")
    if n < MIN_IMAGES + 1:
        return no_outcome(f"{n} images, {MIN_IMAGES + 1} needed")
    bottom = 2 * (n - 1) / (n - 3) * max(determinant, 0.0) + ((r12 + r13) / 2) ** 2 * (1 - r23) ** 3
    # At the limits r23 = 1 and -1 rounding decides the quotient: one scorer then says all that the other does.
    if 1 - abs(r23) < 1e-12:
        return no_outcome("the two scorers agree perfectly" if r23 > 0 else "one scorer is the other turned round")
    if bottom <= 0:
        return no_outcome("the two scorers leave no error")
    t = (r12 - r13) * float(np.sqrt((n - 1) * (1 + r23) / bottom))
    return Outcome(t, float(2 * stats.t.sf(np.abs(t), n - 3)))


def williams_test(first: ArrayLike, second: ArrayLike, opinions: ArrayLike, *, ranks: bool = True) -> Outcome:
    """:func:`williams_t` on the scores themselves.

    Args:
        first: Scores of one scorer, higher is better, (N,).
        second: Scores of the other, (N,).
        opinions: Opinions, higher is better, (N,).
        ranks: Compare SRCC; false compares raw PLCC.

    Returns:
        Positive t where ``first`` correlates more; undefined where a correlation is.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    a, b, y = finite_vectors(first=first, second=second, opinions=opinions)
    correlation = srcc if ranks else plcc
    estimates = (correlation(a, y), correlation(b, y), correlation(a, b))
    for estimate in estimates:
        if not estimate.defined:
            return no_outcome(estimate.reason)
    r12, r13, r23 = (estimate.value for estimate in estimates)
    return williams_t(r12, r13, r23, len(y))


def f_test(first_residuals: ArrayLike, second_residuals: ArrayLike, *, parameters: int = 4) -> Outcome:
    """F-test that two scorers leave the same error after the fit.

    F = sum of squared residuals of the first / of the second, both with N - ``parameters`` degrees of
    freedom. It takes the residuals for independent and Gaussian; see :func:`gaussian_residuals`.

    Args:
        first_residuals: Fitted scores minus opinions, (N,).
        second_residuals: The same of the other scorer, (N,).
        parameters: Parameters of the fit.

    Returns:
        F and its two-sided p; undefined for N <= ``parameters`` or where a scorer leaves no error.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    a, b = finite_vectors(first_residuals=first_residuals, second_residuals=second_residuals)
    freedom = len(a) - parameters
    if freedom < 1:
        return no_outcome(f"{len(a)} images, {parameters + 1} needed after a fit of {parameters} parameters")
    # Scaled by the largest residual, so that no square overflows or vanishes.
    scale = max(np.abs(a).max(), np.abs(b).max())
    top, bottom = (float(np.square(residuals / (scale or 1)).sum()) for residuals in (a, b))
    if not top or not bottom:
        return no_outcome("a scorer leaves no error")
    ratio = top / bottom
    tails = stats.f.cdf(ratio, freedom, freedom), stats.f.sf(ratio, freedom, freedom)
    return Outcome(ratio, min(1.0, 2 * float(min(tails))))


def gaussian_residuals(residuals: ArrayLike) -> bool:
    """Whether the kurtosis lies between 2 and 4, the usual check before an F-test (Sheikh et al., 2006).

    Args:
        residuals: Fitted scores minus opinions, (N,).

    Raises:
        StatisticsError: NaN or infinite values.
    """
    r = finite_vector("residuals", residuals)
    return len(r) >= MIN_IMAGES and bool(np.ptp(r) > 0) and 2 <= float(stats.kurtosis(r, fisher=False)) <= 4


@dataclass(frozen=True)
class PairedBootstrap:
    """Difference of one statistic between two scorers over the same resamples.

    Attributes:
        difference: First minus second on all images, turned so that positive favours the first.
        low: Lower end of its percentile interval.
        high: Upper end.
        p_value: Two-sided, at least 2 / (draws + 1).
        reason: Why there is no result; empty where there is one.
    """

    difference: float
    low: float
    high: float
    p_value: float
    reason: str = ""


def paired_bootstrap(
    first: ArrayLike,
    second: ArrayLike,
    opinions: ArrayLike,
    statistic: str = "srcc",
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    form: Form = "logistic4",
) -> PairedBootstrap:
    """Compare two scorers on the same resampled contents.

    p = 2 min(#{d <= 0} + 1, #{d >= 0} + 1) / (draws + 1), at most 1 (Davison and Hinkley, 1997).

    Args:
        first: Scores of one scorer, higher is better, (N,).
        second: Scores of the other, (N,).
        opinions: Opinions, higher is better, (N,).
        statistic: One of :data:`harness.statistics.STATISTICS`.
        clusters: Reference content of each image, (N,).
        draws: How many resamples.
        seed: Same seed, same result.
        level: Coverage of the interval.
        form: Curve of the fitted statistics.

    Returns:
        The comparison; undefined where the statistic of either scorer is, or for fewer than 3 clusters.

    Raises:
        StatisticsError: NaN, infinite values, different lengths or an unknown statistic.
    """
    a, b, y = finite_vectors(first=first, second=second, opinions=opinions)
    values = [estimate_statistic(statistic, scores, y, form) for scores in (a, b)]
    lacking = [estimate.reason for estimate in values if not estimate.defined]
    if reason := (lacking or [too_few_clusters(clusters, len(y))])[0]:
        return _no_comparison(reason)
    resampled = [
        bootstrap_draws(
            resampled_statistic(statistic, scores, y, form), len(y), clusters=clusters, draws=draws, seed=seed
        )
        for scores in (a, b)
    ]
    sign = direction(statistic)
    difference = sign * (values[0].value - values[1].value)
    return compare_draws(difference, sign * (resampled[0] - resampled[1]), level)


def estimate_statistic(name: str, scores: ArrayLike, opinions: ArrayLike, form: Form = "logistic4") -> Estimate:
    """The named statistic on all images; the fitted ones make their own fit.

    Args:
        name: One of :data:`harness.statistics.STATISTICS`.
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        form: Curve of the fitted statistics.

    Raises:
        StatisticsError: NaN, infinite values, different lengths or an unknown name.
    """
    plain = {"srcc": srcc, "krcc": krcc, "plcc": plcc}
    if name in plain:
        return plain[name](scores, opinions)
    fitted = {"plcc_fitted": plcc_fitted, "rmse_fitted": rmse_fitted}
    if name not in fitted:
        raise StatisticsError(f"statistic: {name!r} is none of {', '.join([*plain, *fitted])}")
    return fitted[name](scores, opinions, fit_logistic(form, scores, opinions))


def holm(p_values: ArrayLike) -> Floats:
    """Holm's step-down adjustment for several comparisons (Holm, 1979).

    Args:
        p_values: In [0, 1], any shape; NaN stays NaN and counts for nothing.

    Returns:
        Adjusted p of the same shape: a comparison is significant where it is at most alpha.

    Raises:
        StatisticsError: A value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    flat = p.ravel()
    known = np.flatnonzero(~np.isnan(flat))
    if known.size and (flat[known].min() < 0 or flat[known].max() > 1):
        raise StatisticsError("p_values: outside 0..1")
    order = known[np.argsort(flat[known], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = np.full(flat.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(flat[order] * factors), 1.0)
    return adjusted.reshape(p.shape)


def compare_draws(difference: float, gaps: Floats, level: float = 0.95) -> PairedBootstrap:
    """Interval and p of a difference from its bootstrap draws.

    Args:
        difference: On all images, positive where the first is ahead.
        gaps: The same in every draw, (B,); NaN where the draw has no value.
        level: Coverage of the interval.

    Returns:
        The comparison; undefined where more than a tenth of the draws has no value.
    """
    interval = percentile_interval(gaps, level)
    if interval.reason:
        return _no_comparison(interval.reason)
    known = gaps[~np.isnan(gaps)]
    tail = min(np.count_nonzero(known <= 0), np.count_nonzero(known >= 0)) + 1
    p_value = min(1.0, 2 * float(tail) / (len(known) + 1))
    return PairedBootstrap(difference, interval.low, interval.high, p_value)


def direction(statistic: str) -> float:
    """-1 for an error, which is better where it is smaller, and 1 for every other statistic."""
    return -1.0 if statistic == "rmse_fitted" else 1.0


def paired_mean(
    first: ArrayLike,
    second: ArrayLike,
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> PairedBootstrap:
    """Compare two means over the same items, such as the L-test of two scorers over the same ladders.

    Args:
        first: One value per item, higher is better, (M,).
        second: The same of the other scorer, (M,).
        clusters: Content of each item, (M,).
        draws: How many resamples.
        seed: Same seed, same result.
        level: Coverage of the interval.

    Returns:
        The comparison; undefined for fewer than 3 items or clusters.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    a, b = finite_vectors(first=first, second=second)
    if reason := too_few_clusters(clusters, len(a)):
        return _no_comparison(reason)
    gaps = bootstrap_draws(resampled_mean(a - b), len(a), clusters=clusters, draws=draws, seed=seed)
    return compare_draws(float(np.mean(a - b)), gaps, level)


def no_outcome(reason: str) -> Outcome:
    """An outcome without a value."""
    return Outcome(float("nan"), float("nan"), reason)


def _no_comparison(reason: str) -> PairedBootstrap:
    nan = float("nan")
    return PairedBootstrap(nan, nan, nan, nan, reason)
