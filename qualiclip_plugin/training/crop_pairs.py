"""Crop pairs: where a photograph is read and cut, and another one takes its place if it cannot be used.

The crops of a draw depend on the seed and the draw's number only, so a run can be stopped, continued, or spread over
processes without a change.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from functools import lru_cache
from itertools import islice
from typing import TypeVar

import torch
from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.draws import draw_crops
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.training.usable_photos import PhotoSource, check_size
from qualiclip_plugin.utils.errors import DatasetError, ImageError

STEPS_AHEAD = 3
"""Steps whose crops are being prepared while the network works."""

T = TypeVar("T")
R = TypeVar("R")


class CropPairs(torch.utils.data.Dataset[Tensor]):
    """Crop pairs of photographs that can be read by index, one for each draw of a run.

    An epoch draws every photograph once, in an order of its own.

    Args:
        skipped: Receives photographs that cannot be used, by name, with the reason.
    """

    def __init__(
        self, photos: PhotoSource, indices: Sequence[int], config: TrainConfig, skipped: dict[str, str]
    ) -> None:
        self.photos, self.indices, self.config, self.skipped = photos, indices, config, skipped

    def __len__(self) -> int:
        return self.config.steps * self.config.batch_size

    def __getitem__(self, draw: int) -> Tensor:
        """The crops of a draw, counted from the start of the run: uint8, (2, 3, S, S)."""
        step, place = divmod(draw, self.config.batch_size)
        return self.cut(self.index_of(draw), self.config.seed, "crop", step, place)

    def index_of(self, draw: int) -> int:
        """The photograph of a draw."""
        epoch, place = divmod(draw, len(self.indices))
        return self.indices[int(_order(len(self.indices), self.config.seed, epoch)[place])]

    def cut(self, index: int, *key: int | str) -> Tensor:
        """Crops of a photograph, or of another one where it cannot be used, drawn by generators of ``key``.

        Raises:
            DatasetError: A hundred photographs in a row cannot be used.
        """
        replacements = generator(*key, "replacement")
        for _ in range(100):
            try:
                photo = check_size(self.photos.read(index), self.config.smallest_photo)
                return draw_crops(photo, self.config, generator(*key))
            except ImageError as error:
                self.skipped.setdefault(self.photos.name(index), str(error))
            index = self.indices[int(torch.randint(len(self.indices), (), generator=replacements))]
        raise DatasetError("100 photographs in a row cannot be used; see skipped.csv")

    def batches(self, places: range, steps: range, pool: Executor) -> Iterator[Tensor]:
        """Crops of some places of the batch for every step, uint8 (b, 2, 3, S, S), cut ahead by threads."""
        draws = (step * self.config.batch_size + place for step in steps for place in places)
        crops = map_ahead(pool, self.__getitem__, draws, STEPS_AHEAD * len(places))
        for _ in steps:
            yield torch.stack(list(islice(crops, len(places))))


@lru_cache(maxsize=2)
def _order(count: int, seed: int, epoch: int) -> Tensor:
    return torch.randperm(count, generator=generator(seed, "epoch", epoch))


def map_ahead(pool: Executor, function: Callable[[T], R], items: Iterable[T], ahead: int) -> Iterator[R]:
    """``map`` in order, with at most ``ahead`` items in the pool at a time."""
    waiting: deque[Future[R]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()
