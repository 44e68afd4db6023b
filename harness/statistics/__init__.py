"""Statistics of the leaderboard: pure functions on NumPy arrays.

Arrays are first turned by :func:`oriented` so that higher is better; after that every value is signed.
NaN in an input is an error that names the index. A statistic that does not exist (constant scores, too few
images) is an :class:`Estimate` of NaN with its reason. Everything random takes a seed.
"""

from harness.statistics.aggregate import Cells, Standing, standings
from harness.statistics.correlation import krcc, plcc, rmse
from harness.statistics.fitting import (
    LogisticFit,
    fit_logistic,
    logistic4,
    logistic5,
    plcc_fitted,
    rmse_fitted,
)
from harness.statistics.gmad import GmadPair, gmad_pairs, misjudged
from harness.statistics.intervals import Interval, interval, intervals
from harness.statistics.krasula import Krasula, auc, krasula
from harness.statistics.matrix import (
    METHODS,
    SignificanceMatrix,
    compact_letters,
    rank_ranges,
    significance_matrix,
)
from harness.statistics.pairs import discriminable_pairs, p_test
from harness.statistics.registry import STATISTICS, Images, Statistic, measure, rated
from harness.statistics.significance import (
    Outcome,
    holm,
    least_p,
    pitman_test,
    sign_flip_p,
    williams_t,
    williams_test,
)
from harness.statistics.splits import SplitSummary, content_splits, split_summary
from qualiclip_plugin.utils.statistics import (
    MIN_IMAGES,
    Estimate,
    Ladders,
    StatisticsError,
    d_test,
    l_test,
    ladder_correlations,
    oriented,
    srcc,
    undefined,
)

__all__ = [
    "METHODS",
    "MIN_IMAGES",
    "STATISTICS",
    "Cells",
    "Estimate",
    "GmadPair",
    "Images",
    "Interval",
    "Krasula",
    "Ladders",
    "LogisticFit",
    "Outcome",
    "SignificanceMatrix",
    "SplitSummary",
    "Standing",
    "Statistic",
    "StatisticsError",
    "auc",
    "compact_letters",
    "content_splits",
    "d_test",
    "discriminable_pairs",
    "fit_logistic",
    "gmad_pairs",
    "holm",
    "interval",
    "intervals",
    "krasula",
    "krcc",
    "l_test",
    "ladder_correlations",
    "least_p",
    "logistic4",
    "logistic5",
    "measure",
    "misjudged",
    "oriented",
    "p_test",
    "pitman_test",
    "plcc",
    "plcc_fitted",
    "rank_ranges",
    "rated",
    "rmse",
    "rmse_fitted",
    "sign_flip_p",
    "significance_matrix",
    "split_summary",
    "srcc",
    "standings",
    "undefined",
    "williams_t",
    "williams_test",
]
