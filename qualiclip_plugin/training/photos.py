"""Photographs to train on: a folder, any Hugging Face dataset, or the ones that scikit-image ships.

Everything is read through Hugging Face ``datasets``. A photograph that cannot be used, because it cannot be decoded
or is smaller than a crop, is named in the skip list together with the reason, and another one takes its place.
Which photograph stands at which place of which step depends on the seed and the step only, so a run can be stopped,
continued, or spread over processes without a change.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qualiclip_plugin.errors import DatasetError, ImageError
from qualiclip_plugin.images import images_in, read_image
from qualiclip_plugin.training.generators import derive_seed, generator

SKIMAGE = "skimage"
SKIMAGE_FILES = (
    "astronaut.png",
    "brick.png",
    "chelsea.png",
    "coffee.png",
    "grass.png",
    "gravel.png",
    "hubble_deep_field.jpg",
    "ihc.png",
    "motorcycle_left.png",
    "motorcycle_right.png",
    "retina.jpg",
    "rocket.jpg",
)
"""Pictures inside the scikit-image wheel that are photographs of at least 300 pixels (licences in its README)."""


@dataclass
class SkipList:
    """Photographs that were left out, by name, with the reason.

    Attributes:
        reasons: Name -> reason, in the order they were met.
    """

    reasons: dict[str, str] = field(default_factory=dict)

    def add(self, name: str, reason: str) -> None:
        """Note a photograph; naming it again changes nothing."""
        self.reasons.setdefault(name, reason)

    def __len__(self) -> int:
        return len(self.reasons)


class PhotoSource(Protocol):
    """Photographs by index; a row's name is what the user would look for."""

    def __len__(self) -> int: ...
    def name(self, index: int) -> str: ...
    def read(self, index: int) -> Tensor: ...


@dataclass(frozen=True)
class Photos:
    """Rows of a Hugging Face dataset with an undecoded image column.

    Attributes:
        rows: The dataset, ``rows[i][column]`` being ``{"path": ..., "bytes": ...}``.
        column: The image column.
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

    def read(self, index: int) -> Tensor:
        """Decode one photograph to RGB, uint8, (3, H, W); raises ``ImageError``."""
        return decode(self.rows[index][self.column])


def decode(image: dict[str, Any]) -> Tensor:
    """Decode the ``{"path", "bytes"}`` record of a Hugging Face image to RGB, uint8, (3, H, W).

    Raises:
        ImageError: It cannot be decoded.
    """
    if image is None or (image.get("bytes") is None and image.get("path") is None):
        raise ImageError("empty image")
    return read_image(image["bytes"] if image.get("bytes") is not None else image["path"])


def image_name(image: dict[str, Any] | None, index: int) -> str:
    """The image's path where there is one, else its row number."""
    path = image.get("path") if image else None
    return str(path) if path else f"row {index}"


def read_usable(read: Callable[[], Tensor], smallest: int) -> Tensor:
    """Read a photograph and check its size.

    Args:
        read: Returns RGB, (3, H, W).
        smallest: Least height and width in pixels.

    Raises:
        ImageError: It cannot be decoded or is too small.
    """
    photo = read()
    height, width = photo.shape[-2:]
    if min(height, width) < smallest:
        raise ImageError(f"{width}x{height} pixels, smaller than the crop of {smallest}x{smallest}")
    return photo


def open_photos(where: str, *, column: str | None = None, split: str = "train", streaming: bool = False) -> Any:
    """Find photographs.

    Args:
        where: ``skimage``; a folder of images (searched at any depth); a folder written by ``save_to_disk`` or
            holding another dataset; or the name of a dataset on the Hugging Face Hub.
        column: The image column, where there are several.
        split: Split of a dataset.
        streaming: Return a stream instead of rows.

    Returns:
        :class:`Photos`, or :class:`PhotoStream` where ``streaming``.

    Raises:
        DatasetError: Nothing is there, or it has no image column.
    """
    rows = _open_rows(where, split, streaming)
    found = _image_column(rows, column, where)
    from datasets import Image

    rows = rows.cast_column(found, Image(decode=False))
    return PhotoStream(rows, found, where) if streaming else Photos(rows, found, where)


