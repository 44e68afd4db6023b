"""Tests that need no human opinion: ordering along known degradations.

Ma et al., "Waterloo Exploration Database: New Challenges for Image Quality Assessment Models",
IEEE TIP 2017: discriminability (D), listwise ranking consistency (L), pairwise preference (P).
Scores are oriented so that higher is better; level 0 is pristine and a higher level is worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.statistics.checks import (
    MIN_IMAGES,
    Estimate,
    Floats,
    StatisticsError,
    finite_vector,
    finite_vectors,
    group_indices,
    undefined,
)


def d_test(scores: ArrayLike, pristine: ArrayLike) -> Estimate:
    """How well one threshold separates pristine from distorted images.

    D = max over T of [share of pristine with q > T + share of distorted with q <= T] / 2.

    Args:
        scores: Scores, higher is better, (N,).
        pristine: True for pristine images, (N,) booleans.

    Returns:
        Value in [0.5, 1], 0.5 for no separation; undefined where one of the two classes is empty or all
        scores are the same.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    q = finite_vector("scores", scores)
    clean = np.asarray(pristine, dtype=bool)
    if clean.shape != q.shape:
        raise StatisticsError(f"pristine: expected {len(q)} booleans, got shape {clean.shape}")
    if not clean.any() or clean.all():
        return undefined("no distorted image" if clean.any() else "no pristine image")
    if q.max() == q.min():
        return undefined(f"all scores are {q[0]:g}")
    return Estimate(float(_shares(q, clean)[1].max()))


def d_threshold(scores: ArrayLike, pristine: ArrayLike) -> float:
    """The threshold of :func:`d_test`, the lowest of those that separate equally well."""
    thresholds, shares = _shares(finite_vector("scores", scores), np.asarray(pristine, dtype=bool))
    return float(thresholds[np.argmax(shares)])


def _shares(q: Floats, clean: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    thresholds = np.unique(q)
    above = 1 - np.searchsorted(np.sort(q[clean]), thresholds, side="right") / clean.sum()
    below = np.searchsorted(np.sort(q[~clean]), thresholds, side="right") / (~clean).sum()
    # T below every score is not among the thresholds; it gives (1 + 0) / 2, as the largest score does.
    return thresholds, (above + below) / 2


@dataclass(frozen=True)
class Ladders:
    """Rank correlation with severity, one entry per content and distortion type.

    Attributes:
        values: SRCC of score and -level, (M,); NaN where all scores of the ladder are the same.
        contents: Content of each ladder, (M,).
        kinds: Distortion type of each ladder, (M,).
    """

    values: Floats
    contents: NDArray[Any]
    kinds: NDArray[Any]

    @property
    def tied(self) -> int:
        """How many ladders the scorer gave one and the same score."""
        return int(np.isnan(self.values).sum())

    @property
    def credited(self) -> Floats:
        """The values with 0 for tied ladders: a scorer that sees no difference orders nothing, (M,)."""
        return np.nan_to_num(self.values, nan=0.0)


def ladder_correlations(scores: ArrayLike, levels: ArrayLike, contents: ArrayLike, kinds: ArrayLike) -> Ladders:
    """Rank correlation between score and severity within each content and distortion type.

    A pristine image takes part in a ladder only through a row of its own with that ladder's kind.

    Args:
        scores: Scores, higher is better, (N,).
        levels: Severity, 0 pristine, higher worse, (N,).
        contents: Which photograph, (N,).
        kinds: Which distortion type, (N,).

    Returns:
        One entry per ladder; +1 where every step down in quality lowers the score.

    Raises:
        StatisticsError: NaN, different lengths, or a ladder with fewer than 3 images or only one level.
    """
    q, level = finite_vectors(scores=scores, levels=levels)
    content_names, content = group_indices(contents, "contents", len(q))
    kind_names, kind = group_indices(kinds, "kinds", len(q))
    ladder, member = np.unique(content * len(kind_names) + kind, return_inverse=True)
    content_of, kind_of = content_names[ladder // len(kind_names)], kind_names[ladder % len(kind_names)]
    sizes = np.bincount(member, minlength=len(ladder))
    rows = np.split(np.argsort(member, kind="stable"), np.cumsum(sizes)[:-1]) if len(q) else []
    values = np.empty(len(rows))
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        members = np.stack([rows[index] for index in chosen])
        steps = level[members]
        if short := chosen[(np.ptp(steps, axis=1) == 0) | (size < MIN_IMAGES)].tolist():
            name = f"{kind_of[short[0]]} on {content_of[short[0]]}"
            raise StatisticsError(f"ladder {name}: {MIN_IMAGES} images on different levels needed")
        values[chosen] = _row_srcc(q[members], -steps)
    return Ladders(values, content_of, kind_of)


def _row_srcc(x: Floats, y: Floats) -> Floats:
    """Rank correlation of each row of x with that of y, (M,); NaN where all of a row of x are the same."""
    a, b = (stats.rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def l_test(scores: ArrayLike, levels: ArrayLike, contents: ArrayLike, kinds: ArrayLike) -> Estimate:
    """Mean over all ladders of the rank correlation between score and severity.

    L = mean over contents and distortion types of SRCC(q, -level). A ladder whose scores are all the same
    counts 0, so that ignoring a distortion is never rewarded.

    Args:
        scores: Scores, higher is better, (N,).
        levels: Severity, 0 pristine, higher worse, (N,).
        contents: Which photograph, (N,).
        kinds: Which distortion type, (N,).

    Returns:
        Value in [-1, 1]; undefined without ladders or where every ladder is tied.

    Raises:
        StatisticsError: See :func:`ladder_correlations`.
    """
    ladders = ladder_correlations(scores, levels, contents, kinds)
    if not len(ladders.values):
        return undefined("no ladder")
    if ladders.tied == len(ladders.values):
        return undefined("all scores of every ladder are the same")
    return Estimate(float(ladders.credited.mean()))


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
