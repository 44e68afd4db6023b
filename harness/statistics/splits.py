"""Medians over the test splits that a dataset prescribes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from qualiclip_plugin.utils.statistics import Estimate, Floats, StatisticsError, finite_vectors, group_indices, srcc


@dataclass(frozen=True)
class SplitSummary:
    """One statistic over several test splits.

    Attributes:
        median: Median over the splits; NaN if one of them is undefined.
        std: Standard deviation over the splits (n - 1); NaN for a single split.
        values: The statistic of each split, (S,).
        reason: Which split is undefined and why; empty if none is.
    """

    median: float
    std: float
    values: Floats
    reason: str = ""


def split_summary(
    scores: ArrayLike,
    opinions: ArrayLike,
    splits: Sequence[ArrayLike],
    statistic: Callable[[ArrayLike, ArrayLike], Estimate] = srcc,
) -> SplitSummary:
    """Median and spread of a statistic over test splits.

    Args:
        scores: Scores, higher is better, (N,).
        opinions: Opinions, higher is better, (N,).
        splits: Indices of the test images of each split.
        statistic: Scores and opinions to an estimate.

    Returns:
        The summary; the median is undefined as soon as one split is, never taken over the rest.

    Raises:
        StatisticsError: NaN, different lengths, no split or an index that is not there.
    """
    x, y = finite_vectors(scores=scores, opinions=opinions)
    chosen = [np.asarray(split, dtype=np.intp) for split in splits]
    if not chosen:
        raise StatisticsError("splits: none given")
    for number, split in enumerate(chosen):
        if split.size and (split.min() < 0 or split.max() >= len(x)):
            raise StatisticsError(f"split {number}: index outside 0..{len(x) - 1}")
    estimates = [statistic(x[split], y[split]) for split in chosen]
    values = np.array([estimate.value for estimate in estimates])
    for number, estimate in enumerate(estimates):
        if not estimate.defined:
            return SplitSummary(float("nan"), float("nan"), values, f"split {number}: {estimate.reason}")
    std = float(values.std(ddof=1)) if len(values) > 1 else float("nan")
    return SplitSummary(float(np.median(values)), std, values)


def content_splits(
    contents: ArrayLike, *, splits: int = 10, test_share: float = 0.2, seed: int = 0
) -> list[NDArray[np.intp]]:
    """Random test splits in which every reference content is wholly inside or wholly outside.

    Args:
        contents: Reference content of each image, (N,).
        test_share: Share of the contents in each test split, in (0, 1); at least one content.

    Returns:
        Sorted test indices of each split.

    Raises:
        StatisticsError: ``test_share`` outside (0, 1) or fewer than two contents.
    """
    names, members = group_indices(contents, "contents", len(np.asarray(contents)))
    if not 0 < test_share < 1 or len(names) < 2:
        raise StatisticsError(f"splits: share {test_share} of {len(names)} contents cannot be taken out")
    size = min(len(names) - 1, max(1, round(test_share * len(names))))
    generator = np.random.default_rng(seed)
    chosen = [generator.permutation(len(names))[:size] for _ in range(splits)]
    return [np.flatnonzero(np.isin(members, test)) for test in chosen]
