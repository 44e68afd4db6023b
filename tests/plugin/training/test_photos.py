"""Photographs: where they come from, what is skipped, and in which order they are drawn."""

from __future__ import annotations

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.crop_pairs import CropPairs
from qualiclip_plugin.training.photos import SKIMAGE, SKIMAGE_FILES, Photos, open_photos
from qualiclip_plugin.training.seeds import derive_seed
from qualiclip_plugin.training.usable_photos import check_all, hold_out
from qualiclip_plugin.utils.errors import DatasetError, ImageError


@pytest.fixture
def folder(tmp_path: Path, photographs: list[np.ndarray]) -> Path:
    """Four good photographs, one too small, one cut off."""
    root = tmp_path / "photos"
    (root / "more").mkdir(parents=True)
    for number, photo in enumerate(photographs):
        Image.fromarray(photo[:96, :128]).save(root / ("more" if number % 2 else ".") / f"good{number}.png")
    Image.fromarray(photographs[0][:40, :200]).save(root / "small.png")
    whole = (root / "good0.png").read_bytes()
    (root / "cut.png").write_bytes(whole[: len(whole) // 2])
    return root


def test_the_photographs_in_scikit_image() -> None:
    photos = open_photos(SKIMAGE)
    skipped: dict[str, str] = {}
    with ThreadPoolExecutor(2) as pool:
        usable = check_all(photos, 224, skipped, pool, lambda _: None)
    assert len(usable) == len(SKIMAGE_FILES)
    assert not skipped
    assert photos.read(0).shape == (3, 512, 512)
    assert photos.read(0).dtype == torch.uint8


def test_small_and_corrupt_photographs_are_named(folder: Path) -> None:
    photos = open_photos(str(folder))
    skipped: dict[str, str] = {}
    done: list[int] = []
    with ThreadPoolExecutor(2) as pool:
        usable = check_all(photos, 64, skipped, pool, done.append)
    assert [Path(photos.name(i)).name for i in usable] == ["good0.png", "good2.png", "good1.png", "good3.png"]
    assert done == list(range(1, 7))
    reasons = {Path(name).name: reason for name, reason in skipped.items()}
    assert set(reasons) == {"small.png", "cut.png"}
    assert "200x40" in reasons["small.png"]
    assert "cut.png" in reasons["cut.png"]


def test_a_photograph_that_fails_later_is_replaced_and_named(folder: Path) -> None:
    photos = open_photos(str(folder))
    indices = list(range(len(photos)))
    cut = next(i for i in indices if photos.name(i).endswith("cut.png"))
    skipped: dict[str, str] = {}
    config = TrainConfig(crop_size=64)
    first = CropPairs(photos, indices, config, skipped).cut(cut, 0, "crop", 1, 2)
    again = CropPairs(photos, indices, config, {}).cut(cut, 0, "crop", 1, 2)
    assert first.shape == (2, 3, 64, 64)
    assert torch.equal(first, again)
    assert any(name.endswith("cut.png") for name in skipped)
    with pytest.raises(DatasetError, match="100 photographs"):
        CropPairs(photos, [cut], config, {}).cut(cut, 0)


def test_hugging_face_datasets_by_folder(
    tmp_path: Path, photographs: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    images = [Image.fromarray(photo[:96, :96]) for photo in photographs]
    features = datasets.Features(picture=datasets.Image(), label=datasets.Value("int64"))
    rows = datasets.Dataset.from_dict({"picture": images, "label": [0, 1, 2, 3]}, features=features)
    rows.save_to_disk(str(tmp_path / "stored"))
    stored = open_photos(str(tmp_path / "stored"))
    assert len(stored) == 4
    assert np.array_equal(stored.read(2).permute(1, 2, 0).numpy(), photographs[2][:96, :96])

    (tmp_path / "parquet").mkdir()
    rows.to_parquet(str(tmp_path / "parquet" / "train.parquet"))
    parquet = open_photos(str(tmp_path / "parquet"), column="picture")
    assert torch.equal(parquet.read(1), stored.read(1))
    with pytest.raises(DatasetError, match="column 'image' is not there; the image columns are picture"):
        open_photos(str(tmp_path / "parquet"), column="image")
    with pytest.raises(DatasetError, match="column 'label' holds no images"):
        open_photos(str(tmp_path / "parquet"), column="label")
    # Not the file format of that name, for which the library would read every file around.
    monkeypatch.chdir(tmp_path)
    assert torch.equal(open_photos("parquet").read(1), stored.read(1))
    stream = open_photos(str(tmp_path / "parquet"), streaming=True)
    held, _ = stream.held_out(4, 64, {})
    assert [torch.equal(photo, stored.read(i)) for i, photo in enumerate(held)] == [True] * 4


def test_datasets_that_need_another_word_are_refused(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    import datasets

    datasets.Dataset.from_dict({"text": ["a"]}).save_to_disk(str(tmp_path / "text"))
    with pytest.raises(DatasetError, match="no image column among text"):
        open_photos(str(tmp_path / "text"))
    images = [Image.fromarray(photographs[0][:40, :40])]
    features = datasets.Features(first=datasets.Image(), second=datasets.Image())
    rows = datasets.Dataset.from_dict({"first": images, "second": images}, features=features)
    datasets.DatasetDict(val=rows).save_to_disk(str(tmp_path / "two"))
    with pytest.raises(DatasetError, match=r"no split 'train' \(split\); it has val"):
        open_photos(str(tmp_path / "two"))
    with pytest.raises(DatasetError, match="name one of the columns first, second with image_column"):
        open_photos(str(tmp_path / "two"), split="val")
    assert len(open_photos(str(tmp_path / "two"), split="val", column="second")) == 1


def test_a_file_is_refused_without_a_look_at_the_hub(folder: Path) -> None:
    with pytest.raises(DatasetError, match=r"cut\.png': a file; a folder or the name of a dataset is needed"):
        open_photos(str(folder / "cut.png"))


def test_a_folder_of_images_has_no_splits(folder: Path) -> None:
    with pytest.raises(DatasetError, match="a folder of images has no split 'test'"):
        open_photos(str(folder), split="test")


def test_other_columns_of_a_dataset_are_not_decoded(tmp_path: Path, photographs: list[np.ndarray]) -> None:
    import datasets

    images = {"image": [Image.fromarray(photographs[0][:40, :40])], "mask": [{"bytes": b"broken", "path": None}]}
    features = datasets.Features(image=datasets.Image(), mask=datasets.Image())
    datasets.Dataset.from_dict(images, features=features).save_to_disk(str(tmp_path / "masked"))
    stored = open_photos(str(tmp_path / "masked"), column="image")
    (held,), _ = open_photos(str(tmp_path / "masked"), column="image", streaming=True).held_out(1, 32, {})
    assert torch.equal(stored.read(0), held)


def test_images_of_a_stream_without_a_name_are_named_by_their_content(folder: Path) -> None:
    import datasets

    broken = (folder / "cut.png").read_bytes()
    features = datasets.Features(image=datasets.Image(decode=False))
    rows = datasets.Dataset.from_dict({"image": [{"bytes": broken, "path": None}, None]}, features=features)
    rows.save_to_disk(str(folder.parent / "nameless"))
    skipped: dict[str, str] = {}
    with pytest.raises(DatasetError, match="only 0 usable"):
        open_photos(str(folder.parent / "nameless"), streaming=True).held_out(1, 64, skipped)
    first, second = skipped
    assert first == f"image with sha256 {hashlib.sha256(broken).hexdigest()}"
    assert skipped[second] == "empty image"


def test_what_is_not_there_has_the_size_0(folder: Path) -> None:
    import datasets

    file = folder / "good0.png"
    images = [None, {"bytes": b"", "path": None}, {"bytes": None, "path": str(file)}, {"bytes": b"12", "path": None}]
    features = datasets.Features(image=datasets.Image(decode=False))
    photos = Photos(datasets.Dataset.from_dict({"image": images}, features=features), "image", "rows")
    size = file.stat().st_size
    assert [photos.stamp(index) for index in range(4)] == ["row 0 0", "row 1 0", f"good0.png {size}", "row 3 2"]
    file.unlink()
    assert photos.stamp(2) == "good0.png 0"


def test_a_file_whose_name_is_no_text_is_named(folder: Path) -> None:
    file = os.fsencode(folder) + b"/caf\xe9.png"
    Path(os.fsdecode(file)).write_bytes((folder / "good0.png").read_bytes())
    with pytest.raises(DatasetError, match=r"caf\\udce9\.png is no UTF-8"):
        open_photos(str(folder))


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="nowhere"):
        open_photos(str(tmp_path / "nowhere"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="no image"):
        open_photos(str(tmp_path / "empty"))


class Pictures:
    """Twenty small pictures, the seventh of which cannot be read."""

    def __len__(self) -> int:
        return 20

    def name(self, index: int) -> str:
        return f"picture {index}"

    def read(self, index: int) -> torch.Tensor:
        if index == 7:
            raise ImageError("broken")
        return torch.full((3, 40, 40), index)


def test_held_out_photographs_are_apart_and_decided_by_the_seed() -> None:
    def parted(count: int, seed: int, indices: list[int]) -> tuple[list[int], list[int]]:
        train, held = hold_out(Pictures(), indices, count, seed, 32, {})
        assert all(int(photo[0, 0, 0]) == index for index, photo in held.items())
        return train, list(held)

    usable = [index for index in range(20) if index != 7]
    train, held = parted(5, 3, usable)
    assert len(held) == 5
    assert sorted(train + held) == usable
    assert parted(5, 3, usable) == (train, held)
    assert parted(5, 4, usable)[1] != held
    with pytest.raises(DatasetError, match="2 usable photographs are too few"):
        parted(2, 0, [1, 2])
    with pytest.raises(DatasetError, match="0 usable photographs are too few"):
        parted(0, 0, [])


def test_a_broken_photograph_is_not_held_out() -> None:
    skipped: dict[str, str] = {}
    for seed in range(20):
        _, held = hold_out(Pictures(), range(20), 10, seed, 32, skipped)
        assert len(held) == 10
        assert 7 not in held
    assert skipped == {"picture 7": "broken"}
    with pytest.raises(DatasetError, match="19 usable"):
        hold_out(Pictures(), range(20), 19, 0, 32, {})


def test_every_epoch_shows_every_photograph_once_in_a_new_order() -> None:
    def index_of(draw: int) -> int:
        return CropPairs(Pictures(), [5, 6, 7, 8, 9], TrainConfig(seed=0), {}).index_of(draw)

    epochs = [[index_of(epoch * 5 + place) for place in range(5)] for epoch in range(4)]
    assert all(sorted(epoch) == [5, 6, 7, 8, 9] for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) > 1
    # Asking out of order, as threads and continued runs do, changes nothing.
    assert index_of(17) == epochs[3][2]
    assert index_of(2) == epochs[0][2]


def test_a_stream_continues_where_it_was_left(folder: Path) -> None:
    def read(position: tuple[int, int], count: int) -> list[tuple[torch.Tensor, tuple[int, int]]]:
        stream = open_photos(str(folder), streaming=True)
        with ThreadPoolExecutor(2) as pool:
            config = TrainConfig(seed=0, shuffle_buffer=3, crop_size=64, batch_size=1)
            photos = stream.read(config, 1, position, skipped, pool)
            return [next(photos) for _ in range(count)]

    skipped: dict[str, str] = {}
    whole = read((0, 0), 9)
    rest = read(whole[3][1], 5)
    assert whole[-1][1][0] == 2  # the third epoch has begun
    for (photo, position), (expected, expected_position) in zip(rest, whole[4:], strict=True):
        assert position == expected_position
        assert torch.equal(photo, expected)
    assert any("small.png" in name for name in skipped)


def test_the_held_out_photographs_of_a_stream_are_its_first_usable_ones(folder: Path) -> None:
    stream = open_photos(str(folder), streaming=True)
    skipped: dict[str, str] = {}
    photos, rows = stream.held_out(2, 64, skipped)
    assert len(photos) == 2
    assert rows == 2 + len(skipped)
    with pytest.raises(DatasetError, match="only 4 usable"):
        open_photos(str(folder), streaming=True).held_out(9, 64, {})


def test_a_stream_without_a_usable_photograph_ends(folder: Path) -> None:
    stream = open_photos(str(folder), streaming=True)
    with ThreadPoolExecutor(1) as pool, pytest.raises(DatasetError, match="none can be used"):
        next(stream.read(TrainConfig(shuffle_buffer=2, crop_size=500, batch_size=1), 0, (0, 0), {}, pool))


def test_seeds_are_the_same_everywhere() -> None:
    # A changed derivation would silently change every run.
    assert derive_seed(0, "plan", 7) == 6902232579407239669
    assert derive_seed(0, "plan", 7) != derive_seed(0, "plan", 8)
