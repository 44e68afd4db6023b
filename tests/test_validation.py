"""Validation figures of a scorer whose answers are known: it scores brightness."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from qualiclip_plugin.distortions import get_table
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.validation import ScoredData, held_out_crops, ladder_scores, validate


class Brightness(nn.Module):
    """The mean of the pixels, (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((1, 2, 3))[:, None]


@pytest.fixture(scope="module")
def crops(photographs: list[np.ndarray]) -> torch.Tensor:
    photos = [torch.from_numpy(photo.copy()).permute(2, 0, 1) for photo in photographs[:2]]
    return held_out_crops(photos, 64)


def test_held_out_crops_are_centres_that_fit(photographs: list[np.ndarray]) -> None:
    photo = torch.from_numpy(photographs[0].copy()).permute(2, 0, 1)
    small = photo[:, :45, :90]
    crops = held_out_crops([photo, small], 64)
    assert crops.shape == (2, 3, 40, 40)
    torch.testing.assert_close(crops[1], small[:, 2:42, 25:65].float() / 255)


def test_ladders_start_at_the_pristine_crop(crops: torch.Tensor) -> None:
    scores = ladder_scores(Brightness(), crops, "mean_shift_down", TrainConfig())
    assert scores.shape == (2, 6)
    np.testing.assert_allclose(scores[:, 0], crops.mean((1, 2, 3)), rtol=1e-5)
    assert (np.diff(scores) < 0).all()


def test_figures_of_a_known_scorer(crops: torch.Tensor, tmp_path: Path) -> None:
    files = []
    for value in (30, 200, 100):
        files.append(tmp_path / f"{value}.png")
        Image.fromarray(np.full((40, 40, 3), value, np.uint8)).save(files[-1])
    config = TrainConfig()
    figures = validate(Brightness(), crops, ScoredData(files, np.array([1.0, 2.0, 3.0])), config)
    assert list(figures["kinds"]) == list(get_table("default"))
    assert figures["kinds"]["mean_shift_down"] == figures["kinds"]["underexposure"] == 1.0
    assert figures["kinds"]["mean_shift_up"] == figures["kinds"]["brighten"] == 0.0
    assert figures["ranking_accuracy"] == pytest.approx(np.mean(list(figures["kinds"].values())))
    assert 0.5 <= figures["d_test"] < 0.8
    assert -0.5 < figures["l_test"] < 0.5
    # Brightness 30, 200, 100 against opinions 1, 2, 3: ranks 1, 3, 2 against 1, 2, 3.
    assert figures["srcc"] == pytest.approx(0.5)


def test_what_is_not_there_is_not_measured(crops: torch.Tensor) -> None:
    assert validate(Brightness(), None, None, TrainConfig()) == {}
