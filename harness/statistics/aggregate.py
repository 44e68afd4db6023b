"""Means and win rates over datasets, only over complete cells, on datasets that no compared scorer was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from qualiclip_plugin.utils.statistics import Estimate, Floats, StatisticsError, undefined


@dataclass(frozen=True)
class Cells:
    """One statistic for every scorer on every dataset, higher is better.

    Attributes:
        values: (S, D); NaN if undefined or never run.
        complete: All images of the dataset have a score, (S, D).
        seen: The scorer was trained on the dataset, (S, D).
        sizes: Images per dataset, (D,), each > 0.
        scorers: Names, (S,).
        datasets: Names, (D,).

    Raises:
        StatisticsError: Shapes that do not fit each other, or a size that is not positive.
    """

    values: Floats
    complete: NDArray[np.bool_]
    seen: NDArray[np.bool_]
    sizes: Floats
    scorers: Sequence[str]
    datasets: Sequence[str]

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


@dataclass(frozen=True)
class Standing:
    """How a scorer stands among those that it is compared with, over several datasets.

    Attributes:
        mean: Mean over ``sets``.
        weighted: The same, each set weighted by its number of images.
        wins: Mean over the other scorers of the share of sets, seen by neither, on which this one has the higher
            value, ties counting half, in [0, 1].
        sets: The datasets that no scorer of the comparison was trained on: the same for all.
    """

    mean: Estimate
    weighted: Estimate
    wins: Estimate
    sets: tuple[str, ...]


def standings(table: Cells) -> dict[str, Standing]:
    """Compare the scorers of a table over its datasets.

    A mean over fewer or other datasets than another scorer's has no meaning: two scorers that are equal everywhere
    would differ. So means are over the sets that none of them was trained on, and one missing or incomplete value
    leaves a scorer without a mean. Win rates use, for each two scorers, the sets that both have and neither saw.

    Args:
        table: The cells of the scorers that are compared, and no others.

    Returns:
        Scorer to its standing; what does not exist is undefined with its reason.
    """
    common = np.asarray(~table.seen.any(axis=0), dtype=bool)
    sets = tuple(name for name, kept in zip(table.datasets, common, strict=True) if kept)
    return {
        name: Standing(*_means(table, row, common), _wins(table, row), sets) for row, name in enumerate(table.scorers)
    }


def _means(table: Cells, row: int, common: NDArray[np.bool_]) -> tuple[Estimate, Estimate]:
    if not common.any():
        nothing = undefined("every dataset was seen in training by one of the scorers that are compared")
        return nothing, nothing
    lacking = [table.datasets[column] for column in np.flatnonzero(common & ~table.usable[row]).tolist()]
    if lacking:
        nothing = undefined(f"no complete value on {', '.join(lacking)}")
        return nothing, nothing
    values, sizes = table.values[row][common], table.sizes[common]
    return Estimate(float(values.mean())), Estimate(float(np.average(values, weights=sizes)))


def _wins(table: Cells, row: int) -> Estimate:
    rates = []
    for other in range(len(table.scorers)):
        shared = table.usable[row] & table.usable[other]
        if other != row and shared.any():
            ahead = np.sign(table.values[row][shared] - table.values[other][shared])
            rates.append(float((ahead + 1).mean() / 2))
    return Estimate(float(np.mean(rates))) if rates else undefined("no set in common with another scorer")
