"""Decoding ahead of the scorer, and batches of equal size."""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.data.open import ImageSet
from harness.data.resizing import resize_shorter_side
from harness.data.rows import Stream, image_bytes
from qualiclip_plugin.utils.decode_ahead import Read, in_processes, in_threads
from qualiclip_plugin.utils.errors import DatasetError, ImageError, MachineError, out_of_room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Pixels = NDArray[np.uint8]

MAX_WAITING_PIXELS = 64_000_000
"""Decoded pixels that may wait for others of their size; 3 bytes each."""

Undecoded = tuple[int, Mapping[str, Any], str]
"""Position in the dataset, undecoded image of ``datasets``, SHA-256 of the bytes that are expected."""


@dataclass(frozen=True)
class Decoded:
    """One image, or why there is none.

    Attributes:
        pixels: RGB, uint8, (3, H, W); none if it cannot be read.
        changed: Whether the file is another one than when the dataset was opened.
        full: Whether this machine had no room to read it, which says nothing of the image.
    """

    index: int
    pixels: Pixels | None
    error: str = ""
    changed: bool = False
    full: bool = False


class Kept:
    """Decoded images that later scorers need too: the first ones, as many as fit.

    Args:
        room: Bytes that they may take.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._images: dict[Hashable, Pixels] = {}

    def get(self, key: Hashable) -> Pixels | None:
        """The pixels of an image that is kept."""
        return self._images.get(key)

    def add(self, key: Hashable, pixels: Pixels) -> None:
        """Keep an image that is not kept yet, where there is room."""
        if pixels.nbytes <= self.room:
            self.room -= pixels.nbytes
            self._images[key] = pixels


def decoded(
    images: ImageSet, indices: Sequence[int], workers: int = 0, *, processes: bool = False, kept: Kept | None = None
) -> Iterator[Decoded]:
    """Decode images in order; those that are kept come first and are not read again.

    Args:
        indices: Positions in it, ascending for a stream.
        workers: How many decode ahead; 0 decodes here, when asked.
        processes: They are processes, not threads.
        kept: Takes and gives decoded images.

    Raises:
        DatasetError: A file was changed or removed since the dataset was opened, or a stream broke off or holds
            something else than before.
        MachineError: A process was killed or cannot be started, or there is no room to read an image.
    """
    kept = kept or Kept(0)
    hashes = images.table["image_hash"].tolist()
    how: dict[str, Any] = {"exif": images.spec.exif, "icc": images.spec.icc, "resize": images.spec.resize}

    def key(index: int) -> Hashable:
        return (hashes[index], *how.values())

    there = {index: pixels for index in indices if (pixels := kept.get(key(index))) is not None}
    for index, pixels in there.items():
        yield Decoded(index, pixels)
    if not (rest := [index for index in indices if index not in there]):
        return
    items: Iterator[Undecoded] = ((index, image, hashes[index]) for index, image in _undecoded(images, rest))
    ahead = in_processes if processes else in_threads
    for read in ahead(partial(_read, **how), items, workers):
        _check(read.about, images)
        if read.pixels is not None:
            kept.add(key(read.about.index), read.pixels)
        yield replace(read.about, pixels=read.pixels)


def _undecoded(images: ImageSet, indices: Sequence[int]) -> Iterator[tuple[int, Mapping[str, Any]]]:
    rows: Any = images.rows
    if isinstance(rows, Stream):
        yield from ((index, {"bytes": content, "path": None}) for index, content in rows.contents(indices))
    else:
        yield from ((index, rows[index]["image"]) for index in indices)


def _check(item: Decoded, images: ImageSet) -> None:
    if item.full:
        raise MachineError(f"{images.spec.name}: {item.error}; what was scored is kept, make room and run again")
    if item.changed and isinstance(images.rows, Stream):
        raise DatasetError(f"{images.rows.origin}: image {item.index} is not what it was when it was indexed")
    if item.changed:
        # Its score would be kept under the content that it had before.
        name = images.table["file_name"].iloc[item.index]
        raise DatasetError(
            f"{images.spec.name}: {name} was changed or removed while the dataset was scored; run again"
        )


def _read(item: Undecoded, **how: Any) -> Read[Decoded]:
    """Read one image as a dataset wants it read, in a process that decodes or here."""
    index, image, expected = item
    try:
        content = image_bytes(image)
        if hashlib.sha256(content).hexdigest() != expected:
            return Read(Decoded(index, None, changed=True), None)
        return Read(Decoded(index, None), _pixels(content, **how))
    except FileNotFoundError:
        return Read(Decoded(index, None, changed=True), None)
    except (ImageError, OSError, MemoryError) as error:
        full = isinstance(error, OSError) and out_of_room(error)
        return Read(Decoded(index, None, f"{type(error).__name__}: {error}"[:500], full=full), None)


def _pixels(content: bytes, *, exif: bool, icc: bool, resize: int) -> Pixels:
    from qualiclip_plugin.utils.images import read_image

    pixels = read_image(content, exif=exif, icc=icc)
    found: Pixels = (resize_shorter_side(pixels, resize) if resize else pixels).numpy()
    return found


def batches(items: Iterable[Decoded], fits: Callable[[int, int, int], bool]) -> Iterator[list[Decoded]]:
    """Group images of one size.

    Args:
        items: Images in any order of sizes.
        fits: Whether so many images of a height and width are one batch.

    Yields:
        Images of one size, in their order; an unreadable image is a batch of its own. A batch leaves as soon as one
        more image would not fit, or when too many pixels wait.
    """
    waiting: dict[tuple[int, int], list[Decoded]] = {}
    for item in items:
        if item.pixels is None:
            yield [item]
            continue
        height, width = item.pixels.shape[1:]
        group = waiting.setdefault((height, width), [])
        group.append(item)
        if not fits(len(group) + 1, height, width):
            yield waiting.pop((height, width))
        elif sum(h * w * len(group) for (h, w), group in waiting.items()) > MAX_WAITING_PIXELS:
            yield waiting.pop(max(waiting, key=lambda size: size[0] * size[1] * len(waiting[size])))
    yield from waiting.values()


def in_background(items: Iterable[Any], ahead: int) -> Iterator[Any]:
    """Iterate in a thread, at most ``ahead`` items before they are asked for; errors are raised here."""
    ready: queue.Queue[tuple[Any, BaseException | None, bool]] = queue.Queue(max(1, ahead))
    stopped = threading.Event()

    def put(entry: tuple[Any, BaseException | None, bool]) -> None:
        while not stopped.is_set():
            try:
                ready.put(entry, timeout=0.1)
                return
            except queue.Full:
                continue

    def work() -> None:
        try:
            for item in items:
                put((item, None, False))
                if stopped.is_set():
                    return
            put((None, None, True))
        except BaseException as error:
            put((None, error, True))

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item, error, done = ready.get()
            if error is not None:
                raise error
            if done:
                return
            yield item
    finally:
        stopped.set()
        thread.join()
