"""Crop pairs for every step: read, decoded and cut by threads, ahead of the network.

The crops at place g of step t depend on the seed, t and g only. A process of a distributed run cuts only its own
places out of the global batch. Both functions yield the crops of this process for every step up to the last one,
uint8 (b, 2, 3, S, S), and the data position after the step.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.draws import draw_crops
from qualiclip_plugin.training.photo_stream import PhotoStream
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.training.usable_photos import PhotoOrder, PhotoSource, SkipList, read_or_replace

STEPS_AHEAD = 3
"""Steps whose crops are being prepared while the network works."""


def indexed_crops(
    photos: PhotoSource,
    indices: list[int],
    config: TrainConfig,
    places: range,
    first_step: int,
    pool: ThreadPoolExecutor,
    skipped: SkipList,
) -> Iterator[tuple[Tensor, int]]:
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
    order = PhotoOrder(indices, config.seed)

    def cut(step: int, place: int, index: int) -> Tensor:
        key = (config.seed, "crop", step, place)
        photo = read_or_replace(photos, index, indices, config.smallest_photo, skipped, key)
        return draw_crops(photo, config, generator(*key))

    waiting: deque[list[Future[Tensor]]] = deque()
    upcoming = first_step
    for step in range(first_step, config.steps):
        while upcoming < min(step + STEPS_AHEAD, config.steps):
            drawn = [(place, order[upcoming * config.batch_size + place]) for place in places]
            waiting.append([pool.submit(cut, upcoming, place, index) for place, index in drawn])
            upcoming += 1
        yield torch.stack([future.result() for future in waiting.popleft()]), step + 1


def streamed_crops(
    stream: PhotoStream,
    held_out_rows: int,
    config: TrainConfig,
    places: range,
    first_step: int,
    position: tuple[int, int],
    pool: ThreadPoolExecutor,
    skipped: SkipList,
) -> Iterator[tuple[Tensor, tuple[int, int]]]:
    """Crops from a stream of photographs.

    Args:
        stream: The photographs.
        held_out_rows: Rows at the start of the stream that are not trained on.
        config, places, first_step, pool, skipped: As of :func:`indexed_crops`.
        position: (epoch, rows consumed) at the first step.
    """
    photos = stream.read(
        seed=config.seed,
        buffer=config.shuffle_buffer,
        skip=held_out_rows,
        position=position,
        smallest=config.smallest_photo,
        skipped=skipped,
        pool=pool,
        ahead=STEPS_AHEAD * config.batch_size,
    )
    for step in range(first_step, config.steps):
        batch = [next(photos) for _ in range(config.batch_size)]
        draws = {place: generator(config.seed, "crop", step, place) for place in places}
        crops = [draw_crops(batch[place][0], config, drawn) for place, drawn in draws.items()]
        yield torch.stack(crops), batch[-1][1]