def _open_rows(where: str, split: str, streaming: bool) -> Any:
    folder = Path(where)
    if where == SKIMAGE:
        import skimage.data

        root = Path(skimage.data.__file__).parent
        return _rows_of_files([root / name for name in SKIMAGE_FILES], streaming)
    if folder.is_dir() and (files := _image_files(folder)):
        return _rows_of_files(files, streaming)
    from datasets import Dataset, DatasetDict, load_dataset, load_from_disk

    try:
        if (folder / "state.json").is_file() or (folder / "dataset_dict.json").is_file():
            stored = load_from_disk(where)
            rows = stored[split] if isinstance(stored, DatasetDict) else stored
            return rows.to_iterable_dataset() if streaming and isinstance(rows, Dataset) else rows
        return load_dataset(where, split=split, streaming=streaming)
    except Exception as error:  # datasets raises a different class for every way a name can be wrong
        kind = "the folder holds no image and" if folder.is_dir() else "no such folder, and"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise DatasetError(f"photographs {where!r}: {kind} it is no readable dataset ({reason})") from error


def _image_files(folder: Path) -> list[Path]:
    try:
        return images_in([folder])
    except ImageError:
        return []


def _rows_of_files(files: Sequence[Path], streaming: bool) -> Any:
    from datasets import Dataset, Features, Image

    rows = Dataset.from_dict({"image": [str(file) for file in files]}, features=Features(image=Image(decode=False)))
    return rows.to_iterable_dataset() if streaming else rows


def _image_column(rows: Any, column: str | None, where: str) -> str:
    from datasets import Image

    features = rows.features or {}
    images = [name for name, feature in features.items() if isinstance(feature, Image)]
    if column is not None:
        if column not in features:
            raise DatasetError(f"photographs {where!r}: no column {column!r}; it has {', '.join(features)}")
        return column
    if len(images) != 1:
        raise DatasetError(
            f"photographs {where!r}: {len(images)} image columns among {', '.join(features) or 'none'}; "
            "name one with image_column"
        )
    return images[0]


def check_all(
    photos: PhotoSource, smallest: int, skipped: SkipList, pool: Executor, notice: Callable[[int], None]
) -> list[int]:
    """Decode every photograph once.

    Args:
        photos: The photographs.
        smallest: Least height and width.
        skipped: Receives those that cannot be used.
        pool: Threads that decode.
        notice: Called with the number done after each.

    Returns:
        Indices of the usable photographs, in order.
    """

    def reason(index: int) -> str | None:
        try:
            read_usable(lambda: photos.read(index), smallest)
        except ImageError as error:
            return str(error)
        return None

    usable = []
    for index, why in enumerate(pool.map(reason, range(len(photos)))):
        if why is None:
            usable.append(index)
        else:
            skipped.add(photos.name(index), why)
        notice(index + 1)
    return usable


def hold_out(indices: Sequence[int], count: int, seed: int) -> tuple[list[int], list[int]]:
    """Split indices into a training and a validation part, the latter of ``count`` drawn by the seed.

    Raises:
        DatasetError: Fewer than ``count`` + 1 photographs.
    """
    if len(indices) <= count:
        raise DatasetError(
            f"{len(indices)} usable photographs are too few: {count} are held out for validation (validation_photos) "
            "and at least one must remain"
        )
    order = torch.randperm(len(indices), generator=generator(seed, "held out")).tolist()
    held = sorted(indices[i] for i in order[:count])
    return [index for index in indices if index not in set(held)], held


class PhotoOrder:
    """Which photograph stands at which place: a new permutation in each epoch, a function of the seed alone.

    Args:
        indices: Photographs that are trained on.
        seed: Seed of the permutations.
    """

    def __init__(self, indices: Sequence[int], seed: int) -> None:
        self.indices = list(indices)
        self.seed = seed
        self._epoch, self._order = -1, torch.empty(0, dtype=torch.long)

    def __getitem__(self, draw: int) -> int:
        """The photograph of the ``draw``-th place since the start of the run."""
        epoch, place = divmod(draw, len(self.indices))
        if epoch != self._epoch:
            shuffled = torch.randperm(len(self.indices), generator=generator(self.seed, "epoch", epoch))
            self._epoch, self._order = epoch, shuffled
        return self.indices[int(self._order[place])]


