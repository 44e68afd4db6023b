"""Quality maps: their windows are images, they show where a picture is bad, and they cost no second network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyiqa
import pytest
import torch
from PIL import Image
from scipy.stats import rankdata
from skimage import data
from torch import Tensor
from torchvision.utils import save_image
from typer.testing import CliRunner

from qualiclip_plugin.cli import app
from qualiclip_plugin.distortions import get_distortion
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.models.quality_map import window_starts
from qualiclip_plugin.scoring.map_files import WindowScores, check_names, per_pixel
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights import load_model
from tests.support.rounding import bound_of

SIDE = 256
PLACE = (slice(None), slice(None), slice(128, 256), slice(64, 192))


@pytest.fixture(scope="module")
def lite() -> QualiCLIP:
    return load_model("lite")


@pytest.fixture(scope="module")
def crops(photographs: list[np.ndarray]) -> Tensor:
    """The centres of five photographs, 256 x 256."""
    found = []
    for photo in (*photographs, data.stereo_motorcycle()[0]):
        top, left = ((side - SIDE) // 2 for side in photo.shape[:2])
        found.append(torch.from_numpy(photo[top : top + SIDE, left : left + SIDE].copy()).permute(2, 0, 1))
    return torch.stack(found).float() / 255


@pytest.fixture(scope="module", params=["lite", "resnet"])
def model(request: pytest.FixtureRequest, lite: QualiCLIP, tiny_model: QualiCLIP) -> QualiCLIP:
    return lite if request.param == "lite" else tiny_model.eval()


@pytest.mark.parametrize("size", [(256, 256), (101, 250), (32, 33)])
def test_a_window_that_covers_the_image_gives_its_score(
    model: QualiCLIP, crops: Tensor, size: tuple[int, int]
) -> None:
    images = crops[:2, :, : size[0], : size[1]]
    torch.testing.assert_close(
        model.quality_map(images, window=4096)[..., 0, 0], model(images), rtol=0, atol=bound_of(model)
    )


def test_every_value_is_the_score_of_its_window(model: QualiCLIP, crops: Tensor) -> None:
    image = crops[:1, :, :200, :150]
    found = model.quality_map(image, window=64, stride=50)
    tops, lefts = window_starts(200, 64, 50), window_starts(150, 64, 50)
    assert found.shape[2:] == (len(tops), len(lefts)) == (4, 3)
    for row, column in ((0, 0), (1, 2), (3, 1)):
        window = image[:, :, tops[row] : tops[row] + 64, lefts[column] : lefts[column] + 64]
        torch.testing.assert_close(found[0, 0, row, column], model(window)[0, 0], rtol=0, atol=1e-5)


def test_attributes_have_maps_whose_mean_is_the_map(model: QualiCLIP, crops: Tensor) -> None:
    pairs = model.quality_map(crops[:2], window=64, attributes=True)
    assert pairs.shape == (2, len(model.attributes), 5, 5)
    torch.testing.assert_close(pairs.mean(1, keepdim=True), model.quality_map(crops[:2], window=64))


def test_a_map_of_one_colour_is_flat(model: QualiCLIP) -> None:
    found = model.quality_map(torch.full((1, 3, 160, 130), 0.5), window=64)
    assert found.max() - found.min() < bound_of(model)


def test_a_shift_moves_the_map(lite: QualiCLIP, crops: Tensor) -> None:
    found, moved = (
        lite.quality_map(image, window=64, stride=32) for image in (crops, crops.roll((64, 32), dims=(2, 3)))
    )
    torch.testing.assert_close(moved[..., 2:, 1:], found[..., :-2, :-1], rtol=0, atol=1e-5)


def test_a_flip_flips_the_map(lite: QualiCLIP, crops: Tensor) -> None:
    found, flipped = (lite.quality_map(one, window=64, stride=32) for one in (crops, crops.flip(3)))
    # The features of an image and of its mirror image are near, not equal: kernels are not symmetric.
    assert np.corrcoef(found.flatten(), flipped.flip(3).flatten())[0, 1] > 0.9


@pytest.mark.parametrize(("kind", "area"), [("gaussian_blur", 0.95), ("white_noise", 0.75), ("jpeg", 0.85)])
def test_a_region_that_is_degraded_has_the_lowest_values(
    lite: QualiCLIP, crops: Tensor, kind: str, area: float
) -> None:
    distortion = get_distortion(kind)
    strength = torch.full((len(crops),), float(distortion.strengths[3]))
    spoilt = crops.clone()
    spoilt[PLACE] = distortion.apply(crops, strength, torch.arange(len(crops)))[PLACE]
    found = lite.quality_map(spoilt, window=64, stride=32)
    mask = torch.zeros(1, 1, SIDE, SIDE)
    mask[PLACE] = 1
    bad = (torch.nn.functional.avg_pool2d(mask, 64, 32) > 0.5).flatten().numpy()
    assert np.mean([roc_area(-one.flatten().numpy(), bad) for one in found]) >= area


def roc_area(values: np.ndarray, positive: np.ndarray) -> float:
    """Area under the curve of hits over false alarms, from ranks (Mann and Whitney)."""
    hits = positive.sum()
    return float((rankdata(values)[positive].sum() - hits * (hits + 1) / 2) / (hits * (~positive).sum()))


def test_windows_cover_an_axis_to_its_end() -> None:
    assert window_starts(100, 64, 40) == [0, 36]
    assert window_starts(144, 64, 40) == [0, 40, 80]
    assert window_starts(40, 64, 40) == [0]


def test_what_does_not_fit_is_named(lite: QualiCLIP, crops: Tensor) -> None:
    with pytest.raises(ConfigError, match="window of 16 pixels is too small: at least 32"):
        lite.quality_map(crops, window=16)
    with pytest.raises(ConfigError, match="stride is 0"):
        lite.quality_map(crops, stride=0)


def test_through_pyiqa(lite: QualiCLIP, crops: Tensor) -> None:
    metric = pyiqa.create_metric("qualiclip", weights="lite", device="cpu")
    torch.testing.assert_close(metric.net.quality_map(crops[:1]), lite.quality_map(crops[:1]))


def test_files_become_pictures_and_raw_maps(crops: Tensor, tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    save_image(crops[0], tmp_path / "photos" / "one.png")
    (tmp_path / "photos" / "bad.png").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["map", str(tmp_path / "photos"), "--output", str(tmp_path / "maps")])
    assert result.exit_code == 1, result.output
    assert "bad.png" in result.stderr
    raw = np.load(tmp_path / "maps" / "one.png.npy")
    assert raw.shape == (4, 4)
    with Image.open(tmp_path / "maps" / "one.png.png") as picture:
        assert picture.width > 2 * SIDE


def test_maps_of_one_name_are_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"these have one name: a/x\.png, b/x\.png"):
        check_names([Path("a/x.png"), Path("b/x.png")])


def test_a_pixel_has_the_mean_of_its_windows() -> None:
    values = np.array([[0.0, 1.0]], dtype=np.float32)
    found = per_pixel(WindowScores(values, (2, 4), 2, np.zeros((2, 6, 3), np.uint8)))
    assert found.tolist() == [[0, 0, 0.25, 0.75, 1, 1]] * 2
