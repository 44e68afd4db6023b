"""The objective: its parts, its switches, and where its gradient goes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.losses import (
    attribute_loss,
    consistency_loss,
    negative_ranking_loss,
    positive_ranking_loss,
)
from qualiclip_plugin.training.objective import (
    ObjectiveConfig,
    content_levels,
    objective,
    ranking_accuracy,
    selected_prompt_pairs,
)
from qualiclip_plugin.utils.errors import ConfigError


class TextTower(nn.Module):
    """A trainable stand-in for CLIP's text tower, so that a leak of gradient would show."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(14, 8)

    def forward(self) -> torch.Tensor:
        features = self.embedding.weight.view(7, 2, 8)
        return features / features.norm(dim=-1, keepdim=True)


def tiny_model(text: torch.Tensor) -> QualiCLIP:
    encoder = nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 8)
    )
    return QualiCLIP(encoder, text, 50.0, [0.5] * 3, [0.25] * 3, ATTRIBUTES, backbone={})


def random_similarities(levels: int = 5) -> torch.Tensor:
    return torch.rand(3, 2, levels, 7, 2, generator=torch.Generator().manual_seed(1)) - 0.5


def test_paper_defaults_are_three_losses_of_weight_one() -> None:
    s = random_similarities()
    total, parts = objective(s, ObjectiveConfig())
    assert list(parts) == ["consistency", "positive", "negative"]
    expected = consistency_loss(s, 2.5e-3) + positive_ranking_loss(s, 6.75e-2) + negative_ranking_loss(s, 6.75e-2)
    torch.testing.assert_close(total, expected)


def test_weights_scale_the_total_and_not_the_parts() -> None:
    s = random_similarities()
    _, plain = objective(s, ObjectiveConfig())
    config = ObjectiveConfig(consistency_weight=2.0, positive_weight=0.5, negative_weight=0.0)
    total, parts = objective(s, config)
    assert parts == plain
    torch.testing.assert_close(total, 2 * plain["consistency"] + 0.5 * plain["positive"])


def test_gradient_reaches_the_image_encoder_and_no_text_weight() -> None:
    torch.manual_seed(0)
    text_tower = TextTower()
    model = tiny_model(text_tower())
    flat = model.similarities(torch.rand(20, 3, 32, 32))
    total, _ = objective(flat.unflatten(0, (2, 2, 5)), ObjectiveConfig())
    total.backward()
    gradients = [parameter.grad for parameter in model.image_encoder.parameters()]
    assert all(gradient is not None and gradient.abs().sum() > 0 for gradient in gradients)
    assert text_tower.embedding.weight.grad is None
    assert not model.text_features.requires_grad


def test_every_optional_loss_appears_when_its_weight_is_set() -> None:
    s = random_similarities(6)
    config = ObjectiveConfig(pristine=True, content_weight=0.5, metric_weight=0.25, attribute_weight=0.125)
    distances = torch.linspace(0, 0.3, 6).expand(3, 2, 6)
    relevant = torch.zeros(3, 7, dtype=torch.bool)
    relevant[0, 1] = True
    total, parts = objective(s, config, distances=distances, relevant=relevant)
    assert {"content", "metric", "attribute"} < set(parts)
    assert all(part > 0 for part in parts.values())
    weighted = sum(getattr(config, f"{name}_weight") * part for name, part in parts.items())
    torch.testing.assert_close(total, weighted)


@pytest.mark.parametrize("name", ["metric", "attribute"])
def test_a_missing_input_is_named(name: str) -> None:
    config = replace(ObjectiveConfig(), **{f"{name}_weight": 1.0})
    with pytest.raises(ConfigError, match=f"{name}_weight"):
        objective(random_similarities(), config)


def test_one_prompt_pair_or_all() -> None:
    s = random_similarities()
    one = ObjectiveConfig(prompt_pairs=("sharp_image",))
    assert selected_prompt_pairs(one) == [1]
    torch.testing.assert_close(objective(s, one)[0], objective(s[..., 1:2, :], ObjectiveConfig())[0])
    with pytest.raises(ConfigError, match="prompt_pairs"):
        ObjectiveConfig(prompt_pairs=("sharpness",))
    with pytest.raises(ConfigError, match="attribute_weight compares prompt pairs"):
        replace(one, attribute_weight=1.0)


def test_attributes_are_compared_among_the_prompt_pairs_that_are_trained() -> None:
    s = random_similarities()
    relevant = torch.zeros(len(s), 7, dtype=torch.bool)
    relevant[:, 4] = True
    config = ObjectiveConfig(prompt_pairs=("sharp_image", "noise_free"), attribute_weight=1.0)
    chosen = selected_prompt_pairs(config)
    expected = attribute_loss(s[..., chosen, :], relevant[:, chosen], config.attribute_margin)
    torch.testing.assert_close(objective(s, config, relevant=relevant)[1]["attribute"], expected)
    assert expected != attribute_loss(s, relevant, config.attribute_margin)


def test_neighbours_cost_less_than_all_pairs() -> None:
    s = random_similarities()
    assert objective(s, ObjectiveConfig(level_pairs="neighbours"))[0] < objective(s, ObjectiveConfig())[0]


def test_content_levels_count_from_the_pristine_level() -> None:
    assert content_levels(ObjectiveConfig(pristine=True), 6) == ([0, 1], [4, 5])
    assert content_levels(ObjectiveConfig(pristine=False), 5) == ([0], [3, 4])
    with pytest.raises(ConfigError, match="content_severe"):
        content_levels(ObjectiveConfig(), 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"level_pairs": "each"},
        {"reduction": "max"},
        {"ranking_margin": -1.0},
        {"content_weight": float("nan")},
        {"content_mild": 4},
        {"prompt_pairs": ("sharp_image", "noise_free", "sharp_image")},
    ],
)
def test_wrong_values_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ObjectiveConfig(**wrong)


def test_ranking_accuracy_by_hand() -> None:
    # Falling, constant and rising quality; one of three pairs wrong in the last photograph.
    quality = torch.tensor([[0.3, 0.2, 0.1], [0.2, 0.2, 0.2], [0.1, 0.2, 0.3], [0.3, 0.1, 0.2]])
    s = torch.stack([quality, torch.zeros_like(quality)], -1)[:, None, :, None].expand(4, 2, 3, 1, 2)
    torch.testing.assert_close(ranking_accuracy(s), torch.tensor([1.0, 0.0, 0.0, 2 / 3]))
