"""The lite model: its tower, the fit of its head, and what the shipped weights must do."""

from __future__ import annotations

import dataclasses
from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from qualiclip_plugin.distortions import DISTORTIONS
from qualiclip_plugin.models.conv_towers import StagePoolTower
from qualiclip_plugin.models.precision import prepare_for_inference
from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training import losses
from qualiclip_plugin.training.config import TrainConfig, load_config
from qualiclip_plugin.training.lite.config import HeadConfig
from qualiclip_plugin.training.lite.encodings import encode_ladders
from qualiclip_plugin.training.lite.head_adapt import adapt_head, tune
from qualiclip_plugin.training.lite.head_fit import (
    fit_directions,
    fit_head,
    ladder_moments,
    neutral_direction,
    write_head,
)
from qualiclip_plugin.training.lite.head_ranking import HiddenLayer, ladder_loss, train_hidden_layer
from qualiclip_plugin.training.lite.ladder_features import LadderFeatures
from qualiclip_plugin.training.seeds import generator
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.weights.checkpoint import build_model, read_weights, save_checkpoint
from qualiclip_plugin.weights.loading import get_card, load_model

STAGES = {"model": "tf_efficientnet_lite0", "stages": [1, 2], "hidden": 8}
BACKBONE = {"embed_dim": 32, "vision_cfg": {"stage_pool": STAGES}}
CPU = torch.device("cpu")
BLUR_PAIRS = {name: {"gaussian_blur": 1.0} for name in ATTRIBUTES}
HEAD = HeadConfig(batches=1, pairs=BLUR_PAIRS | {"noise_free": {"white_noise": 1.0}}, stages=(1, 2), batch_size=16)


@pytest.fixture(scope="module")
def network() -> QualiCLIP:
    torch.manual_seed(0)
    prompts = torch.nn.functional.normalize(torch.randn(7, 2, 32), dim=-1)
    tower = StagePoolTower("tf_efficientnet_lite0", [1, 2], 32, hidden=8)
    return QualiCLIP(tower, prompts, 1.0, (0.5,) * 3, (0.5,) * 3, ATTRIBUTES, backbone=BACKBONE).eval()


def test_tower_keeps_nothing_after_its_last_stage(network: QualiCLIP) -> None:
    tower = network.image_encoder
    assert isinstance(tower, StagePoolTower)
    assert len(tower.trunk.blocks) == 3
    assert tower.head.in_features == 24 + 40 + 8
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


def test_tower_knows_the_columns_of_its_stages(network: QualiCLIP) -> None:
    tower = network.image_encoder
    assert isinstance(tower, StagePoolTower)
    assert tower.columns([2]).tolist() == list(range(24, 64))
    with pytest.raises(ConfigError, match=r"pools the stages \[1, 2\], not \[5\]"):
        tower.columns([5])


def ladders_of(count: int, width: int) -> LadderFeatures:
    """Blur moves features 0 and 1, noise moves feature 2; feature 0 also says what a picture shows."""
    torch.manual_seed(0)
    content = 0.1 * torch.randn(count, 1, width)
    content[..., 0] *= 50
    kinds = tuple(("gaussian_blur", "white_noise")[index % 2] for index in range(count))
    blurred = torch.tensor([kind == "gaussian_blur" for kind in kinds])
    shift = torch.zeros(count, 6, width)
    shift[blurred, :, :2] = torch.linspace(0, 1, 6)[:, None]
    shift[~blurred, :, 2] = torch.linspace(0, 1, 6)
    features = content + shift + 0.02 * torch.randn(count, 6, width)
    relevant = torch.zeros(count, 7, dtype=torch.bool)
    relevant[~blurred, ATTRIBUTES.index("noise_free")] = True
    return LadderFeatures(features, kinds, relevant, features[:, 0])


