"""Photographs that come as a stream: a Hugging Face dataset that is too large to hold or to download."""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from qualiclip_plugin.training.seeds import derive_seed
from qualiclip_plugin.training.usable_photos import SkipList, check_size, decode
from qualiclip_plugin.utils.errors import DatasetError, ImageError


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
            photo = _usable_or_none(row[self.column], smallest, skipped)
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
            decode_one = lambda item: _usable_or_none(item, smallest, skipped)
            for photo in _map_ahead(pool, decode_one, images, ahead):
                consumed += 1
                if photo is not None:
                    usable += 1
                    yield photo, (epoch, consumed)
            if not usable:
                raise DatasetError(f"photographs {self.label!r}: none can be used; see skipped.csv")
            epoch, consumed = epoch + 1, 0


def _usable_or_none(image: dict[str, Any] | None, smallest: int, skipped: SkipList) -> Tensor | None:
    try:
        return check_size(decode(image), smallest)
    except ImageError as error:
        skipped.add(_stream_name(image), str(error))
        return None


def _stream_name(image: dict[str, Any] | None) -> str:
    """The path of an image, or its content's hash: shuffled rows have no number that a user would find them by."""
    path = image.get("path") if image else None
    content = (image or {}).get("bytes") or b""
    return str(path) if path else f"image with sha256 {hashlib.sha256(content).hexdigest()}"


def _map_ahead(pool: Executor, function: Callable[[Any], Any], items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """``map`` in order, with at most ``ahead`` items in the pool at a time."""
    waiting: deque[Future[Any]] = deque()
    for item in items:
        waiting.append(pool.submit(function, item))
        if len(waiting) > ahead:
            yield waiting.popleft().result()
    for future in waiting:
        yield future.result()
