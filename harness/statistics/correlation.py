"""Signed correlations and errors between scores and opinions.

All expect arrays that :func:`harness.statistics.oriented` turned so that higher is better.
Protocol: VQEG FR-TV Phase II (2003) and ITU-T P.1401 (2020).
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from qualiclip_plugin.utils.statistics import Estimate, finite_vectors, pearson, undefined, why_undefined


def krcc(scores: ArrayLike, opinions: ArrayLike) -> Estimate:
    """Kendall's tau-b, (concordant - discordant) / sqrt((n0 - n1) (n0 - n2)).

    n0 counts all pairs, n1 and n2 those tied in scores and in opinions (Kendall, 1945). Arguments, range and errors
    are those of :func:`harness.statistics.srcc`.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    if reason := why_undefined(scores=x, opinions=y):
        return undefined(reason)
    return Estimate(float(stats.kendalltau(x, y, variant="b").statistic))


def plcc(scores: ArrayLike, opinions: ArrayLike) -> Estimate:
    """Pearson's linear correlation, without any fit ("raw"); arguments, range and errors as :func:`krcc`."""
    x, y = finite_vectors(scores=scores, opinions=opinions)
    if reason := why_undefined(scores=x, opinions=y):
        return undefined(reason)
    return Estimate(pearson(x, y))


def rmse(predictions: ArrayLike, opinions: ArrayLike) -> Estimate:
    """Root of the mean squared difference, in units of the opinions.

    Args:
        predictions: Scores mapped to the opinion scale by a fit, (N,).
        opinions: Opinions, (N,).

    Returns:
        Value >= 0; undefined for an empty array.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    x, y = finite_vectors(predictions=predictions, opinions=opinions)
    if not len(x):
        return undefined("no images")
    return Estimate(float(np.sqrt(np.mean(np.square(x - y)))))
