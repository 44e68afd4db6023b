"""Convolutional image towers: CLIP's ResNet, and one that pools several stages of a timm network.

Both are cut where the feature maps are: nearly all the time goes into the methods that compute maps, which can run in
tiles, in a lower precision or in another runtime; pooling and projection are small and stay fp32.

The deepest features of an ImageNet network name the objects in a picture and forget much of how well it was taken;
the stages before them still know. :class:`StagePoolTower` takes the spatial mean of chosen stages, side by side, and
projects them, so it takes images of any size, and its head can be fitted to features that need computing only once.

In a backbone configuration it stands in place of open_clip's settings::

    {"embed_dim": 384, "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [5, 6]}}}
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, ClassVar

import timm
import torch
from open_clip.model import CLIPVisionCfg
from open_clip.modified_resnet import ModifiedResNet
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, InvertedResidual
from timm.models.efficientnet import EfficientNet
from torch import Tensor, nn

from qualiclip_plugin.models.attention_pool import SingleQueryAttentionPool
from qualiclip_plugin.models.avg_pool import use_halving_pools
from qualiclip_plugin.models.tiling import assembled, cut, means, reach, smallest
from qualiclip_plugin.utils.errors import ConfigError

LATE_TILE = 4
"""How much larger the tiles of a second pass are: past 1/8 of the resolution a pixel takes a quarter of the memory
or less."""
_LOCAL_BLOCKS = (ConvBnAct, DepthwiseSeparableConv, InvertedResidual)


class ConvTower(nn.Module):
    """A tower whose features come from feature maps.

    Attributes:
        parts: Names of the methods that compute the maps, in the order they run: the first takes normalised images,
            each other one the map of the one before; the last may give several maps.
        dtype: The type of the weights of the convolutions where they were given one of their own, so that autocast
            must stay away; else ``None``.
        tile_bytes: Memory that the maps of a tile take, in bytes a pixel, as measured.
        kept_bytes: Memory that an image takes beside its tiles, the same way: its bytes, and the map that is kept.
        openvino_bytes: ``tile_bytes`` where OpenVINO computes the maps.
        window: Side in pixels of the windows of a quality map, where nobody chose.
        norm_pairs: Convolutions that a BatchNorm follows directly, and the norms, by name.
    """

    parts: ClassVar[tuple[str, ...]]
    tile_bytes: int
    kept_bytes: float
    openvino_bytes: int
    window: ClassVar[int] = 224
    norm_pairs: ClassVar[tuple[tuple[str, str], ...]] = ()
    dtype: torch.dtype | None = None

    def lowered(self) -> Iterator[nn.Conv2d]:
        """The convolutions that ``dtype`` is for."""
        yield from (module for module in self.modules() if isinstance(module, nn.Conv2d))

    def cast(self, features: Tensor) -> Tensor:
        """Images or a map as the first of these convolutions takes them."""
        return features if self.dtype is None else features.to(self.dtype)

    def can_tile(self) -> bool:
        """Whether each feature depends on a bounded neighbourhood, so that tiles can stand for the whole image."""
        return False

    def smallest_tile(self) -> int:
        """Pixels of the smallest tile that has room beside the halos; 0 if there are no tiles."""
        return 0

    def encode_in_tiles(self, image: Tensor, normalise: Callable[[Tensor], Tensor], tile_pixels: int) -> Tensor:
        """Encode one image of any size in evaluation mode, reading at most ``tile_pixels`` pixels at once.

        Args:
            image: (1, 3, H, W); only tiles of it are passed on.
            normalise: Makes the tower's input of a piece of the image.
            tile_pixels: Most pixels of a tile, halo included.

        Returns:
            Features (1, D), those of the whole image up to rounding.

        Raises:
            ConfigError: The tiles are smaller than the halo needs, or the tower :meth:`can_tile` not.
        """
        raise ConfigError(f"a {type(self).__name__} cannot be computed in tiles")


class ResNetTower(ModifiedResNet, ConvTower):
    """CLIP's ResNet for images of any size, pooled only by its mean token.

    Args:
        embed_dim: Size D of the features.
        positional_embedding: Keep the positional embedding of the attention pool (QualiCLIP does not).
    """

    parts = ("feature_map",)
    tile_bytes, kept_bytes, openvino_bytes = 220, 13, 220
    norm_pairs = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"))
    stem: Callable[[Tensor], Tensor]
    conv1: nn.Conv2d
    conv2: nn.Conv2d
    conv3: nn.Conv2d
    avgpool: nn.Module
    layer1: nn.Sequential
    layer2: nn.Sequential
    layer3: nn.Sequential
    layer4: nn.Sequential
    attnpool: nn.Module

    def __init__(self, vision_cfg: dict[str, Any], embed_dim: int, positional_embedding: bool = False) -> None:
        config = CLIPVisionCfg(**vision_cfg)
        heads = config.width * 32 // config.head_width
        super().__init__(config.layers, embed_dim, heads, config.image_size, config.width)
        use_halving_pools(self)
        self.attnpool = SingleQueryAttentionPool(self.attnpool, positional_embedding)

    def feature_map(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the map before the pool, (N, C, H / 32, W / 32)."""
        features = self.stem(self.cast(images))
        return self.layer4(self.layer3(self.layer2(self.layer1(features))))

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (N, 3, H, W) to features (N, D), not of unit norm."""
        return self.attnpool(self.feature_map(images))

    def can_tile(self) -> bool:
        """See :class:`ConvTower`."""
        return True

    def smallest_tile(self) -> int:
        """See :class:`ConvTower`."""
        return smallest(*reach(self))

    def encode_in_tiles(self, image: Tensor, normalise: Callable[[Tensor], Tensor], tile_pixels: int) -> Tensor:
        """See :class:`ConvTower`."""
        whole = assembled(image, lambda pixels: self.feature_map(normalise(pixels)), tile_pixels, *reach(self))
        return self.attnpool(whole)


class StagePoolTower(ConvTower):
    """Spatial means of chosen stages of an untrained timm EfficientNet (or MobileNet), projected.

    Args:
        stages: Indices of the stages (``blocks.N``) that are pooled; nothing after the last one is kept.
        embed_dim: Size D of the features.
        hidden: Units of a hidden layer whose output the projection sees beside the means; 0: none.

    Raises:
        ConfigError: timm knows no such network, it has another layout, or a stage does not exist.
    """

    parts = ("early_map", "stage_maps")
    tile_bytes, kept_bytes, openvino_bytes = 300, 5.5, 400  # OpenVINO holds the widest map twice
    window = 96

    def __init__(self, model: str, stages: Sequence[int], embed_dim: int, hidden: int = 0) -> None:
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
        self.channels = [
            [part for part in trunk.blocks[stage].modules() if isinstance(part, nn.Conv2d)][-1].out_channels
            for stage in self.stages
        ]
        self.hidden = nn.Linear(sum(self.channels), hidden) if hidden else None
        self.head = nn.Linear(sum(self.channels) + hidden, embed_dim)

    def columns(self, stages: Sequence[int]) -> Tensor:
        """Where the means of some of the pooled stages stand among all means, (C,) int64.

        Raises:
            ConfigError: A stage is not pooled.
        """
        if not stages or not set(stages) <= set(self.stages):
            raise ConfigError(f"this tower pools the stages {list(self.stages)}, not {list(stages)}")
        owners = torch.repeat_interleave(torch.tensor(self.stages), torch.tensor(self.channels))
        return torch.isin(owners, torch.tensor(list(stages))).nonzero().flatten()

    def lowered(self) -> Iterator[nn.Conv2d]:
        """All but the first one: rounded images already move scores as far as everything after them."""
        yield from (module for module in super().lowered() if module is not self.trunk.conv_stem)

    def early_map(self, images: Tensor) -> Tensor:
        """Normalised images (N, 3, H, W) -> the feature map after the first ``early`` stages."""
        stem = self.trunk.bn1(self.trunk.conv_stem(images))
        return self.trunk.blocks[: self.early](self.cast(stem))

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
        maps = self.stage_maps(self.early_map(images))
        return torch.cat([features.mean((2, 3), dtype=torch.float32) for features in maps], dim=1)

    def project(self, pooled: Tensor) -> Tensor:
        """Means of the chosen stages (N, C) -> features (N, D), in fp32 also where the stages are not."""
        # Scores are differences of similarities times a large factor, which half precision would not survive.
        with torch.autocast(pooled.device.type, enabled=False):
            seen = pooled.float()
            if self.hidden is not None:
                seen = torch.cat([seen, nn.functional.gelu(self.hidden(seen))], dim=1)
            return self.head(seen)

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (N, 3, H, W) to features (N, D), not of unit norm."""
        return self.project(self.pool(images))

    def can_tile(self) -> bool:
        """See :class:`ConvTower`; squeeze-and-excitation looks at the whole image."""
        blocks = (block for stage in self.trunk.blocks.children() for block in stage.children())
        return all(
            type(block) in _LOCAL_BLOCKS and isinstance(getattr(block, "se", None), nn.Identity | None)
            for block in blocks
        )

    def _reaches(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Stride and halo of both passes: of the early map in pixels, of the later stages in steps of that map."""
        blocks = self.trunk.blocks
        return reach(self.trunk.conv_stem, blocks[: self.early]), reach(blocks[self.early :])

    def smallest_tile(self) -> int:
        """See :class:`ConvTower`."""
        if not self.can_tile():
            return 0
        (stride, halo), later = self._reaches()
        return max(smallest(stride, halo), smallest(*later) * stride**2 // LATE_TILE)

    def encode_in_tiles(self, image: Tensor, normalise: Callable[[Tensor], Tensor], tile_pixels: int) -> Tensor:
        """See :class:`ConvTower`."""
        (stride, halo), later = self._reaches()
        early = assembled(image, lambda pixels: self.early_map(normalise(pixels)), tile_pixels, stride, halo)
        strides = [reach(self.trunk.blocks[self.early : stage + 1])[0] for stage in self.stages]
        tiles = cut(early, LATE_TILE * tile_pixels // stride**2, *later)
        return self.project(means(early, self.stage_maps, tiles, strides))
