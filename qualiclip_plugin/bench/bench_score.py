"""What ``qualiclip bench score`` has pytest-benchmark run: all rivals in turn, one image size at a time.

A busy machine slows what runs at the same time; so every round calls all rivals once, and ratios are made of rounds.
pytest-benchmark times the rounds and writes the file; the seconds of the rivals are in its ``extra_info``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from qualiclip_plugin.bench.meters import operations, peak_memory, seconds
from qualiclip_plugin.bench.rivals import Rival
from qualiclip_plugin.errors import ImageError
from qualiclip_plugin.images import read_image, to_float
from qualiclip_plugin.scoring.score_files import score_files


@dataclass(frozen=True)
class Bench:
    """What is measured, on what.

    Attributes:
        rivals: In the order of their turns.
        files: JPEG files of the same size, one a round, by (width, height).
        rounds: How many rounds, by (width, height).
        device: ``cpu`` or ``cuda``.
        facts: Of the machine and the networks, kept with the figures.
    """

    rivals: Sequence[Rival]
    files: Mapping[tuple[int, int], Sequence[Path]]
    rounds: Mapping[tuple[int, int], int]
    device: str
    facts: Mapping[str, Any]


def test_score(benchmark: Any, bench: Bench, size: tuple[int, int]) -> None:
    """Measure all rivals at one size."""
    images = [to_float(read_image(path))[None].to(bench.device) for path in bench.files[size]]
    rows = {rival.name: _first_call(rival, images[0], bench.device) for rival in bench.rivals}
    turns = iter(images * bench.rounds[size])
    files = iter(list(bench.files[size]) * bench.rounds[size])
    benchmark.extra_info.update(bench.facts, size=list(size), rivals=rows)
    benchmark.pedantic(lambda: _round(bench, rows, next(turns), next(files)), rounds=bench.rounds[size])


@torch.inference_mode()
def _first_call(rival: Rival, image: torch.Tensor, device: str) -> dict[str, Any]:
    """What need not be measured in turns; the call also warms up."""
    scores: list[float] = []
    counted, memory = 0, None

    def call() -> None:
        scores.append(float(rival.metric(image)))

    def count() -> None:
        nonlocal counted
        counted = operations(call)

    memory = peak_memory(count, device)
    return {
        "network": rival.network,
        "precision": rival.precision,
        "operations": counted,
        "peak_memory": memory,
        "score": scores[0],
        "seconds": [],
        "file_seconds": [],
    }


@torch.inference_mode()
def _round(bench: Bench, rows: dict[str, Any], image: torch.Tensor, file: Path) -> None:
    for rival in bench.rivals:
        row = rows[rival.name]
        row["seconds"].append(seconds(partial(rival.metric, image), bench.device))
        if rival.model is not None:
            row["file_seconds"].append(seconds(partial(_from_file, file, rival.model), bench.device))


def _from_file(path: Path, model: nn.Module) -> None:
    (row,) = score_files([path], model, workers=0)
    if row.error:
        raise ImageError(row.error)
