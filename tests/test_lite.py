"""The lite model: its tower, the closed-form fit of its head, and what the shipped weights must do."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from qualiclip_plugin.checkpoint import build_model, read_weights, save_checkpoint
from qualiclip_plugin.distortions import DISTORTIONS
from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.inference import prepare_for_inference
from qualiclip_plugin.model import QualiCLIP
from qualiclip_plugin.prompts import ATTRIBUTES
from qualiclip_plugin.towers import StagePoolTower
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.head_fit import LevelFeatures, fit_head, neutral_direction, ridge, write_head
from qualiclip_plugin.weights import get_card, load_model

BACKBONE = {"embed_dim": 32, "vision_cfg": {"stage_pool": {"model": "tf_efficientnet_lite0", "stages": [1, 2]}}}


@pytest.fixture(scope="module")
def network() -> QualiCLIP:
    torch.manual_seed(0)
    prompts = torch.nn.functional.normalize(torch.randn(7, 2, 32), dim=-1)
    tower = StagePoolTower("tf_efficientnet_lite0", [1, 2], 32)
    return QualiCLIP(tower, prompts, 1.0, (0.5,) * 3, (0.5,) * 3, ATTRIBUTES, backbone=BACKBONE).eval()


def test_tower_keeps_nothing_after_its_last_stage(network: QualiCLIP) -> None:
    tower = network.image_encoder
    assert isinstance(tower, StagePoolTower)
    assert len(tower.trunk.blocks) == 3
    assert tower.head.in_features == 24 + 40
    assert tower(torch.rand(2, 3, 65, 97)).shape == (2, 32)


def test_folding_keeps_the_tower_s_features() -> None:
    torch.manual_seed(0)
    tower = StagePoolTower("tf_efficientnet_lite0", [5, 6], 8).eval()
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        before = tower(images)
        prepare_for_inference(tower)
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in tower.modules())
        torch.testing.assert_close(tower(images), before, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "stages", "message"),
    [("no_such_model", [1], "no_such_model"), ("resnet18", [1], "layout"), ("tf_efficientnet_lite0", [7], "0 to 6")],
)
def test_tower_says_what_it_cannot_build(model: str, stages: list[int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        StagePoolTower(model, stages, 8)


def test_tower_survives_its_checkpoint(network: QualiCLIP, tmp_path) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "tower.safetensors"
    save_checkpoint(path, network, {})
    images = torch.rand(1, 3, 48, 64)
    with torch.no_grad():
        torch.testing.assert_close(build_model(read_weights(path)).eval()(images), network(images))


def test_ridge_without_penalty_is_least_squares() -> None:
    torch.manual_seed(0)
    features, weights = torch.randn(200, 5).double(), torch.rand(200).double()
    target = features @ torch.tensor([1.0, -2, 0, 3, 0.5]).double() + 0.7 + 0.1 * torch.randn(200).double()
    weight, bias = ridge(features, target, weights, 0.0)
    design = np.column_stack([features.numpy(), np.ones(200)]) * np.sqrt(weights.numpy())[:, None]
    expected = np.linalg.lstsq(design, target.numpy() * np.sqrt(weights.numpy()), rcond=None)[0]
    np.testing.assert_allclose([*weight.tolist(), bias.item()], expected, atol=1e-9)


def test_ridge_shrinks_towards_the_mean() -> None:
    torch.manual_seed(0)
    features = torch.randn(50, 3).double()
    target = features.sum(1)
    weight, bias = ridge(features, target, torch.ones(50).double(), 1e9)
    assert weight.abs().max() < 1e-8
    assert bias.item() == pytest.approx(target.mean().item())


def test_head_gives_the_regressed_qualities_back(network: QualiCLIP) -> None:
    torch.manual_seed(0)
    features, levels = torch.randn(600, 64), torch.arange(6).repeat(100)
    features[:, :7] -= levels[:, None]
    seen = LevelFeatures(features, levels, torch.ones(600, 7, dtype=torch.bool), torch.zeros(600, dtype=torch.long))
    weight = torch.eye(7, 64).double()
    write_head(network, weight, torch.zeros(7).double(), seen, TrainConfig(head_gain=4.0))
    tower = network.image_encoder
    assert isinstance(tower, StagePoolTower)
    with torch.no_grad():
        encoded = tower.head(features)
        logits = network.logit_scale * (
            torch.nn.functional.normalize(encoded, dim=-1)
            @ (network.text_features[:, 0] - network.text_features[:, 1]).T
        )
    # Average pristine crops at +4, average level-5 crops at -4, up to the small change of the features' norm.
    torch.testing.assert_close(logits[levels == 0].mean(0), torch.full((7,), 4.0), atol=0.3, rtol=0)
    torch.testing.assert_close(logits[levels == 5].mean(0), torch.full((7,), -4.0), atol=0.3, rtol=0)


def test_neutral_direction_has_no_share_in_a_prompt() -> None:
    prompts = torch.nn.functional.normalize(torch.randn(7, 2, 40).double(), dim=-1)
    direction = neutral_direction(prompts)
    assert direction.norm().item() == pytest.approx(1)
    assert (prompts @ direction).abs().max().item() < 1e-12


def test_fit_needs_crops_for_every_pair(network: QualiCLIP) -> None:
    config = dataclasses.replace(
        TrainConfig(), batch_size=1, crop_size=64, distortions=("jpeg",), attribute_kinds={"noise": ("noise_free",)}
    )
    crops = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="noise_free"):
        fit_head(network, [crops], config, lambda done: None)


def test_lite_configuration_is_whole() -> None:
    config = load_config("lite")
    assert set(config.head_weights) <= set(config.distortions)
    assert config.scored_data is None


def test_shipped_weights_are_small() -> None:
    assert get_card("lite").path.stat().st_size <= 10e6


@pytest.fixture(scope="module")
def falls(photographs: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean fall of every pair's score from pristine to level 5, by kind."""
    model = load_model("lite")
    crops = torch.stack([torch.from_numpy(photo[22:278, 72:328].copy()).permute(2, 0, 1) for photo in photographs])
    images = crops.float() / 255
    table = {}
    with torch.no_grad():
        pristine = model(images, attributes=True)[1]
        for kind in ("motion_blur", "lens_blur", "gaussian_blur", "white_noise", "shot_noise", "color_noise"):
            strength = torch.full((len(images),), DISTORTIONS[kind].strength(5))
            degraded = model(DISTORTIONS[kind].apply(images, strength, torch.arange(len(images))), attributes=True)[1]
            table[kind] = {name: float((pristine[name] - degraded[name]).mean()) for name in ATTRIBUTES}
    return table


