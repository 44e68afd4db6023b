"""Decoding ahead of the scorer, and batches of equal size."""

from __future__ import annotations

import hashlib
import multiprocessing
import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from harness.data.open import ImageSet
from harness.data.resizing import resize_shorter_side
from harness.data.rows import Stream, image_bytes
from harness.data.spec import DatasetSpec
from qualiclip_plugin.utils.errors import DatasetError, ImageError, MachineError, out_of_room

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

AHEAD = 4
"""Decoded images per worker that wait to be asked for."""

MAX_WAITING_PIXELS = 64_000_000
"""Decoded pixels that may wait for others of their size; 3 bytes each."""


@dataclass(frozen=True)
class Decoded:
    """One image, or why there is none.

    Attributes:
        index: Position in the dataset.
        pixels: RGB, uint8, (3, H, W); none if it cannot be read.
        error: Why it cannot be read.
        changed: Whether the file is another one than when the dataset was opened.
        full: Whether this machine had no room to read it, which says nothing of the image.
    """

    index: int
    pixels: NDArray[np.uint8] | None
    error: str = ""
    changed: bool = False
    full: bool = False


def decoded(images: ImageSet, indices: Sequence[int], workers: int = 0) -> Iterator[Decoded]:
    """Decode images in order.

    Args:
        images: The dataset.
        indices: Positions in it, ascending for a stream.
        workers: Processes that decode ahead, for a stream threads; 0 decodes here, when asked.

    Raises:
        DatasetError: A file was changed or removed since the dataset was opened, a stream broke off or holds
            something else than before, or a decoding process was killed.
    """
    if isinstance(images.rows, Stream):
        yield from _decoded_stream(images, images.rows, indices, workers)
        return
    from torch.utils.data import DataLoader

    _check_room(images.spec.name, workers)
    loader: DataLoader[Decoded] = DataLoader(
        _Decoder(images, indices),  # type: ignore[arg-type]  # any object with a length and items will do
        batch_size=None,
        num_workers=workers,
        prefetch_factor=AHEAD if workers else None,
        # Arrays travel through a pipe; tensors would need shared memory, which containers keep small.
        collate_fn=_unchanged,
    )
    yield from _checked(loader, images)


def _check_room(name: str, workers: int) -> None:
    """Raise ``DatasetError`` where processes cannot be started: torch would leave a traceback beside its error."""
    try:
        # Each process talks through queues, whose locks lie in shared memory.
        _ = [multiprocessing.Lock() for _ in range(4 * (workers + 1) if workers else 0)]
    except OSError as error:
        raise DatasetError(
            f"{name}: no processes that decode can be started ({error.strerror}): make room in shared memory "
            "(/dev/shm; in a container --shm-size), or take --workers 0"
        ) from error


def _checked(loader: Iterable[Decoded], images: ImageSet) -> Iterator[Decoded]:
    items = iter(loader)
    while True:
        try:
            item = next(items)
        except StopIteration:
            return
        except RuntimeError as error:
            # torch's words for a worker process that the system killed, usually for want of memory.
            if "DataLoader worker" not in str(error):
                raise
            raise DatasetError(
                f"{images.spec.name}: a decoding process was killed, perhaps for want of memory; what was scored is "
                "kept, run again with fewer --workers"
            ) from error
        if item.changed:
            # Its score would be kept under the content that it had before.
            name = images.table["file_name"].iloc[item.index]
            raise DatasetError(
                f"{images.spec.name}: {name} was changed or removed while the dataset was scored; run again"
            )
        yield _refuse_full(item, images)


class _Decoder:
    """What a worker process needs to decode one image."""

    def __init__(self, images: ImageSet, indices: Sequence[int]) -> None:
        self.rows: Any = images.rows
        self.spec = images.spec
        self.hashes = images.table["image_hash"].tolist()
        self.indices = list(indices)

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, position: int) -> Decoded:
        index = self.indices[position]
        try:
            content = image_bytes(self.rows[index]["image"])
        except FileNotFoundError:
            return Decoded(index, None, changed=True)
        except OSError as error:
            return _failed(index, error)
        if hashlib.sha256(content).hexdigest() != self.hashes[index]:
            return Decoded(index, None, changed=True)
        return decode(index, content, self.spec)


def decode(index: int, content: bytes, spec: DatasetSpec) -> Decoded:
    """Read the bytes of one image as a dataset wants them read."""
    from qualiclip_plugin.utils.images import read_image

    try:
        pixels = read_image(content, exif=spec.exif, icc=spec.icc)
    except (ImageError, OSError, MemoryError) as error:
        return _failed(index, error)
    if spec.resize:
        pixels = resize_shorter_side(pixels, spec.resize)
    return Decoded(index, pixels.numpy())


def _failed(index: int, error: Exception) -> Decoded:
    full = isinstance(error, OSError) and out_of_room(error)
    return Decoded(index, None, f"{type(error).__name__}: {error}"[:500], full=full)


def _refuse_full(item: Decoded, images: ImageSet) -> Decoded:
    if item.full:
        raise MachineError(f"{images.spec.name}: {item.error}; what was scored is kept, make room and run again")
    return item


def _decoded_stream(images: ImageSet, stream: Stream, indices: Sequence[int], workers: int) -> Iterator[Decoded]:
    hashes = images.table["image_hash"]
    waiting: deque[Future[Decoded]] = deque()
    # Threads, since a stream cannot be divided among processes; decoding leaves the interpreter alone.
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for index, content in stream.contents(indices):
            if hashlib.sha256(content).hexdigest() != hashes.iloc[index]:
                raise DatasetError(f"{stream.origin}: image {index} is not what it was when it was indexed")
            waiting.append(pool.submit(decode, index, content, images.spec))
            if len(waiting) > AHEAD * max(1, workers):
                yield _refuse_full(waiting.popleft().result(), images)
        while waiting:
            yield _refuse_full(waiting.popleft().result(), images)


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


def _unchanged(item: Any) -> Any:
    return item
