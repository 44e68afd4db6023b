"""Every statistic on many parts of the same images at once.

A row of counts says how often each image is taken: 1 in the whole, 0 for the images of a content that is left out.
Statistics of the part are then weighted statistics of the original images, computed for many rows together, without
gathering or sorting. Shapes: B rows, N images.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.statistics.fitting import CURVES, Form, LogisticFit, fit_logistic
from qualiclip_plugin.utils.process_settings import usable_cores
from qualiclip_plugin.utils.statistics import (
    MIN_IMAGES,
    Floats,
    d_threshold,
    finite_vector,
    finite_vectors,
    ladder_correlations,
)

Resampled = Callable[[Floats], Floats]
"""Counts (B, N) -> the statistic of each row (B,), or several (B, K); NaN if it is undefined."""

_BLOCK = 200_000  # counts handled at once: arrays of this size stay in the cache
_MOST_THREADS = 8
_MATRIX_LIMIT = 5_000  # images up to which all pairs fit into one matrix (100 MB)
_FIT_STEPS = 30
_FIT_TOLERANCE = 1e-9


def leave_one_out(statistic: Resampled, groups: NDArray[np.intp]) -> Floats:
    """The statistic of all images, and without each group in turn.

    Args:
        statistic: From counts (B, N) to values (B,) or (B, K).
        groups: Number of each image's group, 0 to G - 1, (N,).

    Returns:
        Values, (1 + G,) or (1 + G, K), the whole first; NaN if there is none.
    """
    number = int(groups.max()) + 1
    step = max(1, _BLOCK // len(groups))
    left_out = np.arange(-1, number)

    def part(at: int) -> Floats:
        return statistic((groups != left_out[at : at + step, None]).astype(np.float64))

    # NumPy lets go of Python's lock; more threads would wait for memory, and take more of it.
    with ThreadPoolExecutor(min(usable_cores(), _MOST_THREADS)) as pool:
        return np.concatenate(list(pool.map(part, range(0, number + 1, step))))


def resampled_plcc(scores: ArrayLike, opinions: ArrayLike) -> Resampled:
    """Pearson's correlation of each part."""
    x, y = finite_vectors(scores=scores, opinions=opinions)

    def statistic(counts: Floats) -> Floats:
        return _weighted_pearson(x[None], y[None], counts)

    return statistic


def resampled_srcc(scores: ArrayLike, opinions: ArrayLike) -> Resampled:
    """Spearman's correlation of each part, with average ranks."""
    x, y = finite_vectors(scores=scores, opinions=opinions)
    rank_x, rank_y = _resampled_ranks(x), _resampled_ranks(y)

    def statistic(counts: Floats) -> Floats:
        return _weighted_pearson(rank_x(counts), rank_y(counts), counts)

    return statistic


def resampled_krcc(scores: ArrayLike, opinions: ArrayLike) -> Resampled:
    """Kendall's tau-b of each part; copies of one image are tied."""
    x, y = finite_vectors(scores=scores, opinions=opinions)
    return _krcc_by_matrix(x, y) if len(x) <= _MATRIX_LIMIT else _krcc_by_draw(x, y)


def resampled_fitted(scores: ArrayLike, opinions: ArrayLike, form: Form = "logistic4") -> Resampled:
    """Signed PLCC and RMSE after a logistic fit, fitted again in each part: (B, 2)."""
    x, y = finite_vectors(scores=scores, opinions=opinions)
    fit = fit_logistic(form, x, y)

    def statistic(counts: Floats) -> Floats:
        if fit.reason:
            return np.full((len(counts), 2), np.nan)
        fitted, rising = refit(fit, x, y, counts)
        correlation = np.where(rising, 1.0, -1.0) * _weighted_pearson(fitted, y[None], counts)
        error = np.sqrt(_ratio(_weighted_squares(fitted - y, counts), counts.sum(axis=1)))
        return np.stack([correlation, error], axis=1)

    return statistic


def resampled_d_test(scores: ArrayLike, pristine: ArrayLike, clusters: NDArray[np.intp]) -> Resampled:
    """D-test of each part, every content at the threshold that is best for the others.

    The threshold that is best for an image's own content flatters it, and one chosen again in every part follows the
    part: both make intervals that lie above the truth.

    Args:
        scores: Higher is better, (N,).
        pristine: True for pristine images, (N,).
        clusters: Number of each image's content, (N,).
    """
    q = finite_vector("scores", scores)
    clean = np.asarray(pristine, dtype=bool)
    above = np.empty(len(q))
    for cluster in np.unique(clusters):
        own = clusters == cluster
        others = ~own if clean[~own].any() and not clean[~own].all() else np.ones_like(own)
        above[own] = q[own] > d_threshold(q[others], clean[others])

    def statistic(counts: Floats) -> Floats:
        good, bad = counts * clean, counts * ~clean
        passed = _ratio(good @ above, good.sum(axis=1))
        return (passed + _ratio(bad @ (1 - above), bad.sum(axis=1))) / 2

    return statistic