def test_directions_follow_the_named_kinds_and_turn_from_contents() -> None:
    seen = ladders_of(200, 4)
    weight, bias = fit_directions(ladder_moments(seen, torch.arange(4)), HEAD, 5)
    qualities = seen.features.double() @ weight.T + bias
    blurred = torch.tensor([kind == "gaussian_blur" for kind in seen.kinds])
    sharp, noise_free = ATTRIBUTES.index("sharp_image"), ATTRIBUTES.index("noise_free")
    assert qualities[:, 0].mean(0).tolist() == pytest.approx([4.0] * 7)
    fall = qualities[:, 0] - qualities[:, 5]
    assert fall[blurred, sharp].mean().item() == pytest.approx(8)
    assert fall[~blurred, noise_free].mean().item() == pytest.approx(8)
    assert abs(fall[blurred, noise_free].mean().item()) < 2
    # Feature 0 tells blur as well as feature 1 does, but also one content from another.
    assert abs(weight[sharp, 0]) < 0.01 * abs(weight[sharp, 1])


def test_a_direction_is_the_least_squares_solution_of_its_objective() -> None:
    seen = ladders_of(60, 5)
    config = dataclasses.replace(HEAD, penalty=0.0, slope=0.2, named=0.7, unnamed=0.4)
    weight, _ = fit_directions(ladder_moments(seen, torch.arange(5)), config, 5)
    features = seen.features.double().numpy()
    pristine = features[:, 0] - features[:, 0].mean(0)
    quality = -((np.arange(1, 6) / 5) ** 0.7)
    rows, targets = [pristine / np.sqrt(60)], [np.zeros(60)]
    for kind, share, slope in (("gaussian_blur", 0.7, 1.0), ("white_noise", 0.4, 0.2)):
        chosen = features[[name == kind for name in seen.kinds]]
        moved = (chosen[:, 1:] - chosen[:, :1]).reshape(-1, 5)
        rows.append(np.sqrt(share / len(moved)) * moved)
        targets.append(np.sqrt(share / len(moved)) * slope * np.tile(quality, len(chosen)))
    expected = np.linalg.lstsq(np.concatenate(rows), np.concatenate(targets), rcond=None)[0]
    found = weight[ATTRIBUTES.index("sharp_image")].numpy()
    np.testing.assert_allclose(found / np.linalg.norm(found), expected / np.linalg.norm(expected), atol=1e-4)


def test_only_the_chosen_columns_enter_the_directions() -> None:
    weight, _ = fit_directions(ladder_moments(ladders_of(60, 6), torch.tensor([1, 2])), HEAD, 5)
    assert weight.shape == (7, 6)
    assert weight[:, [0, 3, 4, 5]].abs().max() == 0


def test_a_named_kind_that_was_never_drawn_is_an_error() -> None:
    config = dataclasses.replace(HEAD, pairs=HEAD.pairs | {"good_photo": {"jpeg": 1.0}})
    with pytest.raises(ConfigError, match="jpeg of 'good_photo' was never drawn"):
        fit_directions(ladder_moments(ladders_of(20, 4), torch.arange(4)), config, 5)


def ordered_by_content(count: int) -> LadderFeatures:
    """Degradation raises feature 1 of half of the pictures and lowers it for the others; feature 0 says which."""
    torch.manual_seed(0)
    sides = torch.where(torch.arange(count) % 2 == 0, 1.0, -1.0)
    features = torch.zeros(count, 6, 2)
    features[..., 0] = sides[:, None]
    features[..., 1] = sides[:, None] * torch.linspace(0, 1, 6) + 0.05 * torch.randn(count, 1)
    return LadderFeatures(
        features, ("gaussian_blur",) * count, torch.zeros(count, 7, dtype=torch.bool), features[:, 0]
    )


def hidden_layer(seen: LadderFeatures) -> HiddenLayer:
    head = dataclasses.replace(HEAD, epochs=30, learning_rate=1e-2, dropout=0.0)
    zero = torch.zeros(7, seen.features.shape[-1], dtype=torch.float64)
    return train_hidden_layer(seen, zero, torch.zeros(7).double(), 8, TrainConfig(head=head))


def test_the_hidden_layer_orders_what_no_direction_can() -> None:
    seen = ordered_by_content(128)
    assert ladder_loss(torch.zeros(128, 6, 7), seen.relevant, HEAD) > 0.5
    qualities = hidden_layer(seen)(seen.features)
    assert (qualities.mean(-1).diff(dim=1) < 0).float().mean() > 0.95


def test_the_hidden_layer_is_decided_by_the_seed() -> None:
    seen = ordered_by_content(32)
    first = hidden_layer(seen)(seen.features)
    torch.rand(3)
    assert torch.equal(hidden_layer(seen)(seen.features), first)


