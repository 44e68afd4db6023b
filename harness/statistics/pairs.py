"""Pairwise preference: the P-test of Ma et al., "Waterloo Exploration Database", IEEE TIP 2017."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qualiclip_plugin.utils.statistics import Estimate, StatisticsError, finite_vector, undefined


def p_test(scores: ArrayLike, better: ArrayLike, worse: ArrayLike) -> Estimate:
    """Share of quality-discriminable pairs that the scorer orders correctly.

    Args:
        scores: Scores, higher is better, (N,).
        better: Index of the better image of each pair, (M,) integers; see :func:`discriminable_pairs`.
        worse: Index of the worse image of each pair, (M,) integers.

    Returns:
        Value in [0, 1]; a tie counts as not ordered. Undefined without pairs.

    Raises:
        StatisticsError: NaN, different lengths, or an index that is not there.
    """
    q = finite_vector("scores", scores)
    first, second = np.asarray(better, dtype=np.intp), np.asarray(worse, dtype=np.intp)
    if first.shape != second.shape or first.ndim != 1:
        raise StatisticsError(f"pairs: shapes {first.shape} and {second.shape}, one row each needed")
    both = np.concatenate([first, second])
    if both.size and (both.min() < 0 or both.max() >= len(q)):
        raise StatisticsError(f"pairs: index outside 0..{len(q) - 1}")
    return Estimate(float(np.mean(q[first] > q[second]))) if len(first) else undefined("no pair")


def discriminable_pairs(references: ArrayLike, margin: ArrayLike) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """All pairs that every full-reference metric separates by its margin, in the same direction.

    Args:
        references: Full-reference scores, higher is better, (R, N).
        margin: Smallest difference that counts, per metric, (R,), each > 0.

    Returns:
        Indices of the better and of the worse image, (M,) each.

    Raises:
        StatisticsError: Wrong shapes, NaN, or a margin that is not positive.
    """
    table = np.asarray(references, dtype=np.float64)
    if table.ndim != 2:
        raise StatisticsError(f"references: expected (metrics, images), got shape {table.shape}")
    for index, row in enumerate(table):
        finite_vector(f"references of metric {index}", row)
    margins = finite_vector("margin", margin)
    if len(margins) != len(table) or not len(table) or margins.min() <= 0:
        raise StatisticsError(f"margin: one positive number for each of {len(table)} metrics needed")
    agreed = np.ones((table.shape[1], table.shape[1]), dtype=bool)
    for row, least in zip(table, margins, strict=True):
        agreed &= row[:, None] - row[None, :] >= least
    better, worse = np.nonzero(agreed)
    return better, worse
