"""Images of a size that was seen before, by replaying a CUDA graph: one call in place of some hundred."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.runtimes.part import FastPart
from qualiclip_plugin.utils.errors import out_of_memory

KEPT = 16
"""Shapes whose graphs are kept; the one that was not used for longest goes."""
MOST_PIXELS = 2**23
"""Larger batches are computed as they are: their kernels run for longer than it takes to call them."""

Compute = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) -> a tensor, by the same kernels for all images of a shape."""


class Recorder:
    """Makes CUDA graphs of one device, which take turns in the same memory."""

    def __init__(self) -> None:
        self._pool: Any = None
        self._stream: Any = None
        self._done: Any = None

    def __call__(self, compute: Compute, images: Tensor) -> Compute:
        """What replays ``compute`` for images of this shape and type."""
        with torch.cuda.device(images.device):
            if self._pool is None:
                # Memory is kept by stream: graphs of several streams would share none.
                self._pool, self._stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
                self._done = torch.cuda.Event()
            return self._recorded(compute, images.clone())

    def _recorded(self, compute: Compute, place: Tensor) -> Compute:
        graph, current = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            compute(place)  # what a first call sets up must not be recorded
        current.wait_stream(self._stream)
        with torch.cuda.stream(current):  # a recording that fails does not always put it back
            mode = "thread_local"  # what other threads do with the GPU meanwhile is no part of it
            with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode=mode):
                result = compute(place)

        def replay(images: Tensor) -> Tensor:
            with torch.cuda.device(place.device):
                torch.cuda.current_stream().wait_event(self._done)  # of a replay that another stream was given
                place.copy_(images)
                graph.replay()
                copied = result.clone()
                self._done.record()
            return copied

        return replay


class Replayed(FastPart):
    """A function of images on a GPU; a batch of a shape that comes again is replayed.

    A shape is recorded the second time it comes: recording costs as much as a few calls, and in a folder of images of
    all sizes most come once.

    Args:
        settings: What the choice of kernels depends on besides shape and type: it is made when they are recorded.
    """

    runtime = "cuda"

    def __init__(
        self, compute: Compute, record: Callable[[Compute, Tensor], Compute], settings: Callable[[], Any]
    ) -> None:
        self._compute, self._record, self._settings = compute, record, settings
        self._seen: OrderedDict[Any, Compute | None] = OrderedDict()
        self._lock = threading.Lock()  # a graph has one place for its images

    def __call__(self, images: Tensor) -> Tensor:
        """What ``compute`` gives; errors as :meth:`FastPart.check`."""
        self.check(images)
        # Whatever the caller's mode: what is recorded under one cannot be used under another.
        with torch.inference_mode():
            if images.shape[0] * images.shape[2:].numel() > MOST_PIXELS:
                return self._compute(images)
            with self._lock:
                return self._replay(images)

    def _replay(self, images: Tensor) -> Tensor:
        key = (images.shape, images.dtype, images.device, self._settings())
        known, replay = key in self._seen, self._seen.pop(key, None)
        if known and replay is None:
            try:
                replay = self._record(self._compute, images)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                replay = self._compute  # the same kernels, without the memory that a graph keeps
        result = (replay or self._compute)(images)
        self._seen[key] = replay
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return result
