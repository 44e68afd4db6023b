"""Crop pairs for every step: read, decoded and cut by threads, ahead of the network.

The crops at place g of step t depend on the seed, t and g only. A process of a distributed run cuts only its own
places out of the global batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import torch
from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.draws import draw_crops
from qualiclip_plugin.training.photo_stream import PhotoStream
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.training.usable_photos import PhotoOrder, PhotoSource, SkipList, read_or_replace

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
        photos: PhotoSource,
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
