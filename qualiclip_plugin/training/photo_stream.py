"""Photographs that come as a stream: a Hugging Face dataset that is too large to hold or to download."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.crop_pairs import STEPS_AHEAD, map_ahead
from qualiclip_plugin.training.draws import draw_crops
from qualiclip_plugin.training.seeds import derive_seed, generator
from qualiclip_plugin.training.usable_photos import check_size, decode
from qualiclip_plugin.utils.errors import DatasetError, ImageError

Position = tuple[int, int]
"""An epoch, and rows that were consumed in it."""


@dataclass
class PhotoStream:
    """Photographs of an iterable Hugging Face dataset, endlessly, in an order that the seed decides.

    Attributes:
        rows: The iterable dataset, image column undecoded.
    """

    rows: Any
    column: str
    label: str

    def held_out(self, count: int, smallest: int, skipped: dict[str, str]) -> tuple[list[Tensor], int]:
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
            photo = _usable_or_none(row[self.column], smallest, skipped)
            photos += [] if photo is None else [photo]
            rows += 1
        return photos, rows

    def read(
        self, config: TrainConfig, skip: int, position: Position, skipped: dict[str, str], pool: Executor
    ) -> Iterator[tuple[Tensor, Position]]:
        """Usable photographs from a position on, without end.

        Every process reads the whole stream, so that all of them agree on which rows are skipped.

        Args:
            skip: Rows at the start that are held out.
            skipped: Receives photographs that cannot be used, by name, with the reason.

        Yields:
            A photograph, uint8 (3, H, W), and the position after it.

        Raises:
            DatasetError: An epoch without a usable photograph.
        """
        epoch, consumed = position
        while True:
            seed = derive_seed(config.seed, "stream", epoch) % 2**32
            rows = self.rows.skip(skip).shuffle(seed=seed, buffer_size=config.shuffle_buffer)
            usable = consumed
            images = (row[self.column] for row in rows.skip(consumed))
            decode_one = lambda item: _usable_or_none(item, config.smallest_photo, skipped)
            for photo in map_ahead(pool, decode_one, images, STEPS_AHEAD * config.batch_size):
                consumed += 1
                if photo is not None:
                    usable += 1
                    yield photo, (epoch, consumed)
            if not usable:
                raise DatasetError(f"photographs {self.label!r}: none can be used; see skipped.csv")
            epoch, consumed = epoch + 1, 0

    def batches(
        self,
        config: TrainConfig,
        places: range,
        steps: range,
        skip: int,
        position: Position,
        skipped: dict[str, str],
        pool: Executor,
    ) -> Iterator[tuple[Tensor, Position]]:
        """As :meth:`CropPairs.batches`, each batch with the position after it; other arguments as of :meth:`read`."""
        photos = self.read(config, skip, position, skipped, pool)
        for step in steps:
            batch = [next(photos) for _ in range(config.batch_size)]
            draws = {place: generator(config.seed, "crop", step, place) for place in places}
            crops = [draw_crops(batch[place][0], config, drawn) for place, drawn in draws.items()]
            yield torch.stack(crops), batch[-1][1]


def _usable_or_none(image: dict[str, Any] | None, smallest: int, skipped: dict[str, str]) -> Tensor | None:
    try:
        return check_size(decode(image), smallest)
    except ImageError as error:
        skipped.setdefault(_stream_name(image), str(error))
        return None


def _stream_name(image: dict[str, Any] | None) -> str:
    """The path of an image, or its content's hash: shuffled rows have no number that a user would find them by."""
    path = image.get("path") if image else None
    content = (image or {}).get("bytes") or b""
    return str(path) if path else f"image with sha256 {hashlib.sha256(content).hexdigest()}"
