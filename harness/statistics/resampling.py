"""Every statistic under thousands of resamples at once.

A bootstrap draw is a row of counts: how often each image was drawn. Statistics of the resample are then
weighted statistics of the original images, computed for many rows together, without gathering or sorting.
Shapes: B draws, N images.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.statistics.checks import (
    MIN_IMAGES,
    Floats,
    StatisticsError,
    finite_vector,
    finite_vectors,
    group_indices,
)
from harness.statistics.fitting import CURVES, Form, LogisticFit, fit_logistic

Statistic = Callable[[Floats], Floats]
"""Counts (B, N) -> the statistic of each draw (B,), or several (B, K); NaN where it is undefined."""

_BLOCK = 200_000  # counts handled at once: arrays of this size stay in the cache
_MATRIX_LIMIT = 5_000  # images up to which all pairs fit into one matrix (100 MB)
_FIT_STEPS = 30
_FIT_TOLERANCE = 1e-9


def bootstrap_draws(
    statistic: Statistic,
    images: int,
    *,
    clusters: ArrayLike | None = None,
    draws: int = 2000,
    seed: int = 0,
) -> Floats:
    """The statistic of resamples drawn with replacement, whole clusters at a time.

    Images of one reference content are not independent, so contents are drawn, not images (Field and
    Welsh, "Bootstrapping clustered data", JRSS B 2007).

    Args:
        statistic: From counts (B, N) to values (B,).
        images: N.
        clusters: Reference content of each image, (N,); None draws single images.
        draws: How many resamples.
        seed: Same seed, same draws, whatever the statistic: two scorers are compared on the same resamples.

    Returns:
        Values, (draws,) or (draws, K); NaN where a resample has no value.

    Raises:
        StatisticsError: Not one cluster per image, or ``draws`` below 1.
    """
    if draws < 1:
        raise StatisticsError(f"draws: {draws}, at least 1 needed")
    members = np.arange(images) if clusters is None else group_indices(clusters, "clusters", images)[1]
    number = int(members.max()) + 1 if images else 0
    generator = np.random.default_rng(seed)
    step = max(1, _BLOCK // max(images, 1))
    values = []
    for first in range(0, draws, step):
        size = min(step, draws - first)
        drawn = generator.multinomial(number, np.full(number, 1 / max(number, 1)), size=size)
        values.append(statistic(drawn[:, members].astype(np.float64)))
    return np.concatenate(values)


def resampled_mean(values: ArrayLike) -> Statistic:
    """Mean of ``values`` (N,) in each resample."""
    v = finite_vector("values", values)

    def statistic(counts: Floats) -> Floats:
        return _ratio(counts @ v, counts.sum(axis=1))

    return statistic


def resampled_plcc(scores: ArrayLike, opinions: ArrayLike) -> Statistic:
    """Pearson's correlation of each resample."""
    x, y = finite_vectors(scores=scores, opinions=opinions)

    def statistic(counts: Floats) -> Floats:
        return _weighted_pearson(x[None], y[None], counts)

    return statistic


def resampled_srcc(scores: ArrayLike, opinions: ArrayLike) -> Statistic:
    """Spearman's correlation of each resample, with average ranks over the repeated images."""
    x, y = finite_vectors(scores=scores, opinions=opinions)
    rank_x, rank_y = _resampled_ranks(x), _resampled_ranks(y)

    def statistic(counts: Floats) -> Floats:
        return _weighted_pearson(rank_x(counts), rank_y(counts), counts)

    return statistic


def resampled_krcc(scores: ArrayLike, opinions: ArrayLike) -> Statistic:
    """Kendall's tau-b of each resample; copies of one image are tied."""
    x, y = finite_vectors(scores=scores, opinions=opinions)
    return _krcc_by_matrix(x, y) if len(x) <= _MATRIX_LIMIT else _krcc_by_draw(x, y)


def resampled_fitted(scores: ArrayLike, opinions: ArrayLike, form: Form = "logistic4") -> Statistic:
    """Signed PLCC and RMSE after a logistic fit, fitted anew in each resample: (B, 2)."""
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


