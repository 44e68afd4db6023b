"""Images decoded before they are asked for, in order: in threads of this process, or in processes of their own.

Threads begin at once and share Python's lock: two of them decode about one and a half times what one does. Processes
take seconds to start, nearly double it, and continue where there are more cores. ``python -m
tests.benchmarks.bench_decoding`` measures both.
"""

from __future__ import annotations

import ctypes
import math
import multiprocessing
import os
import shutil
import signal
import tempfile
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from qualiclip_plugin.utils.errors import MachineError
from qualiclip_plugin.utils.memory import keep_freed
from qualiclip_plugin.utils.process_settings import usable_cores

T = TypeVar("T")
R = TypeVar("R")

DECODERS = 2
"""As many decode beside a network on a CPU."""
MANY_FILES = 2000
"""From here on processes save more than their start takes, where they are what a scorer waits for."""
AHEAD = 4
"""Images for each that decodes, decoded or to be decoded."""
WAITING_PIXELS = 2**27
"""Decoded pixels that may wait to be taken, 400 MB; where one thread finds more it does not decode the next."""
_END = object()
SLOT_BYTES = 8 * 2**20
"""What an image may take to come through shared memory; larger ones come through a pipe, which is slower."""


@dataclass(frozen=True)
class Read(Generic[R]):
    """What a function made of an item.

    Attributes:
        pixels: uint8, of any shape.
    """

    about: R
    pixels: NDArray[np.uint8] | None

    @property
    def area(self) -> int:
        """Pixels of three values."""
        return 0 if self.pixels is None else self.pixels.size // 3


def how_to_decode(device: str, files: int, workers: int | None = None) -> tuple[int, bool]:
    """How many decode ahead of a scorer on ``device``, and whether in processes.

    Beside a network on the CPU decoding takes some hundredths of the time, and the network needs the cores. A GPU
    waits for decoding.

    Args:
        device: ``cpu``, ``cuda``, ...
    """
    if device.startswith("cpu"):
        return (DECODERS if workers is None else workers), False
    workers = usable_cores() if workers is None else workers
    return workers, files >= MANY_FILES and workers > 1


def in_threads(function: Callable[[T], Read[R]], items: Iterable[T], workers: int) -> Iterator[Read[R]]:
    """Map in order in ``workers`` threads that stay a few items ahead, fewer where they are large; 0: when asked."""
    if workers == 0:
        yield from map(function, items)
        return
    pool, running, room = ThreadPoolExecutor(workers, thread_name_prefix="decode"), deque[Future[Read[R]]](), _Room()

    def work(position: int, item: T) -> Read[R]:
        room.wait(position)
        result = function(item)
        room.add(result.area)
        return result

    def take() -> Read[R]:
        result = running.popleft().result()
        room.take(result.area)
        return result

    try:
        for position, item in enumerate(items):
            # Items that wait to be begun take no memory, and no thread has to wait for the next.
            while len(running) >= AHEAD * workers:
                yield take()
            running.append(pool.submit(work, position, item))
        while running:
            yield take()
    finally:
        room.open()
        pool.shutdown(cancel_futures=True)