def test_ladder_loss_by_hand() -> None:
    # Two levels and the twin, all pairs alike, so the score's logit is the pairs' argument.
    qualities = torch.tensor([2.0, 1.0, 0.8, 1.5])[None, :, None].expand(1, 4, 7)
    relevant = torch.zeros(1, 7, dtype=torch.bool)
    config = dataclasses.replace(HEAD, ranking_margin=0.5, pristine_weight=0.3, twin_weight=0.2)
    # Of three pairs of levels one misses its margin of .5, by .3. The pristine crop is 1 and 1.2 above the degraded
    # ones, its twin .5 and .7; the two are .5 apart.
    ladder = 0.3 * (0.5 + 0.3) / 4 + 0.2 * 0.25
    assert ladder_loss(qualities, relevant, config).item() == pytest.approx(0.1 + ladder, abs=1e-5)
    # A second ladder at 0: pristine crops of one ladder are compared with the degraded ones of both.
    both = torch.cat([qualities, torch.zeros(1, 4, 7)])
    gaps = [above - below for above in (2, 0, 1.5, 0) for below in (1, 0.8, 0, 0)]
    misses = [max(0.0, 1 - gap) for gap in gaps]
    expected = (0.3 + 3 * 0.5) / 6 + 0.3 * sum(misses) / 16 + 0.2 * 0.25 / 2
    assert ladder_loss(both, relevant.expand(2, 7), config).item() == pytest.approx(expected, abs=1e-5)


def test_ladder_loss_asks_the_named_pairs_to_fall_further() -> None:
    seen = ladders_of(8, 4)
    config = dataclasses.replace(HEAD, ranking_margin=0.0, pristine_weight=0.0, twin_weight=0.0, attribute_margin=0.1)
    even = torch.tensor([2.0, 1.2, 0.4, -0.4, -1.2, -2.0, 2.0])[None, :, None].expand(8, 7, 7)
    # Half of the ladders are noise: their named pair falls no further than the others, so the margin is missing.
    assert ladder_loss(even, seen.relevant, config).item() == pytest.approx(
        losses.named_fall_loss(torch.zeros(8, 7), seen.relevant, 0.1).item(), abs=1e-6
    )


def test_an_encoding_is_carried_by_every_level_of_a_ladder() -> None:
    torch.manual_seed(0)
    ladders = torch.rand(24, 3, 3, 32, 32)
    images = encode_ladders(ladders, 0.5, generator(1))
    carried = ~(images[:, :-1] == ladders).flatten(1).all(1)
    assert 0 < carried.sum() < 24
    # Where the ladder is plain its pristine crop has an encoded twin, and the other way round.
    assert torch.equal(images[carried, -1], ladders[carried, 0])
    assert not (images[~carried, -1] == ladders[~carried, 0]).flatten(1).all(1).any()
    assert (images[carried, :-1] != ladders[carried]).flatten(2).any(2).all()
    assert images.min() >= 0
    assert images.max() <= 1
    assert torch.equal(encode_ladders(ladders, 0.5, generator(1)), images)
    assert torch.equal(encode_ladders(ladders, 0.0, generator(1))[:, :-1], ladders)


def test_head_gives_the_fitted_qualities_back(network: QualiCLIP) -> None:
    seen = ladders_of(200, 64)
    weight, bias = fit_directions(ladder_moments(seen, torch.arange(64)), HEAD, 5)
    layer = HiddenLayer(64, 8, 7, 0.0)
    with torch.no_grad():
        layer.out.weight.normal_(std=0.1)
        write_head(network, weight, bias, layer, seen)
        expected = seen.features.double() @ weight.T + bias + layer(seen.features)
        tower = network.image_encoder
        assert isinstance(tower, StagePoolTower)
        encoded = torch.nn.functional.normalize(tower.project(seen.features.flatten(0, 1)), dim=-1)
        difference = network.text_features[:, 0] - network.text_features[:, 1]
        logits = (network.logit_scale * (encoded @ difference.T)).unflatten(0, (200, 6))
    # The features' norm varies by at most (1/3)^2 / 2, and the qualities with it.
    assert ((logits - expected).abs() / expected.abs().clamp_min(1)).max() < 0.06


