"""What ``python -m tests.benchmarks score`` has pytest-benchmark run: all rivals in turn, one case at a time.

A busy machine slows what runs at the same time; so every round measures all rivals once, and ratios are made of
rounds. pytest-benchmark times the rounds and writes the file; the seconds of the rivals are in its ``extra_info``.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn

from qualiclip_plugin.models.precision import exact_fp32
from qualiclip_plugin.scoring.local import score_files
from qualiclip_plugin.utils.errors import ImageError
from qualiclip_plugin.utils.images import read_image, to_float
from tests.benchmarks.meters import operations, peak_memory, seconds
from tests.benchmarks.rivals import Metric, Rival

T = TypeVar("T")


MOST_CALLS, TOGETHER = 10, 0.2
"""Calls that are timed together on a GPU, which is given the next while it computes, and seconds they may take."""
WARMING = 2
"""Calls after the first one on a GPU, in which a runtime looks at what comes again."""
FILES = {"cpu": 1, "cuda": 4}
"""Batches of files that are scored together."""


@dataclass(frozen=True)
class Case:
    """What is scored at once.

    Attributes:
        width: Pixels.
        height: Pixels.
        batch: Images of this size.
        rounds: How often.
    """

    width: int
    height: int
    batch: int
    rounds: int

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.width, self.height


@dataclass(frozen=True)
class Bench:
    """What is measured, on what.

    Attributes:
        rivals: In the order of their turns.
        files: Some JPEG files of the same size, by (width, height).
        device: ``cpu`` or ``cuda``.
        facts: Of the machine and the networks, kept with the figures.
    """

    rivals: Sequence[Rival]
    files: Mapping[tuple[int, int], Sequence[Path]]
    device: str
    facts: Mapping[str, Any]


@exact_fp32()
def test_score(benchmark: Any, bench: Bench, case: Case) -> None:
    """Measure all rivals in one case, fp32 as fp32."""
    images = [to_float(read_image(path)) for path in bench.files[case.size]]
    batches = [torch.stack(batch).to(bench.device) for batch in _turns(images, case.batch)]
    files = _turns(bench.files[case.size], case.batch * FILES[bench.device])
    rows = {rival.name: _first_call(rival, batches[0], files[0], bench.device) for rival in bench.rivals}
    turns = cycle(zip(batches, files, strict=True))
    benchmark.extra_info.update(bench.facts, size=list(case.size), batch=case.batch, rivals=rows)
    benchmark.pedantic(lambda: _round(bench, rows, *next(turns)), rounds=case.rounds)


def _turns(items: Sequence[T], number: int) -> list[list[T]]:
    """``number`` of the items, again and again where there are fewer, starting with another one each time."""
    return [[items[(start + index) % len(items)] for index in range(number)] for start in range(len(items))]


@torch.inference_mode()
def _first_call(rival: Rival, images: torch.Tensor, files: Sequence[Path], device: str) -> dict[str, Any]:
    """What need not be measured in turns; the calls also warm up."""
    scores: list[float] = []
    counted, memory = 0, None

    def call() -> None:
        scores.append(float(rival.metric(images).flatten()[0]))

    def count() -> None:
        nonlocal counted
        counted = operations(call)

    memory = peak_memory(count, device)
    calls = 1
    if device == "cuda":
        for _ in range(WARMING):
            call()
        calls = max(1, min(MOST_CALLS, int(TOGETHER / seconds(call, device))))
        if rival.model is not None:
            _from_files(files, rival.model, len(images), device)
    return {
        "calls": calls,
        "network": rival.network,
        "precision": rival.precision,
        "operations": counted / len(images),
        "peak_memory": memory,
        "score": scores[0],
        "seconds": [],
        "file_seconds": [],
    }


@torch.inference_mode()
def _round(bench: Bench, rows: dict[str, Any], images: torch.Tensor, files: Sequence[Path]) -> None:
    """Seconds an image: pixels on the device to scores, and files to scores."""
    for rival in bench.rivals:
        row = rows[rival.name]
        calls = row["calls"]
        work = partial(_repeat, rival.metric, images, calls)
        row["seconds"].append(seconds(work, bench.device) / (calls * len(images)))
        if rival.model is not None:
            work = partial(_from_files, files, rival.model, len(images), bench.device)
            row["file_seconds"].append(seconds(work, bench.device) / len(files))


def _repeat(metric: Metric, images: torch.Tensor, calls: int) -> None:
    for _ in range(calls):
        metric(images)


def _from_files(paths: Sequence[Path], model: nn.Module, batch: int, device: str) -> None:
    # On a CPU the network has all cores; beside a GPU they decode.
    workers = 0 if device == "cpu" else os.cpu_count() or 1
    for row in score_files(paths, model, batch_size=batch, workers=workers):
        if row.error:
            raise ImageError(row.error)