class _Room:
    """Keeps threads from decoding while too many decoded pixels wait; the next item to be taken never waits."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._taken = 0
        self._pixels: float = 0

    def wait(self, position: int) -> None:
        """Return when the item of this position may be decoded."""
        with self._changed:
            self._changed.wait_for(lambda: self._pixels < WAITING_PIXELS or position == self._taken)

    def add(self, pixels: int) -> None:
        """An item is decoded."""
        with self._changed:
            self._pixels += pixels

    def take(self, pixels: int) -> None:
        """The next item is taken."""
        with self._changed:
            self._pixels -= pixels
            self._taken += 1
            self._changed.notify_all()

    def open(self) -> None:
        """Let all continue: nothing is taken any more."""
        with self._changed:
            self._pixels = -math.inf
            self._changed.notify_all()


def in_processes(function: Callable[[T], Read[R]], items: Iterable[T], workers: int) -> Iterator[Read[R]]:
    """Map in order in ``workers`` processes that stay ``AHEAD`` items each ahead.

    Args:
        function: Of a module, or a ``partial`` of one: it is sent to the processes, and so are items.
        items: Read here, one at a time.
        workers: From 1.

    Raises:
        MachineError: A process was killed, or none can be started.
    """
    team: list[_Worker[T, R]] = []
    try:
        for _ in range(workers):
            team.append(_Worker(function))
        waiting: deque[_Worker[T, R]] = deque()
        for position, item in enumerate(items):
            if len(waiting) >= AHEAD * workers:
                yield waiting.popleft().take()
            worker = team[position % workers]
            worker.give(item)
            waiting.append(worker)
        while waiting:
            yield waiting.popleft().take()
    except (EOFError, ConnectionError) as error:
        raise MachineError(
            "a process that decodes was killed, perhaps for want of memory; what was scored is kept, run again with "
            "fewer --workers"
        ) from error
    finally:
        for worker in team:
            worker.end()


class _Worker(Generic[T, R]):
    """A process that decodes what it is given, in order; it ends with the process that started it.

    Pixels lie in shared memory, in ``AHEAD`` slots that are used in turn, and are copied from there.
    """

    def __init__(self, function: Callable[[T], Read[R]]) -> None:
        # A fork would copy threads' locks in whatever state they are.
        context = multiprocessing.get_context("spawn")
        _check_room(AHEAD * SLOT_BYTES)
        try:
            memory: Any = context.RawArray(ctypes.c_ubyte, AHEAD * SLOT_BYTES)
            self._pipe, theirs = context.Pipe()
            self._process = context.Process(target=_work, args=(function, theirs, memory), daemon=True)
            self._process.start()
        except OSError as error:
            raise MachineError(
                f"no process that decodes can be started ({error.strerror or error}): take fewer --workers"
            ) from error
        theirs.close()
        self._slots = np.frombuffer(memory, np.uint8).reshape(AHEAD, SLOT_BYTES)
        self._next = 0

    def give(self, item: T) -> None:
        """Give an item; at most ``AHEAD`` may wait to be taken."""
        self._pipe.send(item)

    def take(self) -> Read[R]:
        """What it made of the first item that was not taken yet; raises what the function raised."""
        answer: Exception | Read[R] | tuple[R, tuple[int, ...]] = self._pipe.recv()
        if isinstance(answer, Exception):
            raise answer
        slot, self._next = self._slots[self._next], (self._next + 1) % AHEAD
        if isinstance(answer, Read):
            return answer
        about, shape = answer
        return Read(about, slot[: math.prod(shape)].reshape(shape).copy())

    def end(self) -> None:
        """End the process, whatever it does."""
        self._pipe.close()
        self._process.terminate()
        self._process.join()


def _check_room(size: int) -> None:
    """Refuse shared memory for which there is no room: a process that writes to it would be killed."""
    places = [place for place in ("/dev/shm", tempfile.gettempdir()) if os.path.isdir(place)]  # noqa: S108
    if all(shutil.disk_usage(place).free < size for place in places):
        raise MachineError(
            f"no process that decodes can be started: {' and '.join(places)} have no room for {size // 2**20} MB of "
            "shared memory; make room (in a container --shm-size), or take --workers 0"
        )


def _work(function: Callable[[Any], Read[Any]], pipe: Connection, memory: Any) -> None:
    # The process that started this one decides when it ends; Ctrl-C reaches both.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    keep_freed()
    slots, slot = np.frombuffer(memory, np.uint8).reshape(AHEAD, SLOT_BYTES), 0
    given: SimpleQueue[Any] = SimpleQueue()
    # Always read: where both sides of a pipe wait until the other one reads, neither does.
    threading.Thread(target=_receive, args=(pipe, given), daemon=True).start()
    with closing(pipe), suppress(ConnectionError):
        while (item := given.get()) is not _END:
            try:
                result = function(item)
            except Exception as error:
                pipe.send(error)
                continue
            if result.pixels is None or result.pixels.size > SLOT_BYTES:
                pipe.send(result)
            else:
                slots[slot][: result.pixels.size] = result.pixels.reshape(-1)
                pipe.send((result.about, result.pixels.shape))
            slot = (slot + 1) % AHEAD


def _receive(pipe: Connection, given: SimpleQueue[Any]) -> None:
    try:
        while True:
            given.put(pipe.recv())
    except (EOFError, OSError):
        pass
    finally:
        given.put(_END)