def resampled_d_test(scores: ArrayLike, pristine: ArrayLike) -> Statistic:
    """D-test of each resample, see :func:`harness.statistics.d_test`."""
    q = finite_vector("scores", scores)
    clean = np.asarray(pristine, dtype=bool)
    order, starts, _ = _tie_groups(q)

    def statistic(counts: Floats) -> Floats:
        ordered = counts[:, order]
        low_clean, low_bad = (
            np.cumsum(np.add.reduceat(ordered * chosen[order], starts, axis=1), axis=1) for chosen in (clean, ~clean)
        )
        above = 1 - _ratio(low_clean, low_clean[:, -1:])
        below = _ratio(low_bad, low_bad[:, -1:])
        return ((above + below) / 2).max(axis=1)

    return statistic


def resampled_p_test(scores: ArrayLike, better: ArrayLike, worse: ArrayLike) -> Statistic:
    """P-test of each resample; a pair counts once per pair of copies of its two images."""
    q = finite_vector("scores", scores)
    first, second = np.asarray(better, dtype=np.intp), np.asarray(worse, dtype=np.intp)
    correct = q[first] > q[second]
    if len(q) > _MATRIX_LIMIT:

        def gathered(counts: Floats) -> Floats:
            weights = counts[:, first] * counts[:, second]
            return _ratio(weights @ correct.astype(np.float64), weights.sum(axis=1))

        return gathered
    pairs = np.zeros((2, len(q), len(q)), dtype=np.float32)
    pairs[0, first, second], pairs[1, first, second] = 1, correct

    def statistic(counts: Floats) -> Floats:
        # Whole numbers below 2^24 stay exact in single precision; the sums over images are made in double.
        single = counts.astype(np.float32)
        total, right = (np.einsum("bn,bn->b", (single @ matrix).astype(np.float64), counts) for matrix in pairs)
        return _ratio(right, total)

    return statistic


def refit(fit: LogisticFit, scores: Floats, opinions: Floats, counts: Floats) -> tuple[Floats, NDArray[np.bool_]]:
    """Fit the curve again in every resample, starting from the fit to all images.

    Levenberg-Marquardt on all resamples together. A resample differs little from the whole, so a few steps
    reach its optimum; one that leads elsewhere is not looked for.

    Args:
        fit: Fit to all images.
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
        # A draw is done when a step gains nothing worth counting, or when even tiny steps gain nothing.
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
    """One damped Gauss-Newton step for every draw, (B, P)."""
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
    """Correlation of each draw; x and y are (1, N) or (B, N)."""
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
    low = np.where(drawn, values, np.inf).min(axis=1)
    return np.where(drawn, values, -np.inf).max(axis=1) > low


def _tie_groups(values: Floats) -> tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.intp]]:
    """Sorting order (N,), where each run of equal values starts in it (G,), and each image's run (N,)."""
    order = np.argsort(values, kind="stable")
    _, starts, inverse = np.unique(values[order], return_index=True, return_inverse=True)
    group = np.empty(len(values), dtype=np.intp)
    group[order] = inverse
    return order, starts, group


def _resampled_ranks(values: Floats) -> Callable[[Floats], Floats]:
    order, starts, group = _tie_groups(values)

    def ranks(counts: Floats) -> Floats:
        tied = np.add.reduceat(counts[:, order], starts, axis=1)
        return (np.cumsum(tied, axis=1) - (tied - 1) / 2)[:, group]

    return ranks


def _tied_pairs(values: Floats) -> Callable[[Floats], Floats]:
    order, starts, _ = _tie_groups(values)

    def pairs(counts: Floats) -> Floats:
        tied = np.add.reduceat(counts[:, order], starts, axis=1)
        return (tied * (tied - 1) / 2).sum(axis=1)

    return pairs


def _krcc_by_matrix(x: Floats, y: Floats) -> Statistic:
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


def _krcc_by_draw(x: Floats, y: Floats) -> Statistic:
    def one(count: Floats) -> float:
        drawn = np.repeat(np.arange(len(x)), count.astype(np.intp))
        if len(drawn) < MIN_IMAGES or not np.ptp(x[drawn]) or not np.ptp(y[drawn]):
            return float("nan")
        return float(stats.kendalltau(x[drawn], y[drawn], variant="b").statistic)

    def statistic(counts: Floats) -> Floats:
        return np.array([one(count) for count in counts])

    return statistic
