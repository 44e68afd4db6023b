"""What ``results/adapt`` measures a gain by."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from PIL import Image

from harness.statistics import rated, significance_matrix
from tests.support.programs import RESULTS, program


@pytest.fixture(scope="module")
def measure() -> Iterator[ModuleType]:
    with program("adapt", "measure") as module:
        yield module


def test_a_gain_is_the_harness_s_difference_with_its_interval(measure: ModuleType) -> None:
    draws = np.random.default_rng(0)
    opinions = draws.normal(size=40)
    before, after = opinions + draws.normal(size=40), opinions + 0.5 * draws.normal(size=40)
    row = measure.gain("srcc", before, after, rated(opinions))
    matrix = significance_matrix({"after": after, "before": before}, rated(opinions))
    expected = [matrix.differences[0, 1], matrix.lows[0, 1], matrix.highs[0, 1], matrix.p_values[0, 1]]
    assert [row[name] for name in ("gain", "gain_low", "gain_high", "p")] == pytest.approx(expected)
    assert row["after"] - row["before"] == pytest.approx(row["gain"])


def test_ladders_in_order_gain_on_ladders_that_are_not(measure: ModuleType) -> None:
    images, chosen = measure.ladder_images(6)
    _, photos, levels = np.indices((4, 6, 6))
    content = np.array([0, 3, 1, 4, 2, 5])[photos]
    ordered, mixed = (-levels - share * content for share in (0.01, 2.0))
    row = measure.gain("d_test", mixed.ravel()[chosen], ordered.ravel()[chosen], images)
    assert row["after"] > 0.95
    assert row["gain_low"] > 0
    assert images.in_ladder.sum() == 4 * 6 * 5
    assert (images.levels == 0).sum() == 6


def test_pictures_of_a_kind_are_the_same_each_time(measure: ModuleType, photo_folder: str, tmp_path: Path) -> None:
    kinds = sys.modules["kinds"]
    pages = [kinds.pages(RESULTS.parent / "docs", tmp_path / name, 2) for name in "ab"]
    assert pages[0][1].read_bytes() == pages[1][1].read_bytes()
    assert pages[0][0].read_bytes() != pages[0][1].read_bytes()
    night = kinds.night(Path(photo_folder), tmp_path / "night", 3)
    day = sorted(Path(photo_folder).iterdir())[0]
    assert 0 < np.asarray(Image.open(night[0])).mean() < 0.6 * np.asarray(Image.open(day)).mean()
