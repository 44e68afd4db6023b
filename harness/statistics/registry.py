"""Every statistic of the leaderboard, one record each; a new one is one more record.

A record holds everything that figures, intervals, comparisons, tables and the report need.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from harness.statistics.correlation import krcc, plcc
from harness.statistics.fitting import Form, fit_logistic, plcc_fitted, rmse_fitted
from harness.statistics.pairs import discriminable_pairs, p_test
from harness.statistics.resampling import (
    Resampled,
    resampled_d_test,
    resampled_fitted,
    resampled_krcc,
    resampled_l_test,
    resampled_p_test,
    resampled_plcc,
    resampled_srcc,
)
from qualiclip_plugin.utils.statistics import (
    MIN_IMAGES,
    Estimate,
    Floats,
    StatisticsError,
    d_test,
    finite_vectors,
    l_test,
    srcc,
    undefined,
)

NO_OPINION = "no human scores"
NO_LEVEL = "no distortion levels that stand for severity"
NO_LADDER = f"no ladder of {MIN_IMAGES} distortion levels"
NO_FULL_REFERENCE = "no full-reference qualities"

MAX_GROUPS = 400
"""Contents beyond this number are put together at random, so that no statistic is made ten thousand times."""


@dataclass(frozen=True)
class Images:
    """Facts about some images beside their scores; all arrays have the same order.

    Attributes:
        opinions: Higher is better, (N,); NaN if there are none.
        contents: Which photograph each comes from, text (N,); empty: unknown, and then an image stands for itself.
        kinds: Distortion type, text (N,); empty for none.
        levels: Severity, 0 pristine, (N,); NaN if there is none.
        qualities: Full-reference qualities, higher is better, (R, N); NaN if there are none.
        margins: By how much each of them must differ before a pair counts as discriminable, (R,).
    """

    opinions: Floats
    contents: NDArray[np.str_]
    kinds: NDArray[np.str_]
    levels: Floats
    qualities: Floats
    margins: tuple[float, ...] = ()
    form: Form = "logistic4"

    def __len__(self) -> int:
        return len(self.opinions)

    @cached_property
    def clusters(self) -> NDArray[np.intp]:
        """Number of each image's content, 0 to G - 1, (N,)."""
        named = self.contents != ""
        alone = np.flatnonzero(~named)
        # Those that stand for themselves come first, in the order of their positions as text: 0, 1, 10, 100, 11, ...
        digits = np.searchsorted(10 ** np.arange(1, 19), alone, side="right") + 1
        found = np.empty(len(self), dtype=np.intp)
        found[alone[np.lexsort((digits, alone * 10 ** (digits.max(initial=1) - digits)))]] = np.arange(len(alone))
        found[named] = len(alone) + np.unique(self.contents[named], return_inverse=True)[1]
        return found

    @cached_property
    def groups(self) -> NDArray[np.intp]:
        """What intervals and tests leave out at a time, 0 to G - 1, (N,): a content, or several of very many."""
        number = int(self.clusters.max()) + 1 if len(self) else 0
        if number <= MAX_GROUPS:
            return self.clusters
        shuffled = np.random.default_rng(0).permutation(number)
        return np.asarray((shuffled * MAX_GROUPS // number)[self.clusters], dtype=np.intp)

    @property
    def independent(self) -> bool:
        """Whether no two images share a content, as far as that is known."""
        return len(self) == 0 or int(self.clusters.max()) + 1 == len(self)

    @cached_property
    def in_ladder(self) -> NDArray[np.bool_]:
        """Which images belong to a ladder (one content, one type) of at least three levels, (N,)."""
        return whole_ladders(self.levels, self.contents, self.kinds)

    @cached_property
    def pairs(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        """Better and worse image of every discriminable pair, (M,) each."""
        return discriminable_pairs(self.qualities, self.margins)

    def part(self, chosen: NDArray[np.bool_]) -> Images:
        """The chosen images."""
        kept = {name: getattr(self, name)[chosen] for name in ("opinions", "contents", "kinds", "levels")}
        return replace(self, **kept, qualities=self.qualities[:, chosen])


def whole_ladders(levels: Floats, contents: NDArray[np.str_], kinds: NDArray[np.str_]) -> NDArray[np.bool_]:
    """Which images belong to a ladder of at least three levels above 0, (N,)."""
    place = np.flatnonzero((levels > 0) & (kinds != "") & (contents != ""))
    names = np.char.add(np.char.add(contents[place], "\0"), kinds[place])
    _, ladder = np.unique(names, return_inverse=True)
    steps = np.unique(np.column_stack([ladder, levels[place]]), axis=0)[:, 0].astype(np.intp)
    found = np.zeros(len(levels), dtype=bool)
    found[place] = np.bincount(steps, minlength=1)[ladder] >= MIN_IMAGES
    return found


def rated(opinions: ArrayLike, contents: ArrayLike | None = None, *, form: Form = "logistic4") -> Images:
    """Images of which nothing but opinions, and perhaps contents, is known.

    Args:
        opinions: Higher is better, (N,).
        contents: Which photograph each comes from, (N,); none: images are independent.

    Raises:
        StatisticsError: NaN or infinite opinions, or another number of contents.
    """
    (y,) = finite_vectors(opinions=opinions)
    names = np.full(len(y), "") if contents is None else np.asarray(contents).astype(str)
    if names.shape != y.shape:
        raise StatisticsError(f"contents: expected {len(y)} labels, got shape {names.shape}")
    nothing = np.full(len(y), np.nan)
    return Images(y, names, np.full(len(y), ""), nothing, np.empty((0, len(y))), form=form)


Estimator = Callable[[Floats, Images], Estimate]
Parts = Callable[[Floats, Images], Resampled]
Needs = Callable[[Images], "NDArray[np.bool_] | str"]


@dataclass(frozen=True)
class Statistic:
    """One statistic of a scorer on a dataset.

    Attributes:
        needs: The images that it is made from, as a mask (N,); or why there are none.
        estimate: From scores, higher is better (N,), and images.
        resampled: The same on many parts of the images at once.
        column: Which of several values that ``resampled`` gives.
        range: Lowest and highest possible value.
        bounded: Its interval is made on Fisher's z, with the range as the ends: near an end its spread is not even.
        flattered: The estimate lies above the truth, by what ``resampled`` lies below: its interval spans both.
        lower_better: An error.
        headline: Its interval stands in tables.
    """

    key: str
    title: str
    meaning: str
    needs: Needs
    estimate: Estimator
    resampled: Parts
    column: int = 0
    range: tuple[float, float] = (-1.0, 1.0)
    bounded: bool = False
    flattered: bool = False
    lower_better: bool = False
    digits: int = 4
    headline: bool = False

    @property
    def sign(self) -> float:
        """-1 for an error, 1 otherwise: what turns a difference so that positive favours the first scorer."""
        return -1.0 if self.lower_better else 1.0


def _rated(images: Images) -> NDArray[np.bool_] | str:
    return np.ones(len(images), bool) if len(images) and np.isfinite(images.opinions).all() else NO_OPINION


def _levelled(images: Images) -> NDArray[np.bool_] | str:
    known = np.isfinite(images.levels)
    return known if known.any() and ((images.levels > 0).any() or known.all()) else NO_LEVEL


def _laddered(images: Images) -> NDArray[np.bool_] | str:
    if images.in_ladder.any():
        return images.in_ladder
    return NO_LADDER if (images.levels > 0).any() else NO_LEVEL


def _compared(images: Images) -> NDArray[np.bool_] | str:
    known = np.asarray(np.isfinite(images.qualities).all(axis=0), dtype=bool)
    return known if len(images.margins) and known.any() else NO_FULL_REFERENCE


def _pristine(images: Images) -> NDArray[np.bool_]:
    return images.levels == 0


def _ladder(images: Images) -> tuple[Any, ...]:
    return images.levels, images.contents, images.kinds


def _of_fit(function: Callable[..., Estimate]) -> Estimator:
    return lambda scores, images: function(
        scores, images.opinions, fit_logistic(images.form, scores, images.opinions)
    )


def _fitted_parts(scores: Floats, images: Images) -> Resampled:
    return resampled_fitted(scores, images.opinions, images.form)


_RECORDS = (
    Statistic(
        "srcc",
        "SRCC",
        "Spearman's rank correlation of score and opinion: is the order the same? -1 to 1.",
        _rated,
        lambda scores, images: srcc(scores, images.opinions),
        lambda scores, images: resampled_srcc(scores, images.opinions),
        bounded=True,
        headline=True,
    ),
    Statistic(
        "krcc",
        "KRCC",
        "Kendall's tau-b of score and opinion: agreement over all pairs of images. -1 to 1.",
        _rated,
        lambda scores, images: krcc(scores, images.opinions),
        lambda scores, images: resampled_krcc(scores, images.opinions),
        bounded=True,
    ),
    Statistic(
        "plcc_raw",
        "PLCC raw",
        "Pearson's correlation of score and opinion as they are. -1 to 1.",
        _rated,
        lambda scores, images: plcc(scores, images.opinions),
        lambda scores, images: resampled_plcc(scores, images.opinions),
        bounded=True,
    ),
    Statistic(
        "plcc_fit",
        "PLCC fitted",
        "Pearson's correlation after a logistic curve was fitted from scores to opinions. -1 to 1.",
        _rated,
        _of_fit(plcc_fitted),
        _fitted_parts,
        bounded=True,
    ),
    Statistic(
        "rmse",
        "RMSE",
        "Root mean squared error after the fit, in units of the opinions; lower is better.",
        _rated,
        _of_fit(rmse_fitted),
        _fitted_parts,
        column=1,
        range=(0.0, np.inf),
        lower_better=True,
        digits=3,
    ),
    Statistic(
        "d_test",
        "D-test",
        "Can one threshold tell pristine from degraded images? 0.5 (no better than chance) to 1.",
        _levelled,
        lambda scores, images: d_test(scores, _pristine(images)),
        lambda scores, images: resampled_d_test(scores, _pristine(images), images.groups),
        range=(0.5, 1.0),
        flattered=True,
        headline=True,
    ),
    Statistic(
        "l_test",
        "L-test",
        "Mean rank correlation of score and severity within one photograph and one distortion. -1 to 1.",
        _laddered,
        lambda scores, images: l_test(scores, *_ladder(images)),
        lambda scores, images: resampled_l_test(scores, *_ladder(images)),
        bounded=True,
        headline=True,
    ),
    Statistic(
        "p_test",
        "P-test",
        "Share of image pairs that the scorer orders as PSNR, SSIM and GMSD agree they must be. 0 to 1.",
        _compared,
        lambda scores, images: p_test(scores, *images.pairs),
        lambda scores, images: resampled_p_test(scores, *images.pairs, images.groups),
        range=(0.0, 1.0),
        bounded=True,
        headline=True,
    ),
)

STATISTICS: Mapping[str, Statistic] = {record.key: record for record in _RECORDS}
"""All statistics by key, in the order of the tables."""


def find(key: str) -> Statistic:
    """The statistic of that key.

    Raises:
        StatisticsError: There is none.
    """
    if key not in STATISTICS:
        raise StatisticsError(f"statistic: {key!r} is none of {', '.join(STATISTICS)}")
    return STATISTICS[key]


def used(statistic: Statistic, scores: ArrayLike, images: Images) -> tuple[Floats, Images] | str:
    """Scores and images that a statistic is made from, or why there are none.

    Raises:
        StatisticsError: NaN or infinite scores, or another number of them than images.
    """
    q, _ = finite_vectors(scores=scores, images=np.zeros(len(images)))
    chosen = statistic.needs(images)
    if isinstance(chosen, str):
        return chosen
    return (q, images) if chosen.all() else (q[chosen], images.part(chosen))


def measure(key: str, scores: ArrayLike, images: Images) -> Estimate:
    """A statistic of some scores.

    Args:
        scores: Higher is better, (N,).
        images: What is known of the images, in the same order.

    Returns:
        The value, or NaN with the reason why there is none.

    Raises:
        StatisticsError: An unknown key, NaN or infinite scores, or another number of them than images.
    """
    statistic = find(key)
    found = used(statistic, scores, images)
    return undefined(found) if isinstance(found, str) else statistic.estimate(*found)
