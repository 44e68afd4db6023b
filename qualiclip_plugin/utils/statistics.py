"""Shared by all statistics: checked arrays, one place for direction, results that may be undefined.

And the statistics that training validates with: SRCC, and the D- and L-test of Ma et al., "Waterloo Exploration
Database: New Challenges for Image Quality Assessment Models", IEEE TIP 2017. They expect scores that :func:`oriented`
turned so that higher is better; level 0 is pristine and a higher level is worse.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from qualiclip_plugin.utils.errors import QualiCLIPError

Floats = NDArray[np.float64]

MIN_IMAGES = 3
"""Fewest images for which a correlation has a meaning: two always correlate perfectly."""


class StatisticsError(QualiCLIPError, ValueError):
    """The arrays given to a statistic cannot be used (NaN, infinite, different lengths)."""


class Estimate(NamedTuple):
    """A number, or NaN and the reason why there is none.

    Attributes:
        value: The statistic; NaN if it is undefined.
        reason: Empty where the statistic is defined.
    """

    value: float
    reason: str = ""

    def __float__(self) -> float:
        return self.value

    @property
    def defined(self) -> bool:
        """Whether there is a value."""
        return not self.reason


def undefined(reason: str) -> Estimate:
    """An estimate without a value."""
    return Estimate(float("nan"), reason)


def oriented(values: ArrayLike, *, lower_better: bool) -> Floats:
    """Turn scores or opinions so that higher is better: the only place where a direction is applied.

    Every other statistic expects arrays that went through here once, and never takes an
    absolute value: a scorer that runs against its declared direction keeps its negative correlation.

    Args:
        values: Scores or opinions, (N,).
        lower_better: The declared direction (true for NIQE, PIQE and for a real DMOS).

    Returns:
        ``values`` or ``-values`` as float64, (N,).
    """
    array = np.asarray(values, dtype=np.float64)
    return -array if lower_better else array


def finite_vector(name: str, values: ArrayLike) -> Floats:
    """Check that ``values`` is one finite row of numbers.

    Raises:
        StatisticsError: Not one-dimensional, or NaN or infinite at some index (named).
    """
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 1:
        raise StatisticsError(f"{name}: expected one dimension, got shape {array.shape}")
    bad = np.flatnonzero(~np.isfinite(array))
    if bad.size:
        more = f" (and {bad.size - 1} more)" if bad.size > 1 else ""
        raise StatisticsError(f"{name}: {array[bad[0]]} at index {bad[0]}{more}")
    return array


def finite_vectors(**arrays: ArrayLike) -> tuple[Floats, ...]:
    """Check that all arrays are finite, one-dimensional and of one length.

    Raises:
        StatisticsError: One of them is not.
    """
    checked = {name: finite_vector(name, values) for name, values in arrays.items()}
    same_length(**checked)
    return tuple(checked.values())


def same_length(**arrays: NDArray[Any]) -> int:
    """The common length of the arrays.

    Raises:
        StatisticsError: They differ.
    """
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise StatisticsError("lengths differ: " + ", ".join(f"{k} has {v}" for k, v in lengths.items()))
    return next(iter(lengths.values()))


def why_undefined(**vectors: Floats) -> str:
    """Why no correlation exists between checked vectors; empty if one does."""
    for name, vector in vectors.items():
        if len(vector) < MIN_IMAGES:
            return f"{len(vector)} images, {MIN_IMAGES} needed"
        if vector.max() == vector.min():
            return f"all {name} are {vector[0]:g}"
    return ""


def group_indices(values: ArrayLike, name: str, length: int) -> tuple[NDArray[Any], NDArray[np.intp]]:
    """Distinct labels and the index of each item's label.

    Args:
        values: One label per item (strings or numbers), (N,).
        length: The expected N.

    Returns:
        Labels (G,), sorted, and indices (N,) into them.

    Raises:
        StatisticsError: Not one label per item.
    """
    array = np.asarray(values)
    if array.shape != (length,):
        raise StatisticsError(f"{name}: expected {length} labels, got shape {array.shape}")
    labels, indices = np.unique(array, return_inverse=True)
    return labels, indices


def srcc(scores: ArrayLike, opinions: ArrayLike) -> Estimate:
    """Spearman's rank correlation: Pearson's correlation of average ranks.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).

    Returns:
        Value in [-1, 1]; undefined for fewer than 3 images or a constant array.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    if reason := why_undefined(scores=x, opinions=y):
        return undefined(reason)
    return Estimate(pearson(stats.rankdata(x), stats.rankdata(y)))


def pearson(x: Floats, y: Floats) -> float:
    """Linear correlation of checked vectors that are not constant."""
    a, b = _unit(x), _unit(y)
    # Rounding may step one unit in the last place outside.
    return float(np.clip(a @ b, -1.0, 1.0))


def _unit(values: Floats) -> Floats:
    # Dividing by the largest deviation first keeps squares of tiny or huge scores representable.
    centred = values / np.abs(values).max()
    centred = centred - centred.mean()
    centred = centred / np.abs(centred).max()
    return centred / np.linalg.norm(centred)


def d_test(scores: ArrayLike, pristine: ArrayLike) -> Estimate:
    """How well one threshold separates pristine from distorted images.

    D = max over T of [share of pristine with q > T + share of distorted with q <= T] / 2.

    Args:
        scores: Scores, higher is better, (N,).
        pristine: True for pristine images, (N,) booleans.

    Returns:
        Value in [0.5, 1], 0.5 for no separation; undefined if one of the two classes is empty or all
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
        values: SRCC of score and -level, (M,); NaN if all scores of the ladder are the same.
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
    """Rank correlation of each row of x with that of y, (M,); NaN if all of a row of x are the same."""
    a, b = (stats.rankdata(values, axis=1) - (values.shape[1] + 1) / 2 for values in (x, y))
    norm = np.sqrt(np.square(a).sum(axis=1) * np.square(b).sum(axis=1))
    return np.divide((a * b).sum(axis=1), norm, out=np.full(len(a), np.nan), where=norm > 0)


def l_test(scores: ArrayLike, levels: ArrayLike, contents: ArrayLike, kinds: ArrayLike) -> Estimate:
    """Mean over all ladders of the rank correlation between score and severity.

    L = mean over contents and distortion types of SRCC(q, -level), in [-1, 1]. A ladder whose scores are all the
    same counts 0, so that ignoring a distortion is never rewarded; undefined without ladders or where every ladder
    is tied. Arguments and errors are those of :func:`ladder_correlations`.
    """
    ladders = ladder_correlations(scores, levels, contents, kinds)
    if not len(ladders.values):
        return undefined("no ladder")
    if ladders.tied == len(ladders.values):
        return undefined("all scores of every ladder are the same")
    return Estimate(float(ladders.credited.mean()))