def read_or_replace(
    photos: PhotoSource, first: int, candidates: Sequence[int], smallest: int, skipped: SkipList, key: tuple[Any, ...]
) -> Tensor:
    """Read a photograph; where it cannot be used, name it and read another one.

    Args:
        photos: The photographs.
        first: Index of the one that is wanted.
        candidates: Indices that replacements are drawn from, by a generator of ``key``.
        smallest: Least height and width.
        skipped: Receives those that cannot be used.
        key: Parts of the replacement's seed.

    Raises:
        DatasetError: A hundred photographs in a row cannot be used.
    """
    draws = generator(*key, "replacement")
    index = first
    for _ in range(100):
        try:
            return read_usable(lambda: photos.read(index), smallest)  # noqa: B023 (called at once)
        except ImageError as error:
            skipped.add(photos.name(index), str(error))
        index = candidates[int(torch.randint(len(candidates), (), generator=draws))]
    raise DatasetError("100 photographs in a row cannot be used; see skipped.csv")


@dataclass
class PhotoStream:
    """Photographs of an iterable Hugging Face dataset, endlessly, in an order that the seed decides.

    Attributes:
        rows: The iterable dataset, image column undecoded.
        column: The image column.
        label: What the user asked for.
    """

    rows: Any
    column: str
    label: str

    def held_out(self, count: int, smallest: int, skipped: SkipList) -> tuple[list[Tensor], int]:
        """The first ``count`` usable photographs, and how many rows they took (training skips these).

        Raises:
            DatasetError: The stream ends before.
        """
        photos: list[Tensor] = []
        rows = 0
        stream = iter(self.rows)
        while len(photos) < count:
            row = next(stream, None)
            if row is None:
                raise DatasetError(f"photographs {self.label!r}: only {len(photos)} usable, {count} to be held out")
            photo = _usable_or_none(row[self.column], f"row {rows}", smallest, skipped)
            photos += [] if photo is None else [photo]
            rows += 1
        return photos, rows

    def read(
        self,
        *,
        seed: int,
        buffer: int,
        skip: int,
        position: tuple[int, int],
        smallest: int,
        skipped: SkipList,
        pool: Executor,
        ahead: int,
    ) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        """Usable photographs from a position on, without end.

        Every process reads the whole stream, so that all of them agree on which rows are skipped.

        Args:
            seed: Seed of the shuffling.
            buffer: Size of the shuffle buffer.
            skip: Rows at the start that are held out.
            position: (epoch, rows already consumed in it).
            smallest: Least height and width.
            skipped: Receives those that cannot be used.
            pool: Threads that decode.
            ahead: Rows decoded ahead.

        Yields:
            A photograph, uint8 (3, H, W), and the position after it.

        Raises:
            DatasetError: An epoch without a usable photograph.
        """
        epoch, consumed = position
        while True:
            rows = self.rows.skip(skip).shuffle(seed=derive_seed(seed, "stream", epoch) % 2**32, buffer_size=buffer)
            usable = consumed
            images = (row[self.column] for row in rows.skip(consumed))
            decode_one = lambda item: _usable_or_none(item, "", smallest, skipped)
            for photo in _map_ahead(pool, decode_one, images, ahead):
                consumed += 1
                if photo is not None:
                    usable += 1
                    yield photo, (epoch, consumed)
            if not usable:
                raise DatasetError(f"photographs {self.label!r}: none can be used; see skipped.csv")
            epoch, consumed = epoch + 1, 0


def _usable_or_none(image: dict[str, Any], row: str, smallest: int, skipped: SkipList) -> Tensor | None:
    try:
        return read_usable(lambda: decode(image), smallest)
    except ImageError as error:
        path = image.get("path") if image else None
        content = (image or {}).get("bytes") or b""
        skipped.add(str(path) if path else f"{row} sha256 {hashlib.sha256(content).hexdigest()[:12]}", str(error))
        return None


def _map_ahead(pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """``map`` in order, with at most ``ahead`` items in the pool at a time."""
    waiting: list[Any] = []
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for future in waiting:
        yield future.result()
