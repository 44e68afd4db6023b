"""Untrained networks that nonetheless tell pictures apart: speed and equality need no trained weights."""

from __future__ import annotations

import os
from typing import Any

import open_clip
import torch
from torch import nn

from qualiclip_plugin.models.attention_pool import SingleQueryAttentionPool
from qualiclip_plugin.models.backbones import backbone_config
from qualiclip_plugin.models.prompts import paired_features
from qualiclip_plugin.weights.checkpoint import CLIP_MEAN, CLIP_STD


@torch.no_grad()
def calibrate(encoder: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Give an untrained encoder the BatchNorm statistics of real pictures, and prompt features that part them.

    Random weights alone map all pictures to one direction, and equality of constant scores would prove nothing.

    Returns:
        Seven random pairs (7, 2, D) of unit norm among the directions in which the pictures differ.
    """
    images = (images - torch.tensor(CLIP_MEAN).view(-1, 1, 1)) / torch.tensor(CLIP_STD).view(-1, 1, 1)
    norms = [module for module in encoder.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        nn.init.ones_(norm.weight)
        norm.momentum = 1.0
    encoder.train()
    encoder(images)
    encoder.eval()
    for norm in norms:
        norm.momentum = 0.1
    if hasattr(encoder, "attnpool"):
        # What all pictures share would drown what tells them apart.
        pool: Any = encoder.attnpool
        pool.c_proj.bias.sub_(0.9 * encoder(images).mean(dim=0))
        pool.positional_embedding.mul_(20)
    features = encoder(images)
    differences = features - features.mean(dim=0)
    generator = torch.Generator().manual_seed(0)
    return paired_features(torch.randn(14, len(images), generator=generator) @ differences)


def write_official(path: str | os.PathLike[str], images: torch.Tensor) -> None:
    """Write a seeded CLIP RN50 in the format of the official weights.

    Args:
        path: The file.
        images: Pictures to calibrate it with, RGB in [0, 1], (N, 3, H, W).
    """
    torch.manual_seed(1)
    clip = open_clip.model.CLIP(**backbone_config("RN50"))
    clip.visual.attnpool = SingleQueryAttentionPool(clip.visual.attnpool)
    features = calibrate(clip.visual, images).flatten(0, 1)
    official = {f"clip_model.{key}": value for key, value in clip.state_dict().items()}
    torch.save({**official, "prompts_features": features}, path)
