"""The moving mean of ``training.png``, and what it says of distortions that were not measured."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
from matplotlib.figure import Figure

from qualiclip_plugin.training.plot import _plot_kinds, _plot_losses, _smooth


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


@pytest.mark.parametrize(
    ("validation", "said"),
    [
        ([], ["no held-out photographs"]),
        ([{"step": "3", "srcc": "0.5"}], ["no held-out photographs"]),
        ([{"step": "3", "jpeg": "0.5"}], []),
    ],
    ids=["no validation", "scored images alone", "held-out photographs"],
)
def test_a_run_without_held_out_photographs_says_so(validation: list[dict[str, str]], said: list[str]) -> None:
    axes = Figure().add_subplot()
    _plot_kinds(axes, validation, "default")
    assert [text.get_text() for text in axes.texts if text.get_text().startswith("no ")] == said


def test_the_parts_that_are_drawn_add_up_to_the_loss() -> None:
    axes = Figure().add_subplot()
    parts = np.random.default_rng(0).random((30, 2))
    rows = [
        {"step": str(step), "loss": str(2 * a + 0.5 * b), "positive": str(a), "content": str(b)}
        for step, (a, b) in enumerate(parts)
    ]
    _plot_losses(axes, rows, {"positive": 2.0, "content": 0.5, "negative": 0.0})
    (line,) = [line for line in axes.lines if line.get_label() == "loss"]
    *_, top = axes.collections
    outline = {x: max(y for at, y in top.get_paths()[0].vertices if at == x) for x in line.get_xdata()}
    assert list(outline.values()) == pytest.approx(list(line.get_ydata()))
    assert len(axes.collections) == 2


def test_distortions_in_order_take_no_room() -> None:
    axes = Figure().add_subplot()
    _plot_kinds(axes, [{"jpeg": "0.8", "haze": "1"}, {"jpeg": "0.9", "haze": "1.0"}], "default")
    assert [label.get_text() for label in axes.get_yticklabels()] == ["jpeg"]
    assert axes.get_xlim()[0] > 0.7
    assert "before and after: haze" in axes.get_xlabel()
