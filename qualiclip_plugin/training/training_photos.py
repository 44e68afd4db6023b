"""The photographs of a run: which are trained on, which are held out, and the crops of every step."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from pathlib import Path
from typing import Any

from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.crop_pairs import CropPairs
from qualiclip_plugin.training.photo_stream import PhotoStream
from qualiclip_plugin.training.photos import Photos, open_photos
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.seeds import derive_seed
from qualiclip_plugin.training.usable_photos import check_all, hold_out
from qualiclip_plugin.training.validation import held_out_crops
from qualiclip_plugin.utils.errors import DatasetError

MOST_NAMES = 10_000
"""Photographs whose names are compared when a run is continued."""


class TrainingPhotos:
    """The photographs of a run: which are trained on, which are held out, and their crops.

    Args:
        where: See ``photos.open_photos``.
        skipped: Receives photographs that cannot be used, by name, with the reason.

    Attributes:
        held_out: Pristine crops for validation, (N, 3, S, S) in [0, 1], or None.
        record: What ``run.json`` and the card say about them.

    Raises:
        DatasetError: There are none, or too few.
    """

    def __init__(
        self, config: TrainConfig, where: str, pool: Executor, skipped: dict[str, str], display: Display
    ) -> None:
        self.config, self.pool, self.skipped, self.display = config, pool, skipped, display
        photos = open_photos(where, column=config.image_column, split=config.split, streaming=config.streaming)
        self.data: CropPairs | PhotoStream = photos
        if isinstance(photos, PhotoStream):
            held, self._held_out_rows = photos.held_out(config.validation_photos, config.smallest_photo, skipped)
            self.record: dict[str, Any] = {"source": where, "streaming": True}
        else:
            trained_on, held_out = self._split(photos)
            self.data = CropPairs(photos, trained_on, config, skipped)
            held = list(held_out.values())
            self.record = {"source": where, "rows": len(photos), **_record(photos, trained_on, held_out)}
        self.held_out = held_out_crops(held, config.validation_size) if held else None

    def _split(self, photos: Photos) -> tuple[list[int], dict[int, Tensor]]:
        """Indices that are trained on, and the photographs that are held out by index."""
        config = self.config
        usable = list(range(len(photos)))
        if config.check_photos:
            with self.display.counting("checking photographs", len(photos)) as notice:
                usable = check_all(photos, config.smallest_photo, self.skipped, self.pool, notice)
            self.display.report_skipped()
        return hold_out(photos, usable, config.validation_photos, config.seed, config.smallest_photo, self.skipped)

    def fitting_crops(self, batches: int) -> Iterator[Tensor]:
        """Crop pairs of whole batches, uint8 (B, 2, 3, S, S), to fit the head to.

        Raises:
            DatasetError: The photographs are a stream, which has no first batch to come back to.
        """
        if isinstance(self.data, PhotoStream):
            raise DatasetError("head: needs photographs that can be read by index, not a stream")
        return self.data.batches(range(self.config.batch_size), range(batches), self.pool)

    def crops(self, places: range, step: int, position: Any) -> Iterator[tuple[Tensor, Any]]:
        """Crops of some places of the batch, from a step and its data position on."""
        config, steps = self.config, range(step, self.config.steps)
        if not isinstance(self.data, PhotoStream):
            return zip(self.data.batches(places, steps, self.pool), range(step + 1, config.steps + 1), strict=True)
        begin, skip = (int(position[0]), int(position[1])), self._held_out_rows
        return self.data.batches(config, places, steps, skip, begin, self.skipped, self.pool)


def _record(photos: Photos, trained_on: Sequence[int], held_out: Iterable[int]) -> dict[str, Any]:
    # The files of a large dataset are costly to list; their number still tells most changes.
    listed = len(photos) <= MOST_NAMES
    return {
        "trained_on": len(trained_on),
        "held_out": [Path(photos.name(index)).name for index in held_out],
        "fingerprint": f"{derive_seed(*map(photos.stamp, trained_on)):016x}" if listed else None,
    }