def fitted(network: QualiCLIP, seen: LadderFeatures) -> QualiCLIP:
    model = deepcopy(network)
    weight, bias = fit_directions(ladder_moments(seen, torch.arange(64)), HEAD, 5)
    write_head(model, weight, bias, HiddenLayer(64, 8, 7, 0.0).requires_grad_(False), seen)
    return model


def own_ladders(seed: int) -> LadderFeatures:
    """Pictures of another kind: here degradations move feature 9, which was never seen to say anything."""
    draws = torch.Generator().manual_seed(seed)
    features = 0.1 * torch.randn(64, 1, 64, generator=draws) + torch.zeros(64, 6, 64)
    features[..., 9] += torch.linspace(0, 1, 6)
    return LadderFeatures(features, ("haze",) * 64, torch.zeros(64, 7, dtype=torch.bool), features[:, 0])


TUNING = TrainConfig(head=HeadConfig(batches=1, share=0.5, epochs=10, learning_rate=1e-2, batch_size=16))


def test_a_tuned_head_orders_held_out_pictures_of_its_kind_better(network: QualiCLIP) -> None:
    known = ladders_of(200, 64)
    model = fitted(network, known)
    own = own_ladders(1)

    def fall(ladders: LadderFeatures) -> float:
        tower = model.image_encoder
        assert isinstance(tower, StagePoolTower)
        with torch.no_grad():
            encoded = torch.nn.functional.normalize(tower.project(ladders.features.flatten(0, 1)), dim=-1)
        logits = (encoded @ (model.text_features[:, 0] - model.text_features[:, 1]).T).mean(-1).unflatten(0, (-1, 6))
        return model.logit_scale * float((logits[:, 0] - logits[:, 5]).mean())

    before = fall(own)
    said = tune(model, own_ladders(0), {"own": own}, TUNING)
    assert said.startswith("the head went 0.5 of the way; loss of ladders: own ")
    assert fall(own) > 1.2 * before


def test_a_head_stays_where_the_control_would_get_worse(network: QualiCLIP) -> None:
    model = fitted(network, ladders_of(200, 64))
    start = deepcopy(model.state_dict())
    own = own_ladders(1)
    features = own.features.clone()
    features[..., 9] = features[..., 9].flip(1)
    control = dataclasses.replace(own, features=features, twins=features[:, 0])
    said = tune(model, own_ladders(0), {"own": own, "others": control}, TUNING)
    assert said.startswith("nothing was gained, the weights stay as they were")
    assert all(torch.equal(value, start[name]) for name, value in model.state_dict().items())


def test_tuning_needs_pictures_that_are_held_out(network: QualiCLIP) -> None:
    with pytest.raises(ConfigError, match="validation_photos"):
        adapt_head(network, [], None, TUNING, CPU, lambda done: None)


def test_neutral_direction_has_no_share_in_a_prompt() -> None:
    prompts = torch.nn.functional.normalize(torch.randn(7, 2, 40).double(), dim=-1)
    direction = neutral_direction(prompts)
    assert direction.norm().item() == pytest.approx(1)
    assert (prompts @ direction).abs().max().item() < 1e-12


def test_fit_refuses_several_distortions_at_once(network: QualiCLIP) -> None:
    config = dataclasses.replace(
        TrainConfig(), batch_size=1, crop_size=64, distortions=("jpeg", "white_noise"), compositions=2, head=HEAD
    )
    crops = torch.randint(0, 256, (1, 2, 3, 64, 64), dtype=torch.uint8)
    with pytest.raises(ConfigError, match="compositions must be 1"):
        fit_head(network, [crops], config, CPU, lambda done: None)


