"""What a frozen trunk sees of degraded crops: pooled features along ladders of rising degradation."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qualiclip_plugin.models.conv_towers import StagePoolTower
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.draws import draw_plan, relevant_pairs
from qualiclip_plugin.training.lite.encodings import encode_ladders
from qualiclip_plugin.training.sampling import degrade
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.images import read_image, to_float


@dataclass(frozen=True)
class LadderFeatures:
    """Pooled features of M ladders, each one crop from pristine to level L.

    Attributes:
        features: (M, L + 1, C), fp32.
        relevant: Prompt pairs that ``attribute_kinds`` says name it, (M, P) bool.
        twins: The pristine crops once more, (M, C): plain where the ladder carries a mild encoding, else with one.
    """

    features: Tensor
    kinds: tuple[str, ...]
    relevant: Tensor
    twins: Tensor

    @property
    def crops(self) -> Tensor:
        """The ladders with the twin of the pristine crop last, (M, L + 2, C)."""
        return torch.cat([self.features, self.twins[:, None]], dim=1)


def stage_pool_tower(model: QualiCLIP) -> StagePoolTower:
    """The image encoder; raises ``ConfigError`` where it is another tower."""
    if not isinstance(model.image_encoder, StagePoolTower):
        raise ConfigError("head: only a tower that pools stages can be fitted (vision_cfg: stage_pool)")
    return model.image_encoder


@torch.inference_mode()
def pool_images(model: QualiCLIP, images: Tensor) -> Tensor:
    """Images (N, 3, H, W) in [0, 1] -> the trunk's pooled features, (N, C), fp32."""
    return stage_pool_tower(model).pool(model.normalise(images))


def pool_files(model: QualiCLIP, folder: Path, names: Iterable[str]) -> Tensor:
    """:func:`pool_images` of the whole images in files of a folder, one at a time, (N, C)."""
    return torch.cat([pool_images(model, to_float(read_image(folder / name))[None]) for name in names])


def collect_ladders(
    model: QualiCLIP,
    crops: Iterable[Tensor],
    config: TrainConfig,
    encoded: float,
    device: torch.device,
    notice: Callable[[int], None],
) -> LadderFeatures:
    """Degrade crops as the training steps would, and pool the trunk's features of every level.

    Args:
        model: Its image encoder is a ``StagePoolTower``.
        crops: Crop pairs of step 0, 1, ..., uint8 (B, 2, 3, S, S).
        config: Degradations and ``attribute_kinds``.
        encoded: Share of the ladders that carry a mild encoding on all their levels.

    Raises:
        ConfigError: The network has another tower, or a photograph gets several distortions.
    """
    fast = deepcopy(model).to(device)
    prepare_for_inference(fast)
    features, twins, kinds, relevant = [], [], [], []
    for step, batch in enumerate(crops):
        plan = draw_plan(config, step)
        if any(len(names) > 1 for names in plan.kinds):
            raise ConfigError("head: a ladder has one distortion, so compositions must be 1")
        with torch.inference_mode():
            # The second crop of a pair would tell little that is new about the photograph.
            ladders = degrade(to_float(batch[:, 0].to(device)), plan, include_pristine=True)
            images = encode_ladders(ladders, encoded, generator(config.seed, "encodings", step))
            pooled = pool_images(fast, images.flatten(0, 1)).unflatten(0, images.shape[:2]).cpu()
        features.append(pooled[:, :-1].clone())
        twins.append(pooled[:, -1].clone())
        kinds += [names[0] for names in plan.kinds]
        relevant.append(relevant_pairs(plan, config))
        notice(step + 1)
    return LadderFeatures(torch.cat(features), tuple(kinds), torch.cat(relevant), torch.cat(twins))
