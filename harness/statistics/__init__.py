"""Statistics of the leaderboard: pure functions on NumPy arrays.

Arrays are first turned by :func:`oriented` so that higher is better; after that every value is signed.
NaN in an input is an error that names the index. A statistic that does not exist (constant scores, too few
images) is an :class:`Estimate` of NaN with its reason. Everything random takes a seed.
"""

from harness.statistics.aggregate import Cells, average_rank, cells, mean_over_datasets
from harness.statistics.checks import MIN_IMAGES, Estimate, StatisticsError, oriented, undefined
from harness.statistics.correlation import krcc, plcc, rmse, srcc
from harness.statistics.fitting import (
    LogisticFit,
    fit_logistic,
    fit_logistic4,
    fit_logistic5,
    logistic4,
    logistic5,
    plcc_fitted,
    rmse_fitted,
)
from harness.statistics.gmad import GmadPair, gmad_pairs, misjudged
from harness.statistics.intervals import (
    STATISTICS,
    Interval,
    bootstrap_interval,
    bootstrap_intervals,
    d_test_interval,
    l_test_interval,
    mean_interval,
    p_test_interval,
    percentile_interval,
)
from harness.statistics.krasula import Krasula, auc, krasula
from harness.statistics.ladders import (
    Ladders,
    d_test,
    discriminable_pairs,
    l_test,
    ladder_correlations,
    p_test,
)
from harness.statistics.matrix import SignificanceMatrix, mean_significance_matrix, significance_matrix
from harness.statistics.resampling import bootstrap_draws
from harness.statistics.significance import (
    Outcome,
    PairedBootstrap,
    estimate_statistic,
    f_test,
    gaussian_residuals,
    holm,
    paired_bootstrap,
    paired_mean,
    williams_t,
    williams_test,
)
from harness.statistics.splits import SplitSummary, by_group, content_splits, split_summary

__all__ = [
    "MIN_IMAGES",
    "STATISTICS",
    "Cells",
    "Estimate",
    "GmadPair",
    "Interval",
    "Krasula",
    "Ladders",
    "LogisticFit",
    "Outcome",
    "PairedBootstrap",
    "SignificanceMatrix",
    "SplitSummary",
    "StatisticsError",
    "auc",
    "average_rank",
    "bootstrap_draws",
    "bootstrap_interval",
    "bootstrap_intervals",
    "by_group",
    "cells",
    "content_splits",
    "d_test",
    "d_test_interval",
    "discriminable_pairs",
    "estimate_statistic",
    "f_test",
    "fit_logistic",
    "fit_logistic4",
    "fit_logistic5",
    "gaussian_residuals",
    "gmad_pairs",
    "holm",
    "krasula",
    "krcc",
    "l_test",
    "l_test_interval",
    "ladder_correlations",
    "logistic4",
    "logistic5",
    "mean_interval",
    "mean_over_datasets",
    "mean_significance_matrix",
    "misjudged",
    "oriented",
    "p_test",
    "p_test_interval",
    "paired_bootstrap",
    "paired_mean",
    "percentile_interval",
    "plcc",
    "plcc_fitted",
    "rmse",
    "rmse_fitted",
    "significance_matrix",
    "split_summary",
    "srcc",
    "undefined",
    "williams_t",
    "williams_test",
]
