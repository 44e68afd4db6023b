"""Is one scorer better than another on the same images?

Sign flips over contents; for independent images also Williams' t for dependent correlations and Pitman's test of
paired variances; several comparisons at once by Holm.
"""

from __future__ import annotations

from functools import cache
from itertools import product
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from harness.statistics.correlation import plcc
from qualiclip_plugin.utils.statistics import MIN_IMAGES, Floats, StatisticsError, finite_vectors, srcc

EXACT_CONTENTS = 13
"""Up to so many contents all sign patterns are tried: 2^13 = 8192."""


class Outcome(NamedTuple):
    """A two-sided test of two scorers.

    Attributes:
        statistic: Positive if the first scorer is ahead; NaN if undefined.
        p_value: Two-sided, in [0, 1]; NaN if undefined.
        reason: Why there is no result; empty if there is one.
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
        Positive t where ``first`` correlates more; undefined if a correlation is.

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


def sign_flip_p(differences: Floats, *, draws: int = 2000, seed: int = 0) -> Floats:
    """p that the mean of symmetric, independent differences is 0: sign flips (Fisher, 1935).

    Where two scorers are equally good, a content's difference could as well have had the other sign. Up to 13
    contents every pattern of signs is tried and p is exact; beyond, ``draws`` random ones are, and the p of a Monte
    Carlo test holds its size whatever their number (Davison and Hinkley, 1997).

    Args:
        differences: Per content and comparison, (G, C).

    Returns:
        Two-sided p, (C,), at least :func:`least_p`.
    """
    signs = _signs(len(differences), draws, seed)
    sums = np.abs(signs @ differences)
    own = np.abs(differences.sum(axis=0))
    # What is equal but for the order of the sum counts as equal.
    reached = np.count_nonzero(sums >= own - 1e-12 * np.abs(differences).sum(axis=0), axis=0)
    exact = len(differences) <= EXACT_CONTENTS
    return np.asarray(reached / len(signs) if exact else (reached + 1) / (len(signs) + 1), dtype=np.float64)


def least_p(contents: int, draws: int = 2000) -> float:
    """The smallest p that sign flips over so many contents can give: 2 / 2^G, or what the draws allow."""
    return 2.0 ** (1 - contents) if contents <= EXACT_CONTENTS else 1 / (draws + 1)


@cache
def _signs(contents: int, draws: int, seed: int) -> Floats:
    if contents <= EXACT_CONTENTS:
        # The other half of the patterns has the same sums with the other sign.
        return np.array([(1.0, *rest) for rest in product((1.0, -1.0), repeat=contents - 1)])
    return np.random.default_rng(seed).choice([-1.0, 1.0], size=(draws, contents))


def pitman_test(first_residuals: ArrayLike, second_residuals: ArrayLike) -> Outcome:
    """Pitman's test that two scorers leave the same variance after the fit, on the same images.

    Residuals of two scorers on one image are alike, so an F-test of their variances is far too cautious. Their sums
    and differences correlate just where the variances differ: t = r sqrt((n - 2) / (1 - r^2)) with r the correlation
    of a + b and b - a (Pitman; Morgan; both Biometrika 1939). It takes the images for independent.

    Args:
        first_residuals: Fitted scores minus opinions, (N,).
        second_residuals: The same of the other scorer, (N,).

    Returns:
        t, positive if the first leaves less, with n - 2 degrees of freedom, and its two-sided p; undefined for
        fewer than 4 images or where sums or differences are all the same.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    a, b = finite_vectors(first_residuals=first_residuals, second_residuals=second_residuals)
    if len(a) <= MIN_IMAGES:
        return no_outcome(f"{len(a)} images, {MIN_IMAGES + 1} needed")
    found = plcc(a + b, b - a)
    if not found.defined:
        return no_outcome("the two scorers leave the same residuals")
    if abs(found.value) >= 1:
        return no_outcome("a scorer leaves no error")
    t = found.value * float(np.sqrt((len(a) - 2) / (1 - found.value**2)))
    return Outcome(t, float(2 * stats.t.sf(abs(t), len(a) - 2)))


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


def no_outcome(reason: str) -> Outcome:
    """An outcome without a value."""
    return Outcome(float("nan"), float("nan"), reason)
