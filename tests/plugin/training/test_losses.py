"""The losses against values worked out by hand, and the full-reference distance against pyiqa's."""

from __future__ import annotations

import pytest
import torch

from qualiclip_plugin.training.losses import (
    attribute_loss,
    consistency_loss,
    content_ranking_loss,
    level_pairs,
    metric_order_loss,
    negative_ranking_loss,
    positive_ranking_loss,
)
from qualiclip_plugin.utils.errors import ConfigError
from qualiclip_plugin.utils.gmsd import gmsd


def similarities(first: list[float], second: list[float], negative: float = 0.0) -> torch.Tensor:
    """One photograph, two crops, one prompt pair: given positive similarities, constant negative ones."""
    positive = torch.tensor([first, second])[None, :, :, None]
    return torch.stack([positive, torch.full_like(positive, negative)], -1)


def test_level_pairs_all_and_neighbours() -> None:
    assert level_pairs(3) == ([0, 0, 1], [1, 2, 2])
    assert level_pairs(4, "neighbours") == ([0, 1, 2], [1, 2, 3])
    with pytest.raises(ConfigError, match="pairs"):
        level_pairs(3, "some")
    with pytest.raises(ConfigError, match="2 levels"):
        level_pairs(1)


def test_consistency_by_hand() -> None:
    # |.30 - .29| - .0025 = .0075; |.20 - .201| is inside the margin; |.10 - .13| - .0025 = .0275; negatives agree.
    s = similarities([0.30, 0.20, 0.10], [0.29, 0.201, 0.13])
    assert consistency_loss(s, 2.5e-3).item() == pytest.approx(0.0350, abs=1e-6)
    # The mean is over three levels and two prompts.
    assert consistency_loss(s, 2.5e-3, "mean").item() == pytest.approx(0.0350 / 6, abs=1e-6)


def test_consistency_sees_the_negative_prompt() -> None:
    s = similarities([0.3, 0.2], [0.3, 0.2])
    s[0, 0, 1, 0, 1] = 0.05
    assert consistency_loss(s, 0.01).item() == pytest.approx(0.04, abs=1e-6)


def test_positive_ranking_by_hand() -> None:
    # First crop, all pairs: .05 - (.30 - .26) = .01; .05 - (.30 - .28) = .03; .05 - (.26 - .28) = .07.
    # Second crop falls by .1 each time: 0.
    s = similarities([0.30, 0.26, 0.28], [0.3, 0.2, 0.1])
    assert positive_ranking_loss(s, 0.05).item() == pytest.approx(0.11, abs=1e-6)
    assert positive_ranking_loss(s, 0.05, "neighbours").item() == pytest.approx(0.08, abs=1e-6)
    assert positive_ranking_loss(s, 0.05, reduction="mean").item() == pytest.approx(0.11 / 6, abs=1e-6)


def test_negative_ranking_mirrors_the_positive_one() -> None:
    s = similarities([0.30, 0.26, 0.28], [0.3, 0.2, 0.1])
    mirrored = -s.flip(-1)
    assert negative_ranking_loss(mirrored, 0.05).item() == pytest.approx(0.11, abs=1e-6)
    # Rising negatives cost nothing, falling ones do.
    rising = similarities([0.1, 0.2], [0.1, 0.2]).flip(-1)
    assert negative_ranking_loss(rising, 0.05).item() == 0.0
    assert negative_ranking_loss(rising.flip(2), 0.05).item() == pytest.approx(0.30, abs=1e-6)


def test_photographs_and_prompt_pairs_are_averaged() -> None:
    s = similarities([0.30, 0.26, 0.28], [0.3, 0.2, 0.1])
    ordered = similarities([0.3, 0.2, 0.1], [0.3, 0.2, 0.1])
    assert positive_ranking_loss(torch.cat([s, ordered]), 0.05).item() == pytest.approx(0.055, abs=1e-6)
    assert positive_ranking_loss(torch.cat([s, ordered], 3), 0.05).item() == pytest.approx(0.055, abs=1e-6)


