"""Stages of the image encoders: names, order, freezing, the pull and the distance from the start."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from qualiclip_plugin.models.backbones import backbone_config, build_image_encoder
from qualiclip_plugin.training.layers import (
    choose_stages,
    movement,
    pull_to_start,
    recompute_in_backward,
    set_training_mode,
    stages,
    train_only,
)
from qualiclip_plugin.training.model_card import describe_movement
from qualiclip_plugin.utils.errors import ConfigError

TIMM = {
    "embed_dim": 16,
    "vision_cfg": {
        "timm_model_name": "tf_efficientnet_lite0",
        "timm_pool": "avg",
        "timm_proj": "linear",
        "image_size": 64,
    },
}
EXPECTED = {
    "RN50": ["stem", "layer1", "layer2", "layer3", "layer4", "attnpool"],
    "ViT-B-32": ["stem", *(f"resblocks.{i}" for i in range(12)), "head"],
    "timm": ["stem", *(f"blocks.{i}" for i in range(7)), "head", "projection"],
}


@pytest.mark.parametrize("name", EXPECTED)
def test_stages_of_each_kind_of_network(name: str) -> None:
    with torch.device("meta"):
        encoder = build_image_encoder(TIMM if name == "timm" else backbone_config(name))
    found = stages(encoder)
    assert list(found) == EXPECTED[name]
    names = [parameter for members in found.values() for parameter in members]
    assert sorted(names) == sorted(parameter for parameter, _ in encoder.named_parameters())
    if name == "ViT-B-32":
        assert any(parameter.endswith("proj") for parameter in found["head"])


def test_a_network_without_blocks_is_one_stage() -> None:
    assert list(stages(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)))) == ["head"]


def test_choosing_stages() -> None:
    encoder = build_image_encoder(TIMM)
    assert choose_stages(encoder, 3) == ["blocks.6", "head", "projection"]
    assert choose_stages(encoder, "all") == EXPECTED["timm"]
    assert choose_stages(encoder, ("projection", "stem")) == ["stem", "projection"]
    assert choose_stages(encoder, "head") == ["head"]
    for wrong in (0, 11, ("tail",), ()):
        with pytest.raises(ConfigError, match="train_layers"):
            choose_stages(encoder, wrong)


def test_frozen_stages_keep_their_batch_statistics() -> None:
    encoder = build_image_encoder(TIMM)
    train_only(encoder, ["blocks.6", "head", "projection"])
    set_training_mode(encoder, "train")
    assert not encoder.trunk.bn1.training
    assert encoder.trunk.bn2.training
    assert encoder.training
    set_training_mode(encoder, "eval")
    assert not encoder.trunk.bn2.training


def test_the_pull_by_hand() -> None:
    layer = nn.Linear(2, 1)
    nn.init.constant_(layer.weight, 1.5)
    layer.weight.grad = torch.ones(1, 2)
    pull_to_start(layer, {"weight": torch.tensor([[1.0, 2.0]]), "bias": torch.zeros(1)}, 0.5)
    torch.testing.assert_close(layer.weight.grad, torch.tensor([[1.25, 0.75]]))
    assert layer.bias.grad is None


def test_movement_by_hand() -> None:
    layer = nn.Linear(4, 1, bias=False)
    start = {"weight": torch.tensor([[3.0, 0.0, 0.0, 4.0]])}
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[3.0, 0.0, 1.0, 4.0]]))
    assert movement(layer, start) == {"head": {"relative": pytest.approx(0.2), "changed": 0.25}}


def test_movement_in_words() -> None:
    moved = {
        "stem": {"relative": 0.0, "changed": 0.0},
        "layer1": {"relative": 1.5e-9, "changed": 0.031},
        "head": {"relative": 0.02, "changed": 1.0},
    }
    assert describe_movement(moved) == "layer1 1.5e-09 (3% of its weights), head 0.02; unchanged: stem"
    assert describe_movement({"stem": moved["stem"]}) == "none; unchanged: stem"


def test_a_step_of_1e_9_is_lost_on_large_weights() -> None:
    # The arithmetic behind the paper's learning rate: half the spacing of fp32 at 1/32 is 1.9e-9 / 2.
    layer = nn.Linear(2, 1, bias=False)
    start = {"weight": torch.tensor([[0.01, 0.1]])}
    with torch.no_grad():
        layer.weight.copy_(start["weight"])
        layer.weight.sub_(1e-9)
    assert movement(layer, start)["head"]["changed"] == 0.5


def test_gradient_checkpointing_that_a_network_does_not_offer() -> None:
    with pytest.raises(ConfigError, match="gradient_checkpointing"):
        recompute_in_backward(nn.Linear(2, 2))
