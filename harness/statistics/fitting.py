"""Monotonic logistic maps from scores to opinions, as the field reports PLCC and RMSE.

Four parameters: VQEG (2003), as in ITU-T P.1401. Five parameters: Sheikh, Sabir, Bovik,
"A Statistical Evaluation of Recent Full Reference Image Quality Assessment Algorithms", IEEE TIP 2006.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import least_squares
from scipy.special import expit

from harness.statistics.correlation import plcc, rmse
from qualiclip_plugin.utils.statistics import (
    Estimate,
    Floats,
    finite_vector,
    finite_vectors,
    undefined,
    why_undefined,
)

Form = Literal["logistic4", "logistic5"]


def logistic4(scores: Floats, parameters: Floats) -> Floats:
    """(b1 - b2) / (1 + exp(-(s - b3) / |b4|)) + b2.

    Args:
        scores: Scores, (N,).
        parameters: b1, b2, b3, b4, (4,) or one row per curve (B, 4).

    Returns:
        Values on the opinion scale, (N,) or (B, N).
    """
    b1, b2, b3, b4 = _columns(parameters)
    return (b1 - b2) * expit((scores - b3) / np.abs(b4)) + b2


def logistic4_with_gradient(scores: Floats, parameters: Floats) -> tuple[Floats, list[Floats]]:
    """:func:`logistic4` and its derivatives by each parameter: four arrays of shape (N,) or (B, N)."""
    b1, b2, b3, b4 = _columns(parameters)
    shifted = scores - b3
    rise = expit(shifted / np.abs(b4))
    fall = 1 - rise
    slope = rise * fall * ((b2 - b1) / np.abs(b4))
    return (b1 - b2) * rise + b2, [rise, fall, slope, slope * shifted / b4]


def logistic5(scores: Floats, parameters: Floats) -> Floats:
    """b1 (1/2 - 1 / (1 + exp(b2 (z - b3)))) + b4 z + b5 of z-scored scores; b1 to b5, else as :func:`logistic4`."""
    b1, b2, b3, b4, b5 = _columns(parameters)
    return b1 * (expit(b2 * (scores - b3)) - 0.5) + b4 * scores + b5


def logistic5_with_gradient(scores: Floats, parameters: Floats) -> tuple[Floats, list[Floats]]:
    """:func:`logistic5` and its derivatives by each parameter: five arrays of shape (N,) or (B, N)."""
    b1, b2, b3, b4, b5 = _columns(parameters)
    shifted = scores - b3
    rise = expit(b2 * shifted)
    slope = b1 * rise * (1 - rise)
    like = np.ones_like(rise)
    centred = rise - 0.5
    return b1 * centred + b4 * scores + b5, [centred, slope * shifted, -slope * b2, scores * like, like]


def _columns(parameters: Floats) -> Floats:
    # (P,) -> P columns of shape (1,); (B, P) -> P columns of shape (B, 1): both broadcast with (N,).
    return np.asarray(parameters).T[..., None]


class Curve(NamedTuple):
    """A function of scores and parameters, and the same with its derivatives."""

    function: Callable[[Floats, Floats], Floats]
    with_gradient: Callable[[Floats, Floats], tuple[Floats, list[Floats]]]


CURVES: Mapping[Form, Curve] = {
    "logistic4": Curve(logistic4, logistic4_with_gradient),
    "logistic5": Curve(logistic5, logistic5_with_gradient),
}


@dataclass(frozen=True)
class LogisticFit:
    """A fitted map from scores to opinions.

    Attributes:
        parameters: b1..b4 in units of score and opinion, or b1..b5 for z-scored scores; empty if undefined.
        centre: Subtracted from the scores before the function is applied (0 for four parameters).
        spread: The scores are divided by it (1 for four parameters).
        rising: Whether the curve ends higher than it starts over the fitted scores.
        converged: Whether the optimiser met its tolerance.
        reason: Why there is no fit; empty if there is one.
    """

    form: Form
    parameters: tuple[float, ...]
    centre: float = 0.0
    spread: float = 1.0
    rising: bool = True
    converged: bool = True
    reason: str = ""

    def apply(self, scores: ArrayLike) -> Floats:
        """Map scores (N,) to the opinion scale (N,); all NaN if there is no fit."""
        s = finite_vector("scores", scores)
        if self.reason:
            return np.full(s.shape, np.nan)
        z = (s - self.centre) / self.spread
        return CURVES[self.form].function(z, np.asarray(self.parameters))


def fit_logistic(form: Form, scores: ArrayLike, opinions: ArrayLike) -> LogisticFit:
    """Least-squares fit of a curve, :func:`logistic4` or :func:`logistic5`.

    The search runs on z-scored scores, so that it does not depend on their scale, from several starts: the
    field's [max y, min y, mean s, std(s) / 4] for four parameters, an S-curve [ptp y, 1, 0, 0, mean y] for five,
    whose usual starts on raw scores often end in no fit, and the best of a grid, see :func:`grid_starts`.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).

    Returns:
        The fit with the least squared error; undefined for fewer images than parameters or a constant array.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    s, y = finite_vectors(scores=scores, opinions=opinions)
    if reason := _why_no_fit(s, y, parameters=4 if form == "logistic4" else 5):
        return LogisticFit(form, (), reason=reason)
    mean, std = float(s.mean()), float(s.std())
    z = (s - mean) / std
    if form == "logistic4":
        (b1, b2, b3, b4), converged = _best(form, z, y, np.array([y.max(), y.min(), 0.0, 0.25]))
        parameters = (float(b1), float(b2), mean + std * float(b3), std * float(np.abs(b4)))
        return LogisticFit(form, parameters, rising=bool(b1 >= b2), converged=converged)
    best, converged = _best(form, z, y, np.array([np.ptp(y), 1.0, 0.0, 0.0, y.mean()]))
    ends = logistic5(np.array([z.min(), z.max()]), best)
    return LogisticFit(form, tuple(map(float, best)), mean, std, bool(ends[1] >= ends[0]), converged)