def resampled_l_test(scores: ArrayLike, levels: ArrayLike, contents: ArrayLike, kinds: ArrayLike) -> Resampled:
    """L-test of each part, in which a content is taken whole or not at all."""
    ladders = ladder_correlations(scores, levels, contents, kinds)
    names, first = np.unique(np.asarray(contents), return_index=True)
    one_image = first[np.searchsorted(names, ladders.contents)]

    def statistic(counts: Floats) -> Floats:
        taken = counts[:, one_image]
        return _ratio(taken @ ladders.credited, taken.sum(axis=1))

    return statistic


def resampled_p_test(scores: ArrayLike, better: ArrayLike, worse: ArrayLike, clusters: NDArray[np.intp]) -> Resampled:
    """P-test of each part, in which a content is taken whole or not at all."""
    q = finite_vector("scores", scores)
    first, second = np.asarray(better, dtype=np.intp), np.asarray(worse, dtype=np.intp)
    names, one_image, cluster = np.unique(clusters, return_index=True, return_inverse=True)
    number = len(names)
    # Pairs between two contents live and go together: their counts are all that is needed of them.
    place = cluster[first] * number + cluster[second]
    correct = (q[first] > q[second]).astype(np.float64)
    right, total = (
        np.bincount(place, weights=weights, minlength=number**2).reshape(number, number)
        for weights in (correct, np.ones_like(correct))
    )

    def statistic(counts: Floats) -> Floats:
        taken = counts[:, one_image]
        return _ratio(np.einsum("bg,bg->b", taken @ right, taken), np.einsum("bg,bg->b", taken @ total, taken))

    return statistic


