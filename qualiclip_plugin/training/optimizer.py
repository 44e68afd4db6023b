"""The optimizer and its learning rate over the steps."""

from __future__ import annotations

import math

import torch
from torch import nn

from qualiclip_plugin.training.config import TrainConfig


def build_optimizer(config: TrainConfig, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer of the trained parameters."""
    if config.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=config.learning_rate, momentum=0.9, weight_decay=config.weight_decay)
    return torch.optim.AdamW(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)


def learning_rate(config: TrainConfig, step: int) -> float:
    """The learning rate of a step (counted from 0), a pure function.

    ``constant`` and ``cosine`` rise linearly over ``warmup`` steps; ``onecycle`` rises from 1/25 of the rate over
    ``warmup`` (default 30 % of the) steps and falls to 1/250,000 of it, both along half a cosine
    (Smith and Topin, 2017, with PyTorch's constants).
    """
    if config.schedule == "onecycle":
        rise = max(round(0.3 * config.steps) if config.warmup is None else config.warmup, 1)
        if step < rise:
            return _cosine(config.learning_rate / 25, config.learning_rate, step / rise)
        share = (step - rise) / max(config.steps - 1 - rise, 1)
        return _cosine(config.learning_rate, config.learning_rate / 250_000, min(share, 1.0))
    warmup = config.warmup or 0
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    if config.schedule == "cosine":
        return _cosine(config.learning_rate, 0.0, (step - warmup) / max(config.steps - warmup, 1))
    return config.learning_rate


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