@pytest.mark.parametrize("kind", ["motion_blur", "lens_blur", "gaussian_blur"])
def test_blur_moves_the_sharpness_pairs_most(falls: dict[str, dict[str, float]], kind: str) -> None:
    fall = falls[kind]
    assert min(fall["sharp_image"], fall["sharp_edges"]) > 0.3
    assert min(fall["sharp_image"], fall["sharp_edges"]) > fall["noise_free"]


@pytest.mark.parametrize("kind", ["white_noise", "shot_noise", "color_noise"])
def test_noise_moves_the_noise_pair_most(falls: dict[str, dict[str, float]], kind: str) -> None:
    fall = falls[kind]
    assert fall["noise_free"] > 0.3
    assert max(fall, key=lambda name: fall[name]) == "noise_free"


def test_fit_learns_from_photographs(photographs: list[np.ndarray]) -> None:
    # The shipped trunk: one of random weights has no feature that tells blur.
    network = load_model("lite", inference=False).eval()
    config = dataclasses.replace(
        TrainConfig(),
        batch_size=4,
        crop_size=96,
        distortions=("gaussian_blur", "white_noise"),
        by_group=False,
        attribute_kinds={"noise": ("noise_free",)},
    )
    crops = torch.stack([torch.from_numpy(photo[40:136, 100:196].copy()).permute(2, 0, 1) for photo in photographs])
    tower = network.image_encoder
    assert isinstance(tower, StagePoolTower)
    before = {name: value.clone() for name, value in tower.trunk.named_parameters()}
    head = tower.head.weight.clone()
    fit_head(network, [crops[:, None].expand(-1, 2, -1, -1, -1)] * 3, config, lambda done: None)
    assert all(torch.equal(value, before[name]) for name, value in tower.trunk.named_parameters())
    assert not torch.allclose(tower.head.weight, head)
    images = crops.float() / 255
    blurred = DISTORTIONS["gaussian_blur"].apply(images, torch.full((4,), 5.0), torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        assert (network(images) > network(blurred)).all()
