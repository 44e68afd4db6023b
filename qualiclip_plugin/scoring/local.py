"""From a list of image files to one row each: a score, or the reason why there is none.

Files are decoded ahead, images of equal size are scored together, and rows come back in the order of the files. On
the CPU a batch holds one image by default, because larger batches are not faster there. The score of a file is then
the same bit for bit, for any other files, any order and any number of workers. With larger batches, or another
number of torch threads, fp32 scores stay within ``BATCH_TOLERANCE`` of it. On a GPU, fp32 means fp32:
TensorFloat-32 is off and algorithms are deterministic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.utils.decode_ahead import WAITING_PIXELS, Read, in_processes, in_threads
from qualiclip_plugin.utils.errors import ConfigError, ImageError, first_line, out_of_memory
from qualiclip_plugin.utils.images import MAX_PIXELS, WHITE, DecodedImage, decode_image, to_float
from qualiclip_plugin.utils.shown import portable

BATCH_TOLERANCE = 1e-6
"""Largest difference in a CPU fp32 score that the batch size or the number of threads may make."""

GPU_BATCH_SIZE = 16
BATCH_PIXELS = 2**24  # 16 images of one million pixels; a larger image is a batch of its own


@dataclass(frozen=True)
class ScoredImage:
    """One row of the result.

    Attributes:
        path: The file's name as valid Unicode text.
        score: In [0, 1], higher is better; ``None`` where there is an error.
        attributes: Score in [0, 1] by prompt pair name; empty unless requested.
        width: Pixels after the EXIF rotation; ``None`` where the image could not be decoded.
        height: The same.
        error: Why there is no score; names the file.
        note: What was decided about the pixels before scoring: depth, page, profile, rotation, background, frame.

    Examples:
        >>> from qualiclip_plugin.scoring.local import ScoredImage
        >>> ScoredImage("photo.png", score=0.5, width=640, height=480).error is None
        True
    """

    path: str
    score: float | None = None
    attributes: Mapping[str, float] = field(default_factory=dict)
    width: int | None = None
    height: int | None = None
    error: str | None = None
    note: str | None = None


@dataclass(frozen=True)
class StoredImage:
    """An image that is no file of this machine.

    Attributes:
        name: How tables call it.
        read: Gives the bytes of its file, in a thread that decodes. What it raises becomes the row's error.
    """

    name: str
    read: Callable[[], bytes]

    def decode(self, **options: Any) -> DecodedImage:
        """:func:`images.decode_image` with errors that name the image."""
        try:
            content = self.read()
        except Exception as error:  # storage libraries raise types of their own
            raise ImageError(f"{self.name}: cannot be read: {first_line(error)}") from error
        try:
            return decode_image(content, **options)
        except ImageError as error:
            reason = str(error).removeprefix(f"image of {len(content)} bytes: ")
            raise ImageError(f"{self.name}: {reason}") from error


_About = ScoredImage | tuple[str, tuple[str, ...]]
"""Of an image that was read its name and notes, else its row."""


@dataclass(frozen=True)
class _Waiting:
    index: int
    path: str
    pixels: Tensor  # (3, H, W)
    notes: tuple[str, ...]

    @property
    def size(self) -> tuple[int, int]:
        return self.pixels.shape[1], self.pixels.shape[2]

    def row(self, **values: object) -> ScoredImage:
        height, width = self.size
        note = "; ".join(self.notes) or None
        return ScoredImage(self.path, width=width, height=height, note=note, **values)  # type: ignore[arg-type]


def score_files(
    paths: Iterable[str | PathLike[str] | StoredImage],
    model: nn.Module,
    *,
    attributes: bool = False,
    batch_size: int = 0,
    workers: int = 2,
    processes: bool = False,
    exif: bool = True,
    icc: bool = True,
    background: tuple[int, int, int] = WHITE,
    max_pixels: int = MAX_PIXELS,
) -> Iterator[ScoredImage]:
    """Score image files, one row each, in their order; an image that cannot be scored is a row with its error.

    Args:
        paths: Image files (``images.images_in`` makes them from folders and patterns), or images in other storage.
        model: Images (N, 3, H, W) in [0, 1], or in bytes if it has ``reads_bytes`` -> scores (N, 1); with
            ``attributes=True`` also a mapping of names to (N,). It runs on its own device.
        attributes: Also return the scores of the single prompt pairs.
        batch_size: Most images in a batch; 0 chooses: 1 on the CPU, 16 elsewhere. Large images make smaller ones.
        workers: How many decode ahead; 0 decodes between batches.
        processes: Decode in processes, not in threads; see :mod:`qualiclip_plugin.utils.decode_ahead`. The program
            must keep its own work behind ``if __name__ == "__main__":``.
        exif: Apply the EXIF rotation.
        icc: Convert the colours of an ICC profile to sRGB.
        background: RGB in 0..255 behind transparent pixels.
        max_pixels: Larger images are refused.

    Raises:
        ConfigError: ``batch_size`` or ``workers`` is negative, or there are 0 processes.
        MachineError: A process that decodes was killed.

    Examples:
        >>> from qualiclip_plugin.scoring.local import score_files
        >>> from qualiclip_plugin.weights import load_model
        >>> for row in score_files(["photo.png", "missing.png"], load_model("lite")):
        ...     print(row.path, row.error or f"{row.score:.2f}")
        photo.png 0.97
        missing.png missing.png: no such file
    """
    if processes and workers < 1:
        raise ConfigError("processes need workers: at least 1")
    if batch_size < 0 or workers < 0:
        raise ConfigError(f"batch_size and workers must not be negative, got {batch_size} and {workers}")
    device = next((one.device for one in chain(model.parameters(), model.buffers())), torch.device("cpu"))
    batcher = _Batcher(batch_size or (1 if device.type == "cpu" else GPU_BATCH_SIZE))
    read = partial(_read, exif=exif, icc=icc, background=background, max_pixels=max_pixels)
    decoded = (in_processes if processes else in_threads)(read, paths, workers)
    return _in_order(_scored(decoded, batcher, model, device, attributes))


def check_device(name: str) -> str:
    """Turn ``auto`` into the device to use, and check any other name.

    Raises:
        ConfigError: The name is no device, or this machine lacks it.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.zeros(1, device=name).item()  # some take tensors and give nothing back
    except Exception as error:  # torch reports a missing device by type of backend: AssertionError, RuntimeError, ...
        raise ConfigError(f"device {name!r} cannot be used: {first_line(error)}") from error
    return name


