"""Crop pairs for every step: read, decoded and cut by threads, ahead of the network.

The crops at place g of step t depend on the seed, t and g only. A process of a distributed run cuts only its own
places out of the global batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from qualiclip_plugin.errors import DatasetError
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.display import Display
from qualiclip_plugin.training.draws import draw_crops
from qualiclip_plugin.training.generators import derive_seed, generator
from qualiclip_plugin.training.photos import (
    PhotoOrder,
    Photos,
    PhotoStream,
    SkipList,
    check_all,
    hold_out,
    open_photos,
    read_or_replace,
)
from qualiclip_plugin.training.validation import held_out_crops

MOST_NAMES = 10_000
"""Photographs whose names are compared when a run is continued."""
STEPS_AHEAD = 3
"""Steps whose crops are being prepared while the network works."""


class CropLoader(Protocol):
    """Crops in the order of the steps."""

    def __iter__(self) -> Iterator[tuple[Tensor, Any]]:
        """Yield the crops of this process, uint8 (b, 2, 3, S, S), and the data position after the step."""
        ...


class IndexedCrops:
    """Crops from photographs that can be read by index.

    Args:
        photos: The photographs.
        indices: Those that are trained on.
        config: Seed, sizes and batch.
        places: Places of the global batch that this process cuts.
        first_step: Where to start.
        pool: Threads.
        skipped: Receives photographs that cannot be used.
    """

    def __init__(
        self,
        photos: Photos,
        indices: list[int],
        config: TrainConfig,
        places: range,
        first_step: int,
        pool: ThreadPoolExecutor,
        skipped: SkipList,
    ) -> None:
        self.photos, self.config, self.places, self.first_step = photos, config, places, first_step
        self.pool, self.skipped, self.indices = pool, skipped, indices
        self.order = PhotoOrder(indices, config.seed)

    def __iter__(self) -> Iterator[tuple[Tensor, int]]:
        waiting: deque[list[Future[Tensor]]] = deque()
        upcoming = self.first_step
        for step in range(self.first_step, self.config.steps):
            while upcoming < min(step + STEPS_AHEAD, self.config.steps):
                waiting.append([self._submit(upcoming, place) for place in self.places])
                upcoming += 1
            yield torch.stack([future.result() for future in waiting.popleft()]), step + 1

    def _submit(self, step: int, place: int) -> Future[Tensor]:
        index = self.order[step * self.config.batch_size + place]
        return self.pool.submit(self._cut, step, place, index)

    def _cut(self, step: int, place: int, index: int) -> Tensor:
        config = self.config
        key = (config.seed, "crop", step, place)
        photo = read_or_replace(self.photos, index, self.indices, config.smallest_photo, self.skipped, key)
        return draw_crops(photo, config, generator(*key))


class StreamedCrops:
    """Crops from a stream of photographs.

    Args:
        stream: The photographs.
        held_out_rows: Rows at the start of the stream that are not trained on.
        config: Seed, sizes and batch.
        places: Places of the global batch that this process cuts.
        first_step: Where to start.
        position: (epoch, rows consumed) at that step.
        pool: Threads.
        skipped: Receives photographs that cannot be used.
    """

    def __init__(
        self,
        stream: PhotoStream,
        held_out_rows: int,
        config: TrainConfig,
        places: range,
        first_step: int,
        position: tuple[int, int],
        pool: ThreadPoolExecutor,
        skipped: SkipList,
    ) -> None:
        self.config, self.places, self.first_step, self.pool = config, places, first_step, pool
        self._read: Callable[[], Iterator[tuple[Tensor, tuple[int, int]]]] = lambda: stream.read(
            seed=config.seed,
            buffer=config.shuffle_buffer,
            skip=held_out_rows,
            position=position,
            smallest=config.smallest_photo,
            skipped=skipped,
            pool=pool,
            ahead=STEPS_AHEAD * config.batch_size,
        )

    def __iter__(self) -> Iterator[tuple[Tensor, tuple[int, int]]]:
        photos = self._read()
        for step in range(self.first_step, self.config.steps):
            batch = [next(photos) for _ in range(self.config.batch_size)]
            crops = [
                draw_crops(batch[place][0], self.config, generator(self.config.seed, "crop", step, place))
                for place in self.places
            ]
            yield torch.stack(crops), batch[-1][1]


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
        """Part the usable photographs; returns the held-out ones."""
        config = self.config
        usable = list(range(len(photos)))
        if config.check_photos:
            with self.display.counting("checking photographs", len(photos)) as notice:
                usable = check_all(photos, config.smallest_photo, self.skipped, self.pool, notice)
        self._indices, self._held_indices = hold_out(usable, config.validation_photos, config.seed)
        return [
            read_or_replace(photos, index, self._held_indices, config.smallest_photo, self.skipped, (index,))
            for index in self._held_indices
        ]

    def _indices_record(self, photos: Photos) -> dict[str, Any]:
        # Names of a large dataset are costly to list; their number still tells most changes.
        listed = len(photos) <= MOST_NAMES
        return {
            "trained_on": len(self._indices),
            "held_out": [Path(photos.name(index)).name for index in self._held_indices],
            "fingerprint": f"{derive_seed(*map(photos.name, self._indices)):016x}" if listed else None,
        }

    def fitting_crops(self, batches: int) -> Iterator[Tensor]:
        """Crop pairs of whole batches, uint8 (B, 2, 3, S, S), to fit the head to.

        Raises:
            DatasetError: The photographs are a stream, which has no first batch to come back to.
        """
        if isinstance(self.photos, PhotoStream):
            raise DatasetError("head_fit needs photographs that can be read by index, not a stream")
        config = replace(self.config, steps=batches)
        every = range(config.batch_size)
        for crops, _ in IndexedCrops(self.photos, self._indices, config, every, 0, self.pool, self.skipped):
            yield crops

    def crops(self, places: range, step: int, position: Any) -> CropLoader:
        """Crops of some places of the batch, from a step and its data position on."""
        config = self.config
        if isinstance(self.photos, PhotoStream):
            epoch, rows = int(position[0]), int(position[1])
            return StreamedCrops(
                self.photos, self._held_out_rows, config, places, step, (epoch, rows), self.pool, self.skipped
            )
        return IndexedCrops(self.photos, self._indices, config, places, step, self.pool, self.skipped)