def test_fit_refuses_stages_before_it_reads_a_crop(network: QualiCLIP) -> None:
    config = dataclasses.replace(TrainConfig(), head=dataclasses.replace(HEAD, stages=(5,)))
    crops = (pytest.fail("a crop was read") for _ in range(1))
    with pytest.raises(ConfigError, match=r"pools the stages \[1, 2\], not \[5\]"):
        fit_head(network, crops, config, CPU, lambda done: None)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pairs": {"good_picnic": {"jpeg": 1.0}}}, "good_picnic"),
        ({"pairs": {}}, "'good_photo' names no distortion kind"),
        ({"gains": {"sharp": 2.0}}, "'sharp' is no prompt pair"),
        ({"batches": 0}, "batches"),
        ({"dropout": 1.0}, "dropout"),
        ({"penalty": -1.0}, "at least 0"),
        ({"encoded": 1.5}, "at most 1"),
    ],
)
def test_head_settings_that_mean_nothing_are_refused(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(HEAD, **change)


def test_lite_configuration_is_whole() -> None:
    config = load_config("lite", ["head.batches=3", "head.gains.noise_free=2"])
    assert config.head is not None
    assert config.head.batches == 3
    assert config.head.gains["noise_free"] == 2
    assert set().union(*config.head.pairs.values()) <= set(DISTORTIONS)
    assert config.scored_data is None


def test_a_setting_of_a_group_that_is_not_there_is_named() -> None:
    with pytest.raises(ConfigError, match="no settings 'head'"):
        load_config("paper", ["head.batches=3"])
    with pytest.raises(ConfigError, match=r"head\.batch=3: unknown setting 'head\.batch'; did you mean batches"):
        load_config("lite", ["head.batch=3"])
    with pytest.raises(ConfigError, match=r"--set head=.*: the setting 'head\.batches' is missing"):
        load_config("lite", ["head={pairs: {}, stages: [5]}"])


def test_shipped_weights_are_small() -> None:
    assert get_card("lite").path.stat().st_size <= 10e6


@pytest.fixture(scope="module")
def falls(photographs: list[np.ndarray]) -> dict[str, dict[str, float]]:
    """Mean fall of every pair's score from pristine to level 5, by group."""
    model = load_model("lite")
    crops = torch.stack([torch.from_numpy(photo[22:278, 72:328].copy()).permute(2, 0, 1) for photo in photographs])
    images, strength = crops.float() / 255, torch.ones(len(crops))
    table = {}
    with torch.no_grad():
        pristine = model(images, attributes=True)[1]
        for group in ("blur", "noise", "compression"):
            kinds = [kind for kind in DISTORTIONS.values() if kind.group == group]
            degraded = [
                model(kind.apply(images, strength * kind.strength(5), torch.arange(len(images))), attributes=True)[1]
                for kind in kinds
            ]
            table[group] = {
                name: float(torch.stack([pristine[name] - pairs[name] for pairs in degraded]).mean())
                for name in ATTRIBUTES
            }
    return table


def test_the_pairs_that_name_a_group_fall_furthest(falls: dict[str, dict[str, float]]) -> None:
    def furthest(group: str) -> list[str]:
        return sorted(falls[group], key=lambda name: -falls[group][name])

    assert set(furthest("blur")[:2]) == {"sharp_image", "sharp_edges"}
    assert furthest("noise")[0] == "noise_free"
    assert furthest("compression")[0] == "high_quality"
    assert min(falls["blur"]["sharp_image"], falls["noise"]["noise_free"], falls["compression"]["high_quality"]) > 0.3


def test_fit_learns_from_photographs(photographs: list[np.ndarray]) -> None:
    # The shipped trunk: one of random weights has no feature that tells blur.
    network = load_model("lite", inference=False).eval()
    config = TrainConfig(
        batch_size=4,
        crop_size=96,
        distortions=("gaussian_blur", "white_noise"),
        by_group=False,
        attribute_kinds={"noise": ("noise_free",)},
        head=dataclasses.replace(HEAD, stages=(5, 6)),
    )
    crops = torch.stack([torch.from_numpy(photo[40:136, 100:196].copy()).permute(2, 0, 1) for photo in photographs])
    tower = network.image_encoder
    assert isinstance(tower, StagePoolTower)
    before = {name: value.clone() for name, value in tower.trunk.named_parameters()}
    head = tower.head.weight.clone()
    fit_head(network, [crops[:, None].expand(-1, 2, -1, -1, -1)] * 3, config, CPU, lambda done: None)
    assert all(torch.equal(value, before[name]) for name, value in tower.trunk.named_parameters())
    assert not torch.allclose(tower.head.weight, head)
    images = crops.float() / 255
    blurred = DISTORTIONS["gaussian_blur"].apply(images, torch.full((4,), 5.0), torch.zeros(4, dtype=torch.long))
    with torch.no_grad():
        assert (network(images) > network(blurred)).all()
