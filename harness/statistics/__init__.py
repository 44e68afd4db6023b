"""Statistics of the leaderboard: pure functions on NumPy arrays.

Arrays are first turned by :func:`oriented` so that higher is better; after that every value is signed.
NaN in an input is an error that names the index. A statistic that does not exist (constant scores, too few
images) is an :class:`Estimate` of NaN with its reason. Everything random takes a seed.
"""

from harness.statistics.checks import MIN_IMAGES, Estimate, StatisticsError, oriented, undefined
from harness.statistics.correlation import krcc, plcc, rmse, srcc
from harness.statistics.fitting import (
    LogisticFit,
    fit_logistic4,
    fit_logistic5,
    logistic4,
    logistic5,
    plcc_fitted,
    rmse_fitted,
)
from harness.statistics.ladders import (
    Ladders,
    d_test,
    discriminable_pairs,
    l_test,
    ladder_correlations,
    p_test,
)

__all__ = [
    "MIN_IMAGES",
    "Estimate",
    "Ladders",
    "LogisticFit",
    "StatisticsError",
    "d_test",
    "discriminable_pairs",
    "fit_logistic4",
    "fit_logistic5",
    "krcc",
    "l_test",
    "ladder_correlations",
    "logistic4",
    "logistic5",
    "oriented",
    "p_test",
    "plcc",
    "plcc_fitted",
    "rmse",
    "rmse_fitted",
    "srcc",
    "undefined",
]
