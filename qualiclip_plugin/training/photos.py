"""Photographs to train on: a folder, any Hugging Face dataset, or the ones that scikit-image ships.

Everything is read through Hugging Face ``datasets``, as rows (:class:`Photos`) or as a stream
(:class:`photo_stream.PhotoStream`).
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from qualiclip_plugin.training.photo_stream import PhotoStream
from qualiclip_plugin.training.usable_photos import decode, image_name
from qualiclip_plugin.utils.errors import DatasetError, ImageError, first_line
from qualiclip_plugin.utils.images import images_in
from qualiclip_plugin.utils.shown import portable, printable

SKIMAGE = "skimage"
SKIMAGE_FILES = (
    "astronaut.png",
    "chelsea.png",
    "coffee.png",
    "motorcycle_left.png",
    "rocket.jpg",
    # Pictures of science, and grey textures.
    "hubble_deep_field.jpg",
    "ihc.png",
    "retina.jpg",
    "brick.png",
    "grass.png",
    "gravel.png",
)
"""Pictures inside the scikit-image wheel that a camera took, at least 300 pixels high (licences in its README)."""


@dataclass(frozen=True)
class Photos:
    """Rows of a Hugging Face dataset with an undecoded image column.

    Attributes:
        rows: The dataset, ``rows[i][column]`` being ``{"path": ..., "bytes": ...}``.
        label: What the user asked for, as it enters the card.
    """

    rows: Any
    column: str
    label: str

    def __len__(self) -> int:
        return len(self.rows)

    def name(self, index: int) -> str:
        """The path of a row's image, or its number where it has none."""
        return image_name(self.rows[index][self.column], index)

    def stamp(self, index: int) -> str:
        """What tells a photograph from another one in its place: the file's name and its size in bytes (0: none)."""
        return f"{Path(self.name(index)).name} {_size(self.rows[index][self.column])}"

    def read(self, index: int) -> Tensor:
        """Decode one photograph to RGB, uint8, (3, H, W); raises ``ImageError``."""
        return decode(self.rows[index][self.column])


def _size(image: dict[str, Any] | None) -> int:
    # Photographs that nobody has checked: what cannot be read is found when its turn comes.
    if not image:
        return 0
    if image.get("bytes") or not image.get("path"):
        return len(image.get("bytes") or b"")
    try:
        return os.path.getsize(image["path"])
    except OSError:
        return 0


def open_photos(where: str, *, column: str | None = None, split: str = "train", streaming: bool = False) -> Any:
    """Find photographs.

    Args:
        where: ``skimage``; a folder of images (searched at any depth); a folder written by ``save_to_disk`` or
            holding another dataset; or the name of a dataset on the Hugging Face Hub.
        column: The image column, where there are several.

    Returns:
        :class:`Photos`, or :class:`PhotoStream` where ``streaming``.

    Raises:
        DatasetError: Nothing is there, it has no image column, or the name of a file is no UTF-8.
    """
    rows = _open_rows(where, split, streaming)
    found = _image_column(rows, column, where)
    from datasets import Image

    # The others go first: a row is read whole, and pictures or sound in them would be decoded, or fail to be.
    rows = rows.select_columns([found]).cast_column(found, Image(decode=False))
    return PhotoStream(rows, found, where) if streaming else Photos(rows, found, where)


def _open_rows(where: str, split: str, streaming: bool) -> Any:
    folder = Path(where)
    if folder.is_file():
        # The library would look for a dataset of that name on the Hub, and say so after half a minute.
        raise DatasetError(f"photographs {where!r}: a file; a folder or the name of a dataset is needed")
    if files := _image_files(where):
        if split != "train":
            raise DatasetError(f"photographs {where!r}: a folder of images has no split {split!r}")
        return _rows_of_files(files, streaming)
    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            return _stored_rows(where, split, streaming)
        from datasets import load_dataset

        # A folder by its whole path: by a name such as "parquet" it would stand for a file format of the library's.
        return load_dataset(str(folder.resolve()) if folder.is_dir() else where, split=split, streaming=streaming)
    except DatasetError:
        raise
    except Exception as error:  # datasets raises a different class for every way a name can be wrong
        kind = "the folder holds no image and" if folder.is_dir() else "no such folder, and"
        reason = first_line(error)
        raise DatasetError(f"photographs {where!r}: {kind} it is no readable dataset ({reason})") from error


def _stored_rows(where: str, split: str, streaming: bool) -> Any:
    """Rows that ``save_to_disk`` wrote."""
    from datasets import DatasetDict, load_from_disk

    stored = load_from_disk(where)
    if isinstance(stored, DatasetDict):
        if split not in stored:
            raise DatasetError(f"photographs {where!r}: no split {split!r} (split); it has {', '.join(stored)}")
        stored = stored[split]
    return stored.to_iterable_dataset() if streaming else stored


def _image_files(where: str) -> list[Path]:
    """The photographs of scikit-image, or the images in a folder; none if it is no folder of images."""
    if where == SKIMAGE:
        import skimage.data

        return [Path(skimage.data.__file__).parent / name for name in SKIMAGE_FILES]
    try:
        return images_in([where]) if Path(where).is_dir() else []
    except ImageError:
        return []


def _rows_of_files(files: Sequence[Path], streaming: bool) -> Any:
    from datasets import Dataset, Features, Image

    for file in files:
        # Arrow stores text as UTF-8, and under another name the file would not be found again.
        if portable(file) != str(file):
            raise DatasetError(f"photographs: the name {printable(file)} is no UTF-8; rename it")
    rows = Dataset.from_dict({"image": [str(file) for file in files]}, features=Features(image=Image(decode=False)))
    return rows.to_iterable_dataset() if streaming else rows


def _image_column(rows: Any, column: str | None, where: str) -> str:
    from datasets import Image

    features = rows.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if column is None and len(images) == 1:
        return images[0]
    if column is not None:
        if column in images:
            return column
        problem = "holds no images" if column in features else "is not there"
        hint = f"the image columns are {', '.join(images)}" if images else "there is no image column"
        raise DatasetError(f"photographs {where!r}: column {column!r} {problem}; {hint}")
    if images:
        raise DatasetError(f"photographs {where!r}: name one of the columns {', '.join(images)} with image_column")
    raise DatasetError(f"photographs {where!r}: no image column among {', '.join(features) or 'no columns'}")
