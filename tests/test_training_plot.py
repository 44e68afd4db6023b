"""The moving mean of ``training.png``."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest

from qualiclip_plugin.training.training_plot import _smooth


@pytest.mark.parametrize("count", [0, 1, 9, 200])
def test_smooth_is_the_mean_over_the_last_tenth(count: int) -> None:
    values = np.random.default_rng(0).normal(size=count).tolist()
    length = max(1, round(0.1 * count))
    expected = [np.mean(values[max(0, i + 1 - length) : i + 1]) for i in range(count)]
    assert _smooth(values) == pytest.approx(expected)


def test_a_missing_value_leaves_its_windows_empty_and_no_other() -> None:
    values = [1.0] * 40
    values[10] = math.nan
    assert np.flatnonzero(np.isnan(_smooth(values))).tolist() == [10, 11, 12, 13]


def test_smooth_needs_memory_of_the_length_of_the_run() -> None:
    values = [1.0] * 5000
    tracemalloc.start()
    _smooth(values)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100 * 8 * len(values)
