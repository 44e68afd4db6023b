"""Which images to show people: pairs on which two scorers disagree most, and single misjudgements.

Ma et al., "Group MAD Competition: A New Methodology to Compare Objective Image Quality Models", CVPR 2016.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.statistics.fitting import LogisticFit
from qualiclip_plugin.utils.statistics import StatisticsError, finite_vectors


class GmadPair(NamedTuple):
    """Two images that the defender holds equal and the attacker does not.

    Attributes:
        level: Quality level of the defender, 0 the lowest.
        preferred: Index of the image that the attacker prefers.
        gap: Difference of the attacker's ranks as a share of N - 1, in [0, 1].
        defender_gap: Difference of the defender's ranks as a share of N - 1, in [-1, 1].
    """

    level: int
    preferred: int
    rejected: int
    gap: float
    defender_gap: float


def gmad_pairs(defender: ArrayLike, attacker: ArrayLike, *, levels: int = 5) -> list[GmadPair]:
    """For each quality level of the defender the pair that the attacker separates most.

    Levels hold equal numbers of images in the order of the defender's scores; images that the defender
    ties are ordered by index.

    Args:
        defender: Scores, higher is better, (N,).
        attacker: Scores, higher is better, (N,).

    Returns:
        At most one pair per level, lowest level first; a level that the attacker sees as equal, or with
        fewer than two images, has none.

    Raises:
        StatisticsError: NaN, different lengths or ``levels`` below 1.
    """
    d, a = finite_vectors(defender=defender, attacker=attacker)
    if levels < 1:
        raise StatisticsError(f"levels: {levels}, at least 1 needed")
    d_share, a_share = _rank_share(d), _rank_share(a)
    pairs = []
    for level, rows in enumerate(np.array_split(np.argsort(d, kind="stable"), levels)):
        if len(rows) < 2 or np.ptp(a[rows]) == 0:
            continue
        best, worst = int(rows[np.argmax(a[rows])]), int(rows[np.argmin(a[rows])])
        gap, own = float(a_share[best] - a_share[worst]), float(d_share[best] - d_share[worst])
        pairs.append(GmadPair(level, best, worst, gap, own))
    return pairs


def misjudged(scores: ArrayLike, opinions: ArrayLike, fit: LogisticFit, count: int = 12) -> NDArray[np.intp]:
    """Images whose fitted score is farthest from the opinion, worst first.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).

    Returns:
        Indices; none if there is no fit.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    s, y = finite_vectors(scores=scores, opinions=opinions)
    if fit.reason:
        return np.empty(0, dtype=np.intp)
    return np.argsort(-np.square(fit.apply(s) - y), kind="stable")[:count]


def _rank_share(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray((stats.rankdata(values) - 1) / max(len(values) - 1, 1), dtype=np.float64)
