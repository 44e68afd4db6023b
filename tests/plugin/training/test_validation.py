"""Validation figures of a scorer whose answers are known: it scores brightness."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from PIL import Image
from torch import nn

from qualiclip_plugin.distortions import get_table
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.logs import RunLogs
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.run_folder import read_log
from qualiclip_plugin.training.validation import (
    ScoredData,
    held_out_crops,
    ladder_scores,
    read_scored_data,
    validate,
)
from qualiclip_plugin.utils.errors import ConfigError, DatasetError, ImageError
from tests.support.harness_data import opinion_folder, write_images


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


@pytest.fixture(scope="module")
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as threads:
        yield threads


def test_scored_data_is_read_as_the_harness_reads_it(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    data = read_scored_data(str(opinion_folder(tmp_path, 4)), pool)
    assert data.files == [tmp_path / f"{index}.png" for index in range(4)]
    assert data.mos.tolist() == [1, 0, 2, 3]
    for index in range(4):
        (tmp_path / f"{index}.png").rename(tmp_path / f"{index}")
    (tmp_path / "metadata.csv").write_text("file_name,mos\n0,3\n1,2\n2,.5\n")
    data = read_scored_data(str(tmp_path), pool)
    assert data.files == [tmp_path / f"{index}" for index in range(3)]
    assert data.mos.tolist() == [3, 2, 0.5]


@pytest.mark.parametrize(
    ("metadata", "message"),
    [
        (b"", "no rows"),
        (b"file_name,mos\n", "no rows"),
        (b"file_name,mos\n0.png,1\n\xe4.png,2\n2.png,3\n", "cannot be read: 'utf-8'"),
        (b"file_name,mos\n0.png,1\n,2\n2.png,3\n", "line 3: '' leads out of the folder"),
        (b"file_name,mos\n0.png,1\n1.png,2,3\n2.png,3\n", "line 3: more cells than the 2 columns"),
        (b"file_name,mos\n0.png,1\n1.png\n2.png,3\n", "line 3: no value for mos"),
        (b"file_name,mos\n0.png,1\n1.png,good\n2.png,3\n", r"line 3 \(1.png\): mos is 'good', a number is needed"),
        (b"file_name,mos\n0.png,1\n1.png,nan\n2.png,3\n", r"line 3 \(1.png\): mos is 'nan'"),
        (b"file_name,mos\n0.png,1\n1.png,2\n", "2 images, at least 3 are needed"),
        (b"file_name,mos\n0.png,2\n1.png,2\n2.png,2.0\n", "all mos are 2"),
        (b"name,mos\n0.png,1\n1.png,2\n2.png,3\n", "no column file_name"),
        (b"file_name,dmos\n0.png,1\n1.png,2\n2.png,3\n", "a column dmos does not say whether lower is better"),
    ],
)
def test_metadata_that_cannot_be_used_is_named(
    tmp_path: Path, pool: ThreadPoolExecutor, metadata: bytes, message: str
) -> None:
    write_images(tmp_path, 3)
    (tmp_path / "metadata.csv").write_bytes(metadata)
    with pytest.raises(DatasetError, match=rf"metadata\.csv.*{message}"):
        read_scored_data(str(tmp_path), pool)


def test_scored_images_that_cannot_be_used_are_named(tmp_path: Path, pool: ThreadPoolExecutor) -> None:
    folder = opinion_folder(tmp_path, size=lambda index: (20, 60) if index == 1 else (40, 48))
    with pytest.raises(ImageError, match=r"1\.png: image of 60x20 pixels is too small: each side needs at least 32"):
        read_scored_data(str(folder), pool)
    (folder / "1.png").write_bytes(b"no image")
    with pytest.raises(ImageError, match=r"1\.png: not an image in a supported format"):
        read_scored_data(str(folder), pool)
    (folder / "1.png").unlink()
    with pytest.raises(ImageError, match=r"1\.png: no such file"):
        read_scored_data(str(folder), pool)


class Indifferent(Brightness):
    """One score for every image."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(torch.zeros_like(images))


def test_figures_that_are_undefined_are_absent(crops: torch.Tensor, tmp_path: Path) -> None:
    files = [tmp_path / name for name in write_images(tmp_path, 3)]
    figures = validate(Indifferent(), crops, ScoredData(files, np.array([1.0, 2.0, 3.0])), TrainConfig())
    assert set(figures) == {"ranking_accuracy", "kinds"}
    assert figures["ranking_accuracy"] == 0


class Diverged(Brightness):
    """What a network answers whose weights have run away."""

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return super().forward(images) * torch.nan


@pytest.mark.parametrize("held_out", [True, False])
def test_a_network_that_diverged_is_told_by_what_helps(crops: torch.Tensor, tmp_path: Path, held_out: bool) -> None:
    scored = ScoredData([tmp_path / name for name in write_images(tmp_path, 3)], np.array([1.0, 2.0, 3.0]))
    with pytest.raises(ConfigError, match="not finite in validation: lower the learning rate"):
        validate(Diverged(), crops if held_out else None, scored, TrainConfig())


def test_a_figure_may_become_defined_later(tmp_path: Path) -> None:
    config = TrainConfig(validation_photos=1, scored_data="scored")
    logs = RunLogs(tmp_path, config, 0, Display({}, enabled=False), Accelerator(cpu=True))
    for step, figures in enumerate([{"ranking_accuracy": 0.5}, {"ranking_accuracy": 0.5, "srcc": 0.25}]):
        logs.validation(step, figures)
    logs.close()
    assert [row["srcc"] for row in read_log(tmp_path / "validation.csv")] == ["", "0.25"]


def test_what_is_not_there_is_not_measured(crops: torch.Tensor) -> None:
    assert validate(Brightness(), None, None, TrainConfig()) == {}
