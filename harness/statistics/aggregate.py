"""Means and ranks over datasets, only over cells that are complete and that the scorer was not trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.statistics.checks import Estimate, Floats, StatisticsError, undefined


@dataclass(frozen=True)
class Cells:
    """One statistic for every scorer on every dataset, higher is better.

    Attributes:
        values: (S, D); NaN where undefined or never run.
        complete: All images of the dataset have a score, (S, D).
        seen: The scorer was trained on the dataset, (S, D).
        sizes: Images per dataset, (D,), each > 0.
        scorers: Names, (S,).
        datasets: Names, (D,).
    """

    values: Floats
    complete: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    sizes: Floats
    scorers: tuple[str, ...]
    datasets: tuple[str, ...]

    def __post_init__(self) -> None:
        shape = (len(self.scorers), len(self.datasets))
        for name in ("values", "complete", "seen"):
            if getattr(self, name).shape != shape:
                raise StatisticsError(f"{name}: shape {getattr(self, name).shape}, {shape} needed")
        if self.sizes.shape != shape[1:] or (self.sizes <= 0).any():
            raise StatisticsError(f"sizes: {shape[1]} positive numbers needed")

    @property
    def usable(self) -> NDArray[np.bool_]:
        """Cells that may enter a mean, (S, D)."""
        return self.complete & ~self.seen & ~np.isnan(self.values)

    @property
    def missing(self) -> NDArray[np.bool_]:
        """Cells whose absence forbids a mean: not seen in training, and yet not usable, (S, D)."""
        return ~self.seen & ~self.usable


def cells(
    values: ArrayLike,
    *,
    complete: ArrayLike,
    seen: ArrayLike,
    sizes: ArrayLike,
    scorers: Sequence[str],
    datasets: Sequence[str],
) -> Cells:
    """Build :class:`Cells` from anything like arrays.

    Raises:
        StatisticsError: Shapes that do not fit each other, or a size that is not positive.
    """
    return Cells(
        np.asarray(values, dtype=np.float64),
        np.asarray(complete, dtype=bool),
        np.asarray(seen, dtype=bool),
        np.asarray(sizes, dtype=np.float64),
        tuple(scorers),
        tuple(datasets),
    )


def mean_over_datasets(table: Cells, *, weighted: bool = False) -> dict[str, Estimate]:
    """Mean of each scorer over the datasets that it was not trained on.

    A mean over fewer datasets than another scorer's is no fair comparison, so one missing or incomplete
    cell leaves the scorer without a mean and names the dataset. Sets seen in training are left out.

    Args:
        table: The cells.
        weighted: Weight each dataset by its number of images.

    Returns:
        Scorer to mean.
    """
    weights = table.sizes if weighted else np.ones_like(table.sizes)
    return {
        name: reason if (reason := _why_no_mean(table, row)) else _mean(table, row, weights)
        for row, name in enumerate(table.scorers)
    }


def average_rank(table: Cells) -> dict[str, Estimate]:
    """Mean rank of each scorer over the datasets that it was not trained on; 1 is best, ties share.

    On a dataset only the scorers with a usable cell are ranked, so a set that many were trained on has
    fewer ranks.

    Args:
        table: The cells.

    Returns:
        Scorer to average rank, >= 1; undefined under the same rule as :func:`mean_over_datasets`.
    """
    usable = table.usable
    ranks = np.full(table.values.shape, np.nan)
    for column in range(len(table.datasets)):
        rows = np.flatnonzero(usable[:, column])
        ranks[rows, column] = stats.rankdata(-table.values[rows, column])
    return {
        name: reason if (reason := _why_no_mean(table, row)) else Estimate(float(ranks[row][usable[row]].mean()))
        for row, name in enumerate(table.scorers)
    }


def _mean(table: Cells, row: int, weights: Floats) -> Estimate:
    kept = table.usable[row]
    return Estimate(float(np.average(table.values[row][kept], weights=weights[kept])))


def _why_no_mean(table: Cells, row: int) -> Estimate | None:
    missing = [table.datasets[column] for column in np.flatnonzero(table.missing[row])]
    if missing:
        return undefined(f"no complete value on {', '.join(missing)}")
    return None if table.usable[row].any() else undefined("every dataset was seen in training")
