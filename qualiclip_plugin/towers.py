"""An image tower that pools several stages of a timm network.

The deepest features of an ImageNet network name the objects in a picture and forget much of how well it was taken;
the stages before them still know. :class:`StagePoolTower` takes the spatial mean of chosen stages, side by side, and
projects them linearly, so that the tower fits images of any size and its head can be fitted in closed form.

In a backbone configuration it stands in the place of open_clip's settings::

    {"embed_dim": 384, "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [5, 6]}}}
"""

from __future__ import annotations

from collections.abc import Sequence

import timm
import torch
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from qualiclip_plugin.errors import ConfigError


class StagePoolTower(nn.Module):
    """Spatial means of chosen stages of an untrained timm EfficientNet (or MobileNet), projected linearly.

    Args:
        model: timm's name of the network.
        stages: Indices of the stages (``blocks.N``) that are pooled; nothing after the last one is kept.
        embed_dim: Size D of the features.

    Raises:
        ConfigError: timm knows no such network, it has another layout, or a stage does not exist.
    """

    def __init__(self, model: str, stages: Sequence[int], embed_dim: int) -> None:
        super().__init__()
        if not timm.is_model(model):
            raise ConfigError(f"timm has no model {model!r}")
        trunk = timm.create_model(model, pretrained=False, num_classes=0, global_pool="")
        if not isinstance(trunk, EfficientNet):
            raise ConfigError(f"stage_pool needs a network of EfficientNet's layout, and {model} is none")
        if not stages or not set(stages) <= set(range(len(trunk.blocks))):
            raise ConfigError(f"stages of {model} are 0 to {len(trunk.blocks) - 1}, not {list(stages)}")
        self.stages = tuple(sorted(set(stages)))
        trunk.blocks = trunk.blocks[: self.stages[-1] + 1]
        # What follows the blocks is never run; as identities they keep timm's class, whose layout others know.
        trunk.conv_head, trunk.bn2 = nn.Identity(), nn.Identity()
        self.trunk = trunk
        # Where large images are cut in two passes: what comes before has most pixels and sees least far.
        self.early = min(3, self.stages[0])
        self.head = nn.Linear(sum(_channels(trunk.blocks[stage]) for stage in self.stages), embed_dim)

    def early_map(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the feature map after the first ``early`` stages."""
        return self.trunk.blocks[: self.early](self.trunk.bn1(self.trunk.conv_stem(images)))

    def stage_maps(self, features: Tensor) -> list[Tensor]:
        """The early map -> the feature maps of the chosen stages."""
        maps = []
        for index, block in enumerate(self.trunk.blocks[self.early :], start=self.early):
            features = block(features)
            if index in self.stages:
                maps.append(features)
        return maps

    def pool(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> means of the chosen stages side by side, (N, C)."""
        return torch.cat([features.mean((2, 3)) for features in self.stage_maps(self.early_map(images))], dim=1)

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (N, 3, H, W) to features (N, D), not of unit norm."""
        return self.head(self.pool(images))


def _channels(block: nn.Module) -> int:
    """Output channels of a stage: those of its last convolution."""
    return [module for module in block.modules() if isinstance(module, nn.Conv2d)][-1].out_channels
