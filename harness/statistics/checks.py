"""What every statistic shares: checked arrays, one place for direction, and results that may be undefined."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qualiclip_plugin.utils.errors import QualiCLIPError

Floats = NDArray[np.float64]

MIN_IMAGES = 3
"""Fewest images for which a correlation says anything: two always correlate perfectly."""


class StatisticsError(QualiCLIPError, ValueError):
    """The arrays given to a statistic cannot be used (NaN, infinite, different lengths)."""


class Estimate(NamedTuple):
    """A number, or NaN and the reason why there is none.

    Attributes:
        value: The statistic; NaN where it is undefined.
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

    Every other function of this package expects arrays that went through here once, and never takes an
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
    """Why no correlation exists between checked vectors; empty where one does."""
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
        name: What the labels are, for the error.
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