def test_content_ranking_by_hand() -> None:
    # Photograph a: mild .3, severe .1; b: mild .15, severe .0 (both crops alike). Margin .1:
    # a mild over b severe: .3, 0 lost; b mild over a severe: .05, .05 lost. Mean of the two directions: .025.
    s = torch.cat([similarities([0.3, 0.1], [0.3, 0.1]), similarities([0.15, 0.0], [0.15, 0.0])])
    assert content_ranking_loss(s, [0], [1], 0.1).item() == pytest.approx(0.025, abs=1e-6)
    assert content_ranking_loss(s[:1], [0], [1], 0.1).item() == 0.0


def test_metric_order_by_hand() -> None:
    # Distances 0, .1, .12, .3: compared with gap .05 are (0,1), (0,2), (0,3), (1,3), (2,3).
    s = torch.cat([similarities([0.30, 0.25], [0.28, 0.22])])
    distances = torch.tensor([[[0.0, 0.1], [0.12, 0.3]]])
    # Margin .05: .30 over .25: 0; .30 over .28: .03; .30 over .22: 0; .25 over .22: .02; .28 over .22: 0.
    assert metric_order_loss(s, distances, 0.05, 0.05).item() == pytest.approx(0.05 / 5, abs=1e-6)
    assert metric_order_loss(s, distances, 1.0, 0.05).item() == 0.0


def test_attribute_by_hand() -> None:
    # Three pairs fall by .2, .1 and .15; the first is named, margin .08: .08 - (.2 - .1) < 0; .08 - .05 = .03.
    positive = torch.tensor([[0.3, 0.3, 0.3], [0.1, 0.2, 0.15]])
    s = torch.stack([positive, torch.zeros_like(positive)], -1)[None, None].expand(1, 2, 2, 3, 2)
    named = torch.tensor([[True, False, False]])
    assert attribute_loss(s, named, 0.08).item() == pytest.approx(0.015, abs=1e-6)
    assert attribute_loss(s, torch.zeros_like(named), 0.08).item() == 0.0
    both = attribute_loss(torch.cat([s, s]), torch.cat([named, torch.zeros_like(named)]), 0.08)
    assert both.item() == pytest.approx(0.015, abs=1e-6)


@pytest.mark.parametrize("loss", [consistency_loss, positive_ranking_loss, negative_ranking_loss])
def test_wrong_shapes_and_reductions_are_refused(loss) -> None:
    with pytest.raises(ConfigError, match=r"\(B, K, L, P, 2\)"):
        loss(torch.zeros(2, 2, 3, 2))
    with pytest.raises(ConfigError, match="reduction"):
        loss(torch.zeros(2, 2, 3, 1, 2), reduction="median")


def test_consistency_needs_two_crops() -> None:
    with pytest.raises(ConfigError, match="2 crops"):
        consistency_loss(torch.zeros(1, 3, 2, 1, 2))


@pytest.mark.parametrize("loss", [consistency_loss, positive_ranking_loss, negative_ranking_loss])
def test_gradients_agree_with_finite_differences(loss) -> None:
    generator = torch.Generator().manual_seed(0)
    s = torch.rand(2, 2, 3, 2, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(loss, (s,))


def test_gmsd_agrees_with_pyiqa() -> None:
    pytest.importorskip("pyiqa")
    from pyiqa.archs.gmsd_arch import gmsd as pyiqa_gmsd

    generator = torch.Generator().manual_seed(0)
    base = torch.rand(2, 3, 12, 12, generator=generator)
    reference = torch.nn.functional.interpolate(base, size=(96, 96), mode="bicubic").clamp(0, 1)
    image = (reference + 0.1 * torch.randn(reference.shape, generator=generator)).clamp(0, 1)
    luma = torch.tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    grey = [(images * luma).sum(1, keepdim=True) for images in (image, reference)]
    theirs = pyiqa_gmsd(*grey, channels=1, test_y_channel=False)
    torch.testing.assert_close(gmsd(image, reference), theirs.flatten(), atol=1e-4, rtol=0)
    assert gmsd(reference, reference).abs().max() < 1e-6
