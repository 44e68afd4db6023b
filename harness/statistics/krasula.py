"""Figures that take the uncertainty of the opinions into account.

Krasula, Fliegel, Le Callet, Klima, "On the accuracy of objective image and video quality models: New
methodology for performance evaluation", QoMEX 2016. No fit is needed and the scale of the scores is free.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qualiclip_plugin.utils.statistics import (
    Estimate,
    Floats,
    StatisticsError,
    finite_vectors,
    undefined,
    why_undefined,
)

_MAX_PAIRS = 5_000_000


@dataclass(frozen=True)
class Krasula:
    """How well score differences tell which pairs people tell apart, and which way.

    Attributes:
        different_similar: AUC of |score difference| for pairs that people rate significantly differently
            against pairs that they do not, in [0, 1].
        better_worse: AUC of the signed score difference for the better against the worse of a
            significantly different pair, in [0, 1].
        correct: Share of the significantly different pairs ordered as people do, in [0, 1]; a tie is wrong.
        different: How many of the pairs are significantly different.
        sampled: Whether these are a random part of all pairs.
    """

    different_similar: Estimate
    better_worse: Estimate
    correct: Estimate
    different: int
    pairs: int
    sampled: bool


def krasula(
    scores: ArrayLike,
    opinions: ArrayLike,
    standard_errors: ArrayLike,
    *,
    confidence: float = 0.95,
    max_pairs: int = _MAX_PAIRS,
    seed: int = 0,
) -> Krasula:
    """Krasula's three figures.

    A pair is significantly different when Phi(|mos_i - mos_j| / sqrt(se_i^2 + se_j^2)) > ``confidence``.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Mean opinions, higher is better, (N,).
        standard_errors: Of the mean opinions: standard deviation of the votes divided by the root of their
            number, each > 0, (N,).
        confidence: In (0.5, 1).
        max_pairs: Above this number of pairs a seeded random part of this size is taken.

    Returns:
        The figures; undefined if a class of pairs is empty, or for constant or fewer than 3 scores.

    Raises:
        StatisticsError: NaN, different lengths, or a standard error that is not positive (index named).
    """
    q, mos, error = finite_vectors(scores=scores, opinions=opinions, standard_errors=standard_errors)
    bad = np.flatnonzero(error <= 0)
    if bad.size:
        raise StatisticsError(f"standard_errors: {error[bad[0]]} at index {bad[0]}, positive needed")
    if not 0.5 < confidence < 1:
        raise StatisticsError(f"confidence: {confidence}, a number between 0.5 and 1 needed")
    total = len(q) * (len(q) - 1) // 2
    if reason := why_undefined(scores=q):
        return Krasula(undefined(reason), undefined(reason), undefined(reason), 0, total, sampled=False)
    first, second = _pairs(len(q), max_pairs, seed)
    z = (mos[first] - mos[second]) / np.hypot(error[first], error[second])
    different = stats.norm.cdf(np.abs(z)) > confidence
    # Turned so that people prefer the first image of every pair.
    difference = (q[first] - q[second]) * np.where(z < 0, -1.0, 1.0)
    chosen = difference[different]
    return Krasula(
        auc(np.abs(chosen), np.abs(difference[~different])),
        auc(chosen, -chosen),
        Estimate(float(np.mean(chosen > 0))) if len(chosen) else undefined("no significantly different pair"),
        int(different.sum()),
        len(first),
        len(first) < total,
    )


def auc(positives: Floats, negatives: Floats) -> Estimate:
    """Area under the ROC curve: the chance that a positive exceeds a negative, ties counting half.

    Args:
        positives: (P,).
        negatives: (M,).

    Returns:
        Value in [0, 1]; undefined if one class is empty.
    """
    p, m = len(positives), len(negatives)
    if not p or not m:
        return undefined("no significantly different pair" if not p else "no pair that is similar")
    ranks = stats.rankdata(np.concatenate([positives, negatives]))
    return Estimate(float((ranks[:p].sum() - p * (p + 1) / 2) / (p * m)))


def _pairs(images: int, most: int, seed: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    if images * (images - 1) // 2 <= most:
        first, second = np.triu_indices(images, k=1)
        return first, second
    generator = np.random.default_rng(seed)
    first = generator.integers(images, size=most)
    # An offset of 1..N-1 modulo N never meets the image itself and keeps all pairs equally likely.
    second = (first + generator.integers(1, images, size=most)) % images
    return first, second
