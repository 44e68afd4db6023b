"""Image and text towers, built by open_clip from its own model configuration and never downloaded here.

A backbone is an open_clip model configuration: a mapping with ``embed_dim``, ``vision_cfg`` and, where a text tower
is wanted, ``text_cfg`` and ``quick_gelu``. open_clip's named configurations, ResNet, ViT, ConvNeXt and every timm
model are covered by it. The towers returned here take images of any size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import copy, deepcopy
from typing import Any

import open_clip
import timm
import torch
import torch.nn.functional as F
from open_clip.model import _build_text_tower, _build_vision_tower
from open_clip.timm_model import TimmModel
from open_clip.transformer import TextTransformer, VisionTransformer
from timm.layers import Format
from torch import Tensor, nn

from qualiclip_plugin.models.conv_towers import ResNetTower, StagePoolTower
from qualiclip_plugin.utils.errors import ConfigError, did_you_mean

PYIQA_BACKBONES = {
    "RN50": "RN50-quickgelu",
    "RN101": "RN101-quickgelu",
    "RN50x4": "RN50x4-quickgelu",
    "RN50x16": "RN50x16-quickgelu",
    "RN50x64": "RN50x64-quickgelu",
    "ViT-B/32": "ViT-B-32-quickgelu",
    "ViT-B/16": "ViT-B-16-quickgelu",
    "ViT-L/14": "ViT-L-14-quickgelu",
    "ViT-L/14@336px": "ViT-L-14-336-quickgelu",
}
"""OpenAI's model names, as pyiqa spells them, and their open_clip configurations (OpenAI trained with QuickGELU)."""


TOWERS: Mapping[str, Callable[..., nn.Module]] = {
    "stage_pool": StagePoolTower,
}
"""Towers of this project: the key of ``vision_cfg`` that holds their settings, and what builds one."""


def backbone_config(name: str) -> dict[str, Any]:
    """The open_clip configuration of a named backbone.

    Args:
        name: One of open_clip's model names (``open_clip.list_models()``) or of ``PYIQA_BACKBONES``.

    Raises:
        ConfigError: The name is unknown; near names are suggested.
    """
    config = open_clip.get_model_config(PYIQA_BACKBONES.get(name, name))
    if config is None:
        hint = did_you_mean(name, [*PYIQA_BACKBONES, *open_clip.list_models()])
        raise ConfigError(f"unknown backbone {name!r}{hint}")
    return config


def build_image_encoder(config: dict[str, Any]) -> nn.Module:
    """Build an untrained image tower that accepts any image size.

    Args:
        config: open_clip model configuration. Where it says ``positional_embedding``, that of a ResNet's attention
            pool is kept (QualiCLIP does not).

    Returns:
        A module: normalised images (N, 3, H, W) -> features (N, embed_dim), not of unit norm.

    Raises:
        ConfigError: timm has no network of the name that the configuration gives.
    """
    for key in config["vision_cfg"].keys() & TOWERS.keys():
        return TOWERS[key](**config["vision_cfg"][key], embed_dim=config["embed_dim"])
    if isinstance(config["vision_cfg"].get("layers"), list | tuple):  # open_clip's mark of a ResNet
        return ResNetTower(config["vision_cfg"], config["embed_dim"], config.get("positional_embedding", False))
    vision_config = {**config["vision_cfg"], "timm_model_pretrained": False}
    name = vision_config.get("timm_model_name")
    # timm would also take the address of a repository, and ask the network for it.
    if name is not None and not timm.is_model(name):
        raise ConfigError(f"timm has no model {name!r}")
    tower = _build_vision_tower(config["embed_dim"], vision_config, config.get("quick_gelu", False))
    if isinstance(tower, VisionTransformer):
        tower = AnySizeViT(tower)
    elif isinstance(tower, TimmModel):
        _free_timm_input_size(tower.trunk)
    return tower


def build_text_tower(config: dict[str, Any]) -> TextTransformer:
    """Build an untrained, frozen text tower: token ids (M, T) -> features (M, embed_dim).

    Raises:
        ConfigError: The configuration has no text tower.
    """
    if "text_cfg" not in config:
        raise ConfigError("this backbone has no text tower; its prompt features travel with the weights")
    text_config = deepcopy(config["text_cfg"])
    tower = _build_text_tower(config["embed_dim"], text_config, config.get("quick_gelu", False))
    return tower.eval().requires_grad_(False)


def build_tokenizer(config: dict[str, Any]) -> Callable[[list[str]], Tensor]:
    """CLIP's byte-pair tokenizer for the context length of ``config``: strings -> token ids (M, T)."""
    tokenizer_name = config.get("text_cfg", {}).get("hf_tokenizer_name")
    if tokenizer_name:
        return open_clip.HFTokenizer(tokenizer_name)
    return open_clip.SimpleTokenizer(context_length=config["text_cfg"].get("context_length", 77))


class AnySizeViT(nn.Module):
    """open_clip's VisionTransformer with its positional embedding interpolated to the grid of each input.

    Pixels beyond the last whole patch are not seen (at most ``patch_size - 1`` at the right and the bottom).
    """

    def __init__(self, transformer: VisionTransformer) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(self, images: Tensor) -> Tensor:
        """Encode normalised images (N, 3, H, W) to features (N, D)."""
        patch_height, patch_width = self.transformer.patch_size
        grid = (images.shape[2] // patch_height, images.shape[3] // patch_width)
        if grid == tuple(self.transformer.grid_size):
            return self.transformer(images)
        embedding = interpolate_grid(self.transformer.positional_embedding, tuple(self.transformer.grid_size), grid)
        # A copy that shares all but the embedding: other threads may be encoding images of another size.
        sized = copy(self.transformer)
        vars(sized)["positional_embedding"] = embedding
        return sized(images)

    # The wrapper must not show in state dictionaries: checkpoints keep open_clip's names.
    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        return self.transformer.state_dict(*args, **kwargs)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        for key in [key for key in state_dict if key.startswith(prefix)]:
            inner = f"{prefix}transformer.{key.removeprefix(prefix)}"
            state_dict[inner] = state_dict.pop(key)
        super()._load_from_state_dict(state_dict, prefix, *args)


def interpolate_grid(embedding: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize the grid part of a ViT's positional embedding, bicubic with antialiasing (as open_clip does).

    Not by ``timm.layers.resample_abs_pos_embed``: in timm 1.0.9 it leaves a grid as it is if the new one is square
    and has as many cells.

    Args:
        embedding: (extra + h * w, C); the extra leading tokens (class token) are kept as they are.
        old: Grid (h, w) the embedding was trained on.
        new: Grid (h', w') wanted.

    Returns:
        (extra + h' * w', C).
    """
    extra = embedding.shape[0] - old[0] * old[1]
    grid = embedding[extra:].T.reshape(1, -1, *old)
    grid = F.interpolate(grid, size=new, mode="bicubic", antialias=True, align_corners=False)
    resized = grid.flatten(2)[0].T
    return torch.cat([embedding[:extra], resized])


def _free_timm_input_size(trunk: Any) -> None:
    # timm's ViTs are built for one input size; these switches make their forward pass interpolate the positional
    # embedding to the grid of each input, as `timm.create_model(..., dynamic_img_size=True)` would.
    if hasattr(trunk, "dynamic_img_size") and hasattr(trunk, "patch_embed"):
        trunk.dynamic_img_size = True
        trunk.patch_embed.strict_img_size = False
        trunk.patch_embed.dynamic_img_pad = True
        trunk.patch_embed.flatten = False
        trunk.patch_embed.output_fmt = Format.NHWC
