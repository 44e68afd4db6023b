"""What decodes ahead, in threads and in processes: order, bounds, errors, and processes that are killed."""

from __future__ import annotations

import errno
import multiprocessing.context
import os
import signal
import threading
import time
from collections.abc import Iterator
from types import SimpleNamespace

import numpy as np
import pytest

from qualiclip_plugin.utils import decode_ahead
from qualiclip_plugin.utils.decode_ahead import (
    AHEAD,
    MANY_FILES,
    SLOT_BYTES,
    Read,
    how_to_decode,
    in_processes,
    in_threads,
)
from qualiclip_plugin.utils.errors import MachineError


def grey(value: int) -> Read[int]:
    """An image that tells its number; larger than a slot at 7, none at 8, an error at 99."""
    if value == 99:
        raise KeyError("99 is no image")
    if value == 666:
        os.kill(os.getpid(), signal.SIGKILL)
    sizes = {7: (SLOT_BYTES // 3 + 1, 1, 3), 8: None}
    size = sizes.get(value, (4, 5 + value % 3, 3))
    return Read(os.getpid() if value == 0 else value, None if size is None else np.full(size, value % 256, np.uint8))


def test_processes_give_what_a_loop_gives() -> None:
    """One pair of processes for all of it: each takes seconds to start."""
    items = list(range(30))
    first, *rest = in_processes(grey, items, 2)
    assert first.about != os.getpid()
    for one, own in zip(rest, map(grey, items[1:]), strict=True):
        assert one.about == own.about
        assert (one.pixels is None) == (own.pixels is None)
        assert own.pixels is None or np.array_equal(one.pixels, own.pixels)


def test_errors_come_out_and_a_killed_process_is_named() -> None:
    rows = in_processes(grey, [1, 2, 99, 3], 1)
    assert [next(rows).about, next(rows).about] == [1, 2]
    with pytest.raises(KeyError, match="99 is no image"):
        next(rows)
    if hasattr(signal, "SIGKILL"):
        rows = in_processes(grey, [1, 666, 3], 1)
        assert next(rows).about == 1
        with pytest.raises(MachineError, match="was killed, perhaps for want of memory"):
            list(rows)


def enlarged(item: bytes) -> Read[int]:
    """Pixels that fit in no slot."""
    return Read(item[0], np.zeros((SLOT_BYTES // 3 + 1, 1, 3), np.uint8))


def test_large_items_and_large_answers_do_not_wait_for_each_other() -> None:
    items = [bytes([number]) * 1_000_000 for number in range(AHEAD + 2)]
    assert [read.about for read in in_processes(enlarged, items, 1)] == list(range(AHEAD + 2))


def test_shared_memory_without_room_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda place: SimpleNamespace(free=2**20))
    with pytest.raises(MachineError, match=r"have no room for 32 MB of shared memory; make room .*--shm-size"):
        next(in_processes(grey, [1], 1))


def test_processes_that_cannot_be_started_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(multiprocessing.context.SpawnContext, "RawArray", full)
    with pytest.raises(MachineError, match=r"no process .* \(No space left on device\): take fewer --workers"):
        next(in_processes(grey, [1], 1))


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_threads_keep_the_order(workers: int) -> None:
    assert [one.about for one in in_threads(grey, range(1, 30), workers)] == list(range(1, 30))


def test_threads_wait_while_too_many_pixels_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_ahead, "WAITING_PIXELS", 3)
    decoded = []

    def read(value: int) -> Read[int]:
        decoded.append(value)
        return Read(value, np.zeros((1, 2, 3), np.uint8))  # two pixels

    rows = in_threads(read, range(12), 2)
    next(rows)
    _settle(decoded)
    # The one taken, two that fill the room, and what the two threads had begun when it was full.
    assert len(decoded) <= 1 + 2 + 2
    assert [row.about for row in rows] == list(range(1, 12))


def _settle(items: list[int]) -> None:
    seen = -1
    while seen != len(items):
        seen = len(items)
        time.sleep(0.05)


def test_a_reader_that_stops_early_leaves_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_ahead, "WAITING_PIXELS", 1)
    before = threading.active_count()
    rows: Iterator[Read[int]] = in_threads(grey, range(1, 30), 3)
    next(rows)
    rows.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_processes_only_where_a_gpu_waits_for_many_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decode_ahead, "usable_cores", lambda: 16)
    assert how_to_decode("cpu", 10**6) == (2, False)
    assert how_to_decode("cpu", 10**6, 5) == (5, False)
    assert how_to_decode("cuda", MANY_FILES - 1) == (16, False)
    assert how_to_decode("cuda:1", MANY_FILES) == (16, True)
    assert how_to_decode("cuda", MANY_FILES, 1) == (1, False)
    assert AHEAD > 1
