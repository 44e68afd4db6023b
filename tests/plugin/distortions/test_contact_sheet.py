"""One degraded picture, and the sheet of all of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qualiclip_plugin.distortions import DISTORTIONS, get_distortion
from qualiclip_plugin.distortions.contact_sheet import ROWS, contact_sheet, degrade_file, degrade_image
from qualiclip_plugin.utils.errors import ConfigError, ImageError


@pytest.fixture
def picture(images: Tensor) -> Tensor:
    """uint8, (3, 80, 96)."""
    return (images[0, :, :80, :96] * 255).to(torch.uint8)


@pytest.fixture
def picture_file(picture: Tensor, tmp_path: Path) -> Path:
    Image.fromarray(picture.permute(1, 2, 0).numpy()).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def test_levels_of_one_picture(picture: Tensor) -> None:
    assert torch.equal(degrade_image(picture, "white_noise", 0), picture)
    differences = [
        (degrade_image(picture, "white_noise", level).float() - picture.float()).square().mean() for level in range(6)
    ]
    assert differences == sorted(differences)
    degraded = degrade_image(picture, "white_noise", 3)
    assert degraded.dtype == torch.uint8
    assert torch.equal(degraded, degrade_image(picture, "white_noise", 3))
    assert not torch.equal(degraded, degrade_image(picture, "white_noise", 3, seed=1))
    kind = get_distortion("jpeg", "arniqa")
    expected = kind.apply(picture[None].float() / 255, torch.tensor(kind.strengths[3:4]), torch.tensor([0]))[0]
    assert torch.equal(degrade_image(picture, "jpeg", 4, table="arniqa"), (expected * 255).round().to(torch.uint8))
    assert degrade_image(picture.float() / 255, "jpeg", 4).dtype == torch.float32


def test_wrong_requests(picture: Tensor) -> None:
    with pytest.raises(ConfigError, match="did you mean jpeg"):
        degrade_image(picture, "jpge", 1)
    for level in (-1, 6):
        with pytest.raises(ConfigError, match=f"jpeg has levels 0 to 5, not {level}"):
            degrade_image(picture, "jpeg", level)
    with pytest.raises(ImageError, match=r"\(3, H, W\), got \(1, 80, 96\)"):
        degrade_image(picture[:1], "jpeg", 1)


def test_file_in_file_out(
    picture: Tensor, picture_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    written = degrade_file(picture_file, "pixelate", 2)
    assert written == Path("photo_pixelate_2.png")
    expected = degrade_image(picture, "pixelate", 2)
    assert np.array_equal(np.asarray(Image.open(written)), expected.permute(1, 2, 0).numpy())
    assert degrade_file(picture_file, "jpeg", 1, output="deep/er.bmp") == Path("deep/er.bmp")
    with Image.open("deep/er.bmp") as file:
        assert file.format == "BMP"


def test_files_that_cannot_be(picture_file: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="without further loss"):
        degrade_file(picture_file, "jpeg", 1, output=tmp_path / "out.jpg")
    with pytest.raises(ConfigError, match="would overwrite the input"):
        degrade_file(picture_file, "jpeg", 1, output=picture_file)
    with pytest.raises(ConfigError, match="unknown distortion"):
        degrade_file(picture_file, "snow", 1, output=tmp_path / "out.png")
    with pytest.raises(ImageError, match=r"missing\.png"):
        degrade_file(tmp_path / "missing.png", "jpeg", 1, output=tmp_path / "out.png")
    assert not (tmp_path / "out.png").exists()


def test_sheet_shows_every_kind_at_every_level_on_pages_of_a_screen(picture: Tensor, tmp_path: Path) -> None:
    scored = []

    def score(tiles: Tensor) -> Tensor:
        scored.append(len(tiles))
        return tiles.mean(dim=(1, 2, 3))

    pages = contact_sheet(picture, tmp_path / "sheet.png", tile=32, score=score)
    assert pages == [tmp_path / f"sheet-{number}.png" for number in range(1, -(-len(DISTORTIONS) // ROWS) + 1)]
    # Every kind's levels, and the pristine crop once a page.
    assert sorted(scored) == [1] * len(pages) + [5] * len(DISTORTIONS)
    for page in pages:
        with Image.open(page) as drawn:
            assert drawn.size[0] <= 1280


def test_sheet_holds_the_degraded_pixels_at_full_size(picture: Tensor, tmp_path: Path) -> None:
    crop = picture[:, 10:70, 18:78]
    (path,) = contact_sheet(picture, tmp_path / "sheet.png", ["impulse_noise", "haze"], seed=4, tile=60)
    sheet = np.asarray(Image.open(path))
    shown = [degrade_image(crop, name, level, seed=4) for name in ("impulse_noise", "haze") for level in (1, 2, 5)]
    for tile in (pixels.permute(1, 2, 0).numpy() for pixels in (crop, *shown)):
        assert [np.array_equal(sheet[y : y + 60, x : x + 60], tile) for y, x in corners(sheet, tile)].count(True) == 1


def corners(sheet: np.ndarray, tile: np.ndarray) -> np.ndarray:
    """Places where the sheet shows the first pixels of the tile's first row, (N, 2)."""
    windows = np.lib.stride_tricks.sliding_window_view(sheet, (1, 4, 3))[:, :, 0, 0]
    return np.argwhere((windows == tile[0, :4]).all(axis=(2, 3)))


def test_sheets_that_cannot_be(picture: Tensor, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown distortion 'snow'"):
        contact_sheet(picture, tmp_path / "sheet.png", ["snow"])
    with pytest.raises(ConfigError, match="without further loss"):
        contact_sheet(picture, tmp_path / "sheet.jpg")
    assert not list(tmp_path.iterdir())
