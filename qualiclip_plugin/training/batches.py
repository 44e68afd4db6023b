"""The batch of a step: crop pairs and their degraded ladders, on the device."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.draws import draw_plan
from qualiclip_plugin.training.sampling import DegradationPlan, degrade
from qualiclip_plugin.utils.images import to_float


@dataclass(frozen=True)
class Batch:
    """What one process encodes in a step.

    Attributes:
        step: The step's number, from 0.
        crops: Pristine crops in [0, 1], (b, 2, 3, S, S).
        images: Degraded crops, (b, 2, L, 3, S, S), L with the pristine level where the configuration has it.
        plan: The degradations of the whole batch, all processes.
        position: Where reading of the photographs continues after this step.
        waited: Seconds that the crops were waited for.
    """

    step: int
    crops: Tensor
    images: Tensor
    plan: DegradationPlan
    position: Any
    waited: float


def degraded_batches(
    loader: Iterator[tuple[Tensor, Any]], config: TrainConfig, places: range, first_step: int, device: torch.device
) -> Iterator[Batch]:
    """Degrade the crops of every step from one on.

    Args:
        loader: This process's crops, in the order of the steps (``TrainingPhotos.crops``).
        places: Places of the whole batch that this process works on.
    """
    began = time.perf_counter()
    for step, (cut, position) in enumerate(loader, first_step):
        waited = time.perf_counter() - began
        pinned = cut.pin_memory() if device.type == "cuda" else cut
        crops = to_float(pinned.to(device, non_blocking=True))
        plan = draw_plan(config, step)
        images = degrade(crops, plan.select(places), include_pristine=config.pristine)
        yield Batch(step, crops, images, plan, position, waited)
        began = time.perf_counter()


def images_in_step(config: TrainConfig) -> int:
    """Crops that the network encodes in one step, over all processes."""
    return config.batch_size * 2 * (config.levels + config.pristine)
