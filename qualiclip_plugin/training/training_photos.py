"""The photographs of a run: which are trained on, which are held out, and the crops of every step."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.crop_loader import indexed_crops, streamed_crops
from qualiclip_plugin.training.photo_stream import PhotoStream
from qualiclip_plugin.training.photos import Photos, open_photos
from qualiclip_plugin.training.progress import Display
from qualiclip_plugin.training.seeds import derive_seed
from qualiclip_plugin.training.usable_photos import SkipList, check_all, hold_out
from qualiclip_plugin.training.validation import held_out_crops
from qualiclip_plugin.utils.errors import DatasetError

MOST_NAMES = 10_000
"""Photographs whose names are compared when a run is continued."""


class TrainingPhotos:
    """The photographs of a run: which are trained on, which are held out, and their crops.

    Args:
        config: The configuration.
        where: See ``photos.open_photos``.
        pool: Threads that read and decode.
        skipped: Receives photographs that cannot be used.
        display: Shows the progress of the check.

    Attributes:
        held_out: Pristine crops for validation, (N, 3, S, S) in [0, 1], or None.
        record: What ``run.json`` and the card say about them.

    Raises:
        DatasetError: There are none, or too few.
    """

    def __init__(
        self, config: TrainConfig, where: str, pool: ThreadPoolExecutor, skipped: SkipList, display: Display
    ) -> None:
        self.config, self.pool, self.skipped, self.display = config, pool, skipped, display
        photos = open_photos(where, column=config.image_column, split=config.split, streaming=config.streaming)
        self.photos: Photos | PhotoStream = photos
        if isinstance(photos, PhotoStream):
            held, self._held_out_rows = photos.held_out(config.validation_photos, config.smallest_photo, skipped)
            self.record: dict[str, Any] = {"source": where, "streaming": True}
        else:
            held = self._split(photos)
            self.record = {"source": where, "rows": len(photos), **self._indices_record(photos)}
        self.held_out = held_out_crops(held, config.validation_size) if held else None

    def _split(self, photos: Photos) -> list[Tensor]:
        """Part the photographs; returns the held-out ones."""
        config = self.config
        usable = list(range(len(photos)))
        if config.check_photos:
            with self.display.counting("checking photographs", len(photos)) as notice:
                usable = check_all(photos, config.smallest_photo, self.skipped, self.pool, notice)
            self.display.report_skipped()
        self._indices, held = hold_out(
            photos, usable, config.validation_photos, config.seed, config.smallest_photo, self.skipped
        )
        self._held_indices = list(held)
        return list(held.values())

    def _indices_record(self, photos: Photos) -> dict[str, Any]:
        # The files of a large dataset are costly to list; their number still tells most changes.
        listed = len(photos) <= MOST_NAMES
        return {
            "trained_on": len(self._indices),
            "held_out": [Path(photos.name(index)).name for index in self._held_indices],
            "fingerprint": f"{derive_seed(*map(photos.stamp, self._indices)):016x}" if listed else None,
        }

    def fitting_crops(self, batches: int) -> Iterator[Tensor]:
        """Crop pairs of whole batches, uint8 (B, 2, 3, S, S), to fit the head to.

        Raises:
            DatasetError: The photographs are a stream, which has no first batch to come back to.
        """
        if isinstance(self.photos, PhotoStream):
            raise DatasetError("head: needs photographs that can be read by index, not a stream")
        config = replace(self.config, steps=batches)
        every = range(config.batch_size)
        for crops, _ in indexed_crops(self.photos, self._indices, config, every, 0, self.pool, self.skipped):
            yield crops

    def crops(self, places: range, step: int, position: Any) -> Iterator[tuple[Tensor, Any]]:
        """Crops of some places of the batch, from a step and its data position on."""
        config = self.config
        if isinstance(self.photos, PhotoStream):
            epoch, rows = int(position[0]), int(position[1])
            return streamed_crops(
                self.photos, self._held_out_rows, config, places, step, (epoch, rows), self.pool, self.skipped
            )
        return indexed_crops(self.photos, self._indices, config, places, step, self.pool, self.skipped)