_CENTRES = np.linspace(-3.0, 3.0, 25)
_SLOPES = np.array([0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 64.0])
_GRID_STARTS = 4
_GRID_VALUES = 2**24
"""Values of the curves of the grid that are made at once, 128 MB."""


def grid_starts(form: Form, scores: Floats, opinions: Floats) -> list[Floats]:
    """The best curves of a grid of centres and slopes.

    With both given, the other parameters are the solution of a linear least-squares problem (Golub and Pereyra,
    variable projection, 1973), so that every point of the grid is judged by the best curve through it.

    Args:
        scores: Z-scored scores, (N,).
        opinions: Opinions, (N,).

    Returns:
        At most four starts, each with the parameters of the curve: the best of every valley, the deepest first.
    """
    centres, slopes = (grid.ravel() for grid in np.meshgrid(_CENTRES, _SLOPES))
    like = np.ones_like(scores)
    others = np.stack([like, scores] if form == "logistic5" else [like], axis=1)
    basis, _ = np.linalg.qr(others)
    left = opinions - basis @ (basis.T @ opinions)

    def gain(some: slice) -> Floats:
        rises = expit(slopes[some, None] * (scores - centres[some, None]))
        free = rises - (rises @ basis) @ basis.T
        size = np.einsum("cn,cn->c", free, free)
        return np.divide(np.square(free @ left), size, out=np.zeros_like(size), where=size > 1e-9 * len(scores))

    step = max(1, _GRID_VALUES // len(scores))
    gains = np.concatenate([gain(slice(at, at + step)) for at in range(0, len(centres), step)])
    starts = []
    for place in _peaks(gains.reshape(len(_SLOPES), len(_CENTRES))):
        centre, slope = centres[place], slopes[place]
        columns = np.column_stack([expit(slope * (scores - centre)), others])
        height, base, *line = np.linalg.lstsq(columns, opinions, rcond=None)[0]
        starts.append(
            np.array([height, slope, centre, *line, base + height / 2])
            if form == "logistic5"
            else np.array([height + base, base, centre, 1 / slope])
        )
    return starts


def plcc_fitted(scores: ArrayLike, opinions: ArrayLike, fit: LogisticFit) -> Estimate:
    """Pearson's correlation of opinions with the fitted scores, with the sign of the fitted curve.

    A least-squares logistic follows a reversed scorer downhill, after which the plain correlation would
    be positive: a hidden absolute value. So the result is negative if the curve falls.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        fit: From :func:`fit_logistic`.

    Returns:
        Value in [-1, 1]; undefined if the fit is, or where the fitted curve is flat.

    Raises:
        StatisticsError: NaN, infinite values or different lengths.
    """
    if fit.reason:
        return undefined(fit.reason)
    value, reason = plcc(fit.apply(scores), opinions)
    if reason:
        return undefined(f"after the fit {reason}")
    return Estimate(value if fit.rising else -value)


def rmse_fitted(scores: ArrayLike, opinions: ArrayLike, fit: LogisticFit) -> Estimate:
    """Root mean squared error of the fitted scores, >= 0, in units of the opinions; else as :func:`plcc_fitted`."""
    if fit.reason:
        return undefined(fit.reason)
    return rmse(fit.apply(scores), opinions)


def _why_no_fit(s: Floats, y: Floats, parameters: int) -> str:
    if len(s) < parameters:
        return f"{len(s)} images, {parameters} needed for {parameters} parameters"
    return why_undefined(scores=s, opinions=y)


# The five-parameter error has a long shallow valley towards a step that follows single images: a tighter
# tolerance would crawl along it for tens of thousands of evaluations.
_TOLERANCE: Mapping[Form, float] = {"logistic4": 1e-8, "logistic5": 1e-6}


def _peaks(gain: Floats) -> list[int]:
    """The best slope of every centre that does better than its neighbours, as flat indices, highest first."""
    best = gain.max(axis=0)
    walled = np.r_[-np.inf, best, -np.inf]
    peaks = np.flatnonzero((best >= walled[:-2]) & (best > walled[2:]))
    chosen = peaks[np.argsort(-best[peaks], kind="stable")][:_GRID_STARTS]
    return [int(gain[:, centre].argmax()) * gain.shape[1] + int(centre) for centre in chosen]


_FIRST_STEPS = 30


def _best(form: Form, z: Floats, y: Floats, usual: Floats) -> tuple[Floats, bool]:
    # Every start gets a few steps, and the best of them as many as it takes.
    tried = [_least_squares(form, z, y, start, _FIRST_STEPS) for start in (usual, *grid_starts(form, z, y))]
    ahead, done = min(tried, key=lambda fit: float(np.square(CURVES[form].function(z, fit[0]) - y).sum()))
    return (ahead, done) if done else _least_squares(form, z, y, ahead, 20_000)


def _least_squares(form: Form, s: Floats, y: Floats, start: Floats, evaluations: int) -> tuple[Floats, bool]:
    # Opinions are scaled to a unit span so that the tolerances mean the same on 1..5 and on 0..100.
    span = float(np.ptp(y))
    curve = CURVES[form]

    def residuals(parameters: Floats) -> Floats:
        return (curve.function(s, parameters) - y) / span

    def jacobian(parameters: Floats) -> Floats:
        return np.stack(curve.with_gradient(s, parameters)[1], axis=1) / span

    result = least_squares(
        residuals, start, jac=jacobian, method="lm", x_scale="jac", ftol=_TOLERANCE[form], max_nfev=evaluations
    )
    return result.x, bool(result.success)
