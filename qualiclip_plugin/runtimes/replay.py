"""Images of a size that was seen before, by replaying a CUDA graph: one call in the place of some hundred."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.errors import out_of_memory
from qualiclip_plugin.runtimes.part import FastPart

KEPT = 16
"""Shapes whose graphs are kept; the one that was not used for longest goes."""
MOST_PIXELS = 2**23
"""Larger batches are computed as they are: their kernels run for longer than it takes to call them."""

Compute = Callable[[Tensor], Tensor]
"""Images (N, 3, H, W) -> a tensor, by the same kernels for all images of a shape."""


class Recorder:
    """Makes CUDA graphs, which take turns in the same memory."""

    def __init__(self) -> None:
        self._pool: Any = None

    def __call__(self, compute: Compute, images: Tensor) -> Compute:
        """What replays ``compute`` for images of this shape and type."""
        self._pool = self._pool or torch.cuda.graph_pool_handle()
        place, graph = images.clone(), torch.cuda.CUDAGraph()
        with torch.cuda.device(images.device):
            current, side = torch.cuda.current_stream(), torch.cuda.Stream()
            side.wait_stream(current)
            with torch.cuda.stream(side):
                compute(place)  # what a first call sets up must not be recorded
            current.wait_stream(side)
            with torch.cuda.graph(graph, pool=self._pool):
                result = compute(place)

        def replay(images: Tensor) -> Tensor:
            place.copy_(images)
            graph.replay()
            return result.clone()

        return replay


class Replayed(FastPart):
    """A function of images on a GPU; a batch of a shape that comes again is replayed.

    A shape is recorded the second time it comes: recording costs as much as a few calls, and in a folder of images of
    all sizes most come once.

    Args:
        compute: What is replayed.
        record: Makes what replays it.
    """

    runtime = "cuda"

    def __init__(self, compute: Compute, record: Callable[[Compute, Tensor], Compute]) -> None:
        self._compute, self._record = compute, record
        self._seen: OrderedDict[Any, Compute | None] = OrderedDict()
        self._lock = threading.Lock()  # a graph has one place for its images

    def __call__(self, images: Tensor) -> Tensor:
        """What ``compute`` gives.

        Raises:
            ConfigError: See :meth:`FastPart.check`.
        """
        self.check(images)
        # Whatever the caller's mode: what is recorded under one cannot be used under another.
        with torch.inference_mode():
            if images.shape[0] * images.shape[2:].numel() > MOST_PIXELS:
                return self._compute(images)
            with self._lock:
                return self._replay(images)

    def _replay(self, images: Tensor) -> Tensor:
        # Kernels are chosen when they are recorded, by settings that hold at that time.
        settings = (torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision())
        key = (images.shape, images.dtype, images.device, settings)
        known, replay = key in self._seen, self._seen.pop(key, None)
        if known and replay is None:
            try:
                replay = self._record(self._compute, images)
            except RuntimeError as error:
                if not out_of_memory(error):
                    raise
                replay = self._compute  # the same kernels, without the memory that a graph keeps
        self._seen[key] = replay
        if len(self._seen) > KEPT:
            self._seen.popitem(last=False)
        return (replay or self._compute)(images)