def _read(source: str | PathLike[str] | StoredImage, **options: Any) -> Read[_About]:
    if isinstance(source, StoredImage):
        name, decode = source.name, source.decode
    else:
        name, decode = portable(source), partial(decode_image, Path(source))
    try:
        image = decode(**options)
    except ImageError as error:
        return Read(ScoredImage(name, error=str(error)), None)
    return Read((name, image.notes), image.pixels.permute(1, 2, 0).numpy())


class _Batcher:
    """Collects images by size until a batch is full or too many pixels wait."""

    def __init__(self, batch_size: int) -> None:
        self.batch_size = batch_size
        self.waiting: dict[tuple[int, int], list[_Waiting]] = {}
        self.pixels = 0

    def add(self, item: _Waiting) -> Iterator[list[_Waiting]]:
        """Take one image; yield the batches that became due."""
        batch = self.waiting.setdefault(item.size, [])
        batch.append(item)
        area = math.prod(item.size)
        self.pixels += area
        if len(batch) >= self.batch_size or (len(batch) + 1) * area > BATCH_PIXELS:
            yield self._take(item.size)
        while self.pixels > WAITING_PIXELS:
            yield self._take(next(iter(self.waiting)))

    def rest(self) -> Iterator[list[_Waiting]]:
        """Yield what still waits."""
        while self.waiting:
            yield self._take(next(iter(self.waiting)))

    def _take(self, size: tuple[int, int]) -> list[_Waiting]:
        batch = self.waiting.pop(size)
        self.pixels -= len(batch) * math.prod(size)
        return batch


def _scored(
    items: Iterable[Read[_About]],
    batcher: _Batcher,
    model: nn.Module,
    device: torch.device,
    attributes: bool,
) -> Iterator[tuple[int, ScoredImage]]:
    for index, item in enumerate(items):
        about, pixels = item.about, item.pixels
        if isinstance(about, ScoredImage):
            yield index, about
        elif pixels is not None:
            for batch in batcher.add(_Waiting(index, about[0], torch.from_numpy(pixels).permute(2, 0, 1), about[1])):
                yield from _score_batch(batch, model, device, attributes)
    for batch in batcher.rest():
        yield from _score_batch(batch, model, device, attributes)


def _in_order(rows: Iterable[tuple[int, ScoredImage]]) -> Iterator[ScoredImage]:
    early, following = {}, 0
    for index, row in rows:
        early[index] = row
        while following in early:
            yield early.pop(following)
            following += 1


def _score_batch(
    batch: list[_Waiting], model: nn.Module, device: torch.device, attributes: bool
) -> Iterator[tuple[int, ScoredImage]]:
    try:
        scores, named = _forward(batch, model, device, attributes)
    except (ImageError, MemoryError, RuntimeError) as error:
        if not isinstance(error, ImageError) and not out_of_memory(error):
            raise
        if len(batch) > 1:
            for item in batch:
                yield from _score_batch([item], model, device, attributes)
            return
        reason = str(error) if isinstance(error, ImageError) else f"not enough memory on {device} to score it"
        yield batch[0].index, batch[0].row(error=f"{batch[0].path}: {reason}")
        return
    for position, item in enumerate(batch):
        yield item.index, _row(item, scores[position], {name: values[position] for name, values in named.items()})


def _row(item: _Waiting, score: float, attributes: Mapping[str, float]) -> ScoredImage:
    if all(math.isfinite(value) for value in (score, *attributes.values())):
        return item.row(score=score, attributes=attributes)
    return item.row(error=f"{item.path}: the score is not a finite number ({score}); try precision fp32")


@torch.inference_mode()
def _forward(
    batch: list[_Waiting], model: nn.Module, device: torch.device, attributes: bool
) -> tuple[list[float], dict[str, list[float]]]:
    pixels = [item.pixels for item in batch]
    images = (torch.stack(pixels) if len(pixels) > 1 else pixels[0][None]).to(device)
    if not getattr(model, "reads_bytes", False):
        images = to_float(images).contiguous()
    with exact_fp32():
        if not attributes:
            return _floats(model(images)), {}
        scores, named = model(images, attributes=True)
        return _floats(scores), {name: _floats(values) for name, values in named.items()}


def _floats(values: Tensor) -> list[float]:
    return values.float().flatten().tolist()