def refit(fit: LogisticFit, scores: Floats, opinions: Floats, counts: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Fit the curve again in every part, starting from the fit to all images.

    Levenberg-Marquardt on all parts together. A part differs little from the whole, so a few steps
    reach its optimum; one that leads elsewhere is not looked for.

    Args:
        scores: Scores, (N,).
        opinions: Opinions, (N,).
        counts: How often each image was drawn, (B, N).

    Returns:
        Fitted opinions (B, N) and whether each curve rises (B,).
    """
    # Standard scores on both axes make one tolerance and one damping fit every scale.
    z = (scores - scores.mean()) / scores.std()
    y = (opinions - opinions.mean()) / opinions.std()
    curve = CURVES[fit.form]
    parameters = np.tile(_standardised(fit, scores, opinions), (len(counts), 1))
    damping = np.full(len(counts), 1e-3)
    values, gradient = curve.with_gradient(z, parameters)
    residual = y - values
    error = _weighted_squares(residual, counts)
    active, weights = np.arange(len(counts)), counts
    for _ in range(_FIT_STEPS):
        trial = parameters[active] + _step(gradient, residual, weights, damping)
        values, trial_gradient = curve.with_gradient(z, trial)
        trial_residual = y - values
        trial_error = _weighted_squares(trial_residual, weights)
        better = trial_error < error
        gain = np.where(better, error - trial_error, 0.0)
        parameters[active[better]] = trial[better]
        # A part is done when a step gains nothing worth counting, or when even tiny steps gain nothing.
        left = ~((better & (gain <= _FIT_TOLERANCE * error)) | (~better & (damping > 1e6)))
        if not left.any():
            break
        error = np.where(better, trial_error, error)[left]
        damping = np.where(better, damping * 0.1, damping * 10)[left]
        active, weights = active[left], weights[left]
        residual, *gradient = (
            _accepted(old, new, better, left)
            for old, new in zip([residual, *gradient], [trial_residual, *trial_gradient], strict=True)
        )
    fitted = curve.function(z, parameters)
    ends = curve.function(np.array([z.min(), z.max()]), parameters)
    return fitted * opinions.std() + opinions.mean(), ends[:, 1] >= ends[:, 0]


def _standardised(fit: LogisticFit, scores: Floats, opinions: Floats) -> Floats:
    mean, std = opinions.mean(), opinions.std()
    if fit.form == "logistic4":
        b1, b2, b3, b4 = fit.parameters
        x_mean, x_std = scores.mean(), scores.std()
        return np.array([(b1 - mean) / std, (b2 - mean) / std, (b3 - x_mean) / x_std, b4 / x_std])
    b1, b2, b3, b4, b5 = fit.parameters
    return np.array([b1 / std, b2, b3, b4 / std, (b5 - mean) / std])


def _weighted_squares(residual: Floats, counts: Floats) -> Floats:
    return np.einsum("bn,bn->b", counts * residual, residual)


def _accepted(old: Floats, new: Floats, better: NDArray[np.bool_], left: NDArray[np.bool_]) -> Floats:
    """Rows that are still searched for, each from the step where that was better."""
    rows = new if better[left].all() else np.where(better[:, None], new, old)
    return rows if left.all() else rows[left]


def _step(gradient: list[Floats], residual: Floats, counts: Floats, damping: Floats) -> Floats:
    """One damped Gauss-Newton step for every part, (B, P)."""
    size = len(gradient)
    normal = np.empty((len(counts), size, size))
    target = np.empty((len(counts), size, 1))
    for i, column in enumerate(gradient):
        weighted = counts * column
        target[:, i, 0] = np.einsum("bn,bn->b", weighted, residual)
        for j in range(i, size):
            normal[:, i, j] = normal[:, j, i] = np.einsum("bn,bn->b", weighted, gradient[j])
    diagonal = np.einsum("bii->bi", normal)
    # The tiny floor keeps a parameter without any influence from making the system singular.
    diagonal += damping[:, None] * diagonal + 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300
    return np.asarray(np.linalg.solve(normal, target)[..., 0], dtype=np.float64)


def _ratio(top: Floats, bottom: Floats) -> Floats:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _weighted_pearson(x: Floats, y: Floats, counts: Floats) -> Floats:
    """Correlation of each part; x and y are (1, N) or (B, N)."""
    total = counts.sum(axis=1, keepdims=True)
    deviations = []
    for values in (x, y):
        # Centring by a common value first keeps the digits of scores far from zero.
        near = values - values.mean()
        deviations.append(near - (counts * near).sum(axis=1, keepdims=True) / total)
    dx, dy = deviations
    xx, yy, xy = (np.einsum("bn,bn,bn->b", counts, a, b) for a, b in ((dx, dx), (dy, dy), (dx, dy)))
    varied = np.array([_varied(values, counts) for values in (x, y)]).all(axis=0)
    enough = total[:, 0] >= MIN_IMAGES
    root = np.where(varied & enough, np.sqrt(xx * yy), 0.0)
    return np.clip(_ratio(xy, root), -1.0, 1.0)


def _varied(values: Floats, counts: Floats) -> NDArray[np.bool_]:
    drawn = counts > 0
    first = np.broadcast_to(values, counts.shape)[np.arange(len(counts)), drawn.argmax(axis=1)]
    return np.asarray(((values != first[:, None]) & drawn).any(axis=1))


def _tie_groups(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Sorting order (N,), where each run of equal values starts in it (G,), and each image's run (N,)."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    group = np.empty(len(values), dtype=np.intp)
    group[order] = inverse
    return order, starts, group


def _resampled_ranks(values: Floats) -> Callable[[Floats], Floats]:
    order, starts, group = _tie_groups(values)
    ties = len(starts) < len(values)

    def ranks(counts: Floats) -> Floats:
        tied = np.add.reduceat(counts[:, order], starts, axis=1) if ties else counts[:, order]
        return (np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, group]

    return ranks


def _tied_pairs(values: Floats) -> Callable[[Floats], Floats]:
    order, starts, _ = _tie_groups(values)

    def pairs(counts: Floats) -> Floats:
        tied = np.add.reduceat(counts[:, order], starts, axis=1)
        return (tied * (tied - 1) / 2).sum(axis=1)

    return pairs


def _krcc_by_matrix(x: Floats, y: Floats) -> Resampled:
    # Entries -1, 0, 1 and counts that sum to N <= 5000 stay exact in single precision.
    concordance = np.empty((len(x), len(x)), dtype=np.float32)
    for row in range(len(x)):
        concordance[row] = np.sign(x[row] - x) * np.sign(y[row] - y)
    tied_x, tied_y = _tied_pairs(x), _tied_pairs(y)

    def statistic(counts: Floats) -> Floats:
        products = (counts.astype(np.float32) @ concordance).astype(np.float64)
        excess = np.einsum("bn,bn->b", products, counts) / 2
        total = counts.sum(axis=1)
        pairs = total * (total - 1) / 2
        bottom = np.sqrt((pairs - tied_x(counts)) * (pairs - tied_y(counts)))
        return np.where(total >= MIN_IMAGES, _ratio(excess, bottom), np.nan)

    return statistic


def _krcc_by_draw(x: Floats, y: Floats) -> Resampled:
    def one(count: Floats) -> float:
        drawn = np.repeat(np.arange(len(x)), count.astype(np.intp))
        if len(drawn) < MIN_IMAGES or not np.ptp(x[drawn]) or not np.ptp(y[drawn]):
            return float("nan")
        return float(stats.kendalltau(x[drawn], y[drawn], variant="b").statistic)

    def statistic(counts: Floats) -> Floats:
        return np.array([one(count) for count in counts])

    return statistic
