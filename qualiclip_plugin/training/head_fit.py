"""Fit the head of an image tower in closed form, so that the prompt pairs say how degraded a crop is.

The trunk stays as it is. Its pooled features of degraded crops are regressed onto the levels, one ridge regression
a prompt pair: pairs that name a distortion (``attribute_kinds``) learn from that distortion only, the others from
all. The regression is linear discriminant analysis with many levels: it weighs features down that change with the
content of a picture as much as with its quality, which a ranking loss on a few hundred photographs has to learn.

The fitted directions are then written into the linear head, such that the cosine similarities to the prompt
features give them back: with d_p = t_positive - t_negative, the feature is D^+ y + c u, where y are the P regressed
qualities, D^+ the pseudo-inverse of the rows d_p, and u a direction that no prompt has a share in. It keeps the norm
of the features nearly constant, so that normalising them leaves the regression nearly linear.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import Tensor

from qualiclip_plugin.distortions import get_table
from qualiclip_plugin.errors import ConfigError
from qualiclip_plugin.images import to_float
from qualiclip_plugin.inference import prepare_for_inference
from qualiclip_plugin.model import QualiCLIP
from qualiclip_plugin.prompts import ATTRIBUTES
from qualiclip_plugin.towers import StagePoolTower
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.draws import draw_plan, relevant_pairs
from qualiclip_plugin.training.sampling import degrade

LEVEL_POWER = 0.7
"""Shape of the quality over the levels; 1 would be a straight line, 0 a step."""
CONSTANT_SHARE = 3.0
"""Length of the constant part of a feature, in largest lengths of its varying part seen in the fit."""


@dataclass(frozen=True)
class LevelFeatures:
    """Pooled features of crops with what is known about them.

    Attributes:
        features: (M, C).
        levels: Degradation level, 0 = pristine, (M,).
        relevant: Prompt pairs that learn from the crop, (M, P) bool; pristine crops: all.
        kinds: Index of the crop's distortion in the table, (M,).
    """

    features: Tensor
    levels: Tensor
    relevant: Tensor
    kinds: Tensor


def fit_head(model: QualiCLIP, crops: Iterable[Tensor], config: TrainConfig, notice: Callable[[int], None]) -> None:
    """Fit the head of ``model`` in place.

    Args:
        model: A network whose image encoder is a ``StagePoolTower``.
        crops: Crop pairs of step 0, 1, ..., uint8 (B, 2, 3, S, S).
        config: Degradations, ``attribute_kinds``, ``head_penalty``, ``head_gain``.
        notice: Is told the number of batches done.

    Raises:
        ConfigError: The network has another tower, or a prompt pair has nothing to learn from.
    """
    seen = collect_features(model, crops, config, notice)
    weight, bias = regress_levels(seen, config)
    write_head(model, weight, bias, seen, config)


def stage_pool_tower(model: QualiCLIP) -> StagePoolTower:
    """The image encoder; raises ``ConfigError`` where it is another tower."""
    if not isinstance(model.image_encoder, StagePoolTower):
        raise ConfigError("head_fit needs a tower that pools stages (vision_cfg: stage_pool)")
    return model.image_encoder


def collect_features(
    model: QualiCLIP, crops: Iterable[Tensor], config: TrainConfig, notice: Callable[[int], None]
) -> LevelFeatures:
    """Degrade crops as the training steps would, and pool the trunk's features of every level."""
    tower = deepcopy(stage_pool_tower(model))
    prepare_for_inference(tower)
    parts = []
    names = list(get_table(config.table))
    for step, batch in enumerate(crops):
        plan = draw_plan(config, step)
        with torch.inference_mode():
            # The second crop of a pair would tell little that is new about the photograph.
            images = degrade(to_float(batch[:, 0]), plan, include_pristine=True)
            normalised = (images.flatten(0, 1) - model.mean) / model.std
            pooled = tower.pool(normalised.contiguous(memory_format=torch.channels_last))
        levels = torch.arange(config.levels + 1).expand(images.shape[:2])
        learning = learning_pairs(relevant_pairs(plan, config), config)[:, None].expand(*levels.shape, -1)
        relevant = learning | (levels == 0)[..., None]
        kinds = torch.tensor([names.index(kinds[0]) for kinds in plan.kinds])[:, None].expand(levels.shape)
        parts.append((pooled.clone(), levels.flatten(), relevant.flatten(0, 1), kinds.flatten()))
        notice(step + 1)
    return LevelFeatures(*(torch.cat(column) for column in zip(*parts, strict=True)))


def learning_pairs(named: Tensor, config: TrainConfig) -> Tensor:
    """Prompt pairs that learn from each photograph: those that name its distortion, and those that name none.

    Args:
        named: ``draws.relevant_pairs``, (B, P) bool.
        config: ``attribute_kinds``.

    Returns:
        (B, P) bool.
    """
    specific = {name for names in config.attribute_kinds.values() for name in names}
    general = torch.tensor([name not in specific for name in ATTRIBUTES])
    return named | general


def regress_levels(seen: LevelFeatures, config: TrainConfig) -> tuple[Tensor, Tensor]:
    """Ridge regression of quality on features, one a prompt pair.

    The quality of level l is -(l / L) ** 0.7: the first steps away from a pristine picture cost most. Each kind of
    distortion has the weight that ``head_weights`` gives it, however often it was drawn, and pristine and degraded
    crops weigh the same in sum.

    Args:
        seen: Crops.
        config: ``levels``, ``head_weights``, ``head_penalty``.

    Returns:
        Weights (P, C) and biases (P,), fp64.

    Raises:
        ConfigError: No degraded crop belongs to a prompt pair.
    """
    quality = -((seen.levels.double() / config.levels) ** LEVEL_POWER)
    pristine = (seen.levels == 0).double()
    by_kind = kind_weights(seen, config)
    fitted = []
    for pair, name in enumerate(ATTRIBUTES):
        degraded = by_kind * seen.relevant[:, pair] * (1 - pristine)
        if not degraded.any():
            raise ConfigError(f"head_fit: no crops to fit the prompt pair {name!r} to; take more batches")
        weights = degraded / degraded.sum() + pristine / pristine.sum()
        fitted.append(ridge(seen.features.double(), quality, weights, config.head_penalty))
    weight, bias = zip(*fitted, strict=True)
    return torch.stack(weight), torch.stack(bias)


def kind_weights(seen: LevelFeatures, config: TrainConfig) -> Tensor:
    """Weight of each crop, such that its kind's weights sum to what ``head_weights`` says (1 if nothing), (M,)."""
    names = list(get_table(config.table))
    wanted = torch.tensor([config.head_weights.get(name, 1.0) for name in names], dtype=torch.float64)
    drawn = torch.bincount(seen.kinds, minlength=len(names)).clamp_min(1)
    return (wanted / drawn)[seen.kinds]


def ridge(features: Tensor, target: Tensor, weights: Tensor, penalty: float) -> tuple[Tensor, Tensor]:
    """Weighted ridge regression on standardised features.

    Args:
        features: (M, C).
        target: (M,).
        weights: Of the samples, any sum, (M,).
        penalty: Added to the features' correlation matrix.

    Returns:
        Weights (C,) and bias (scalar tensor) for the features as they are.
    """
    weights = weights / weights.sum()
    mean, offset = weights @ features, weights @ target
    centred = features - mean
    deviation = (weights @ centred**2).sqrt().clamp_min(1e-6)
    scaled = centred / deviation
    gram = scaled.T @ (weights[:, None] * scaled) + penalty * torch.eye(features.shape[1], dtype=features.dtype)
    weight = torch.linalg.solve(gram, scaled.T @ (weights * (target - offset))) / deviation
    return weight, offset - weight @ mean


def write_head(model: QualiCLIP, weight: Tensor, bias: Tensor, seen: LevelFeatures, config: TrainConfig) -> None:
    """Write regressed qualities into the head, and the scale that spreads the scores.

    Each pair is stretched so that pristine crops lie at +1 and the most severe ones that it learned from at -1 on
    average; ``config.head_gain`` is what the score's sigmoid makes of 1.

    Args:
        model: The network; its head and ``logit_scale`` change.
        weight, bias: Of :func:`regress_levels`.
        seen: The crops they were fitted to.
        config: ``head_gain``.
    """
    raw = seen.features.double() @ weight.T + bias
    best = raw[seen.levels == 0].mean(0)
    severe = (seen.levels == config.levels)[:, None] & seen.relevant
    worst = (raw * severe).sum(0) / severe.sum(0)
    stretch = 2 / (best - worst)
    weight, bias = weight * stretch[:, None], (bias - (best + worst) / 2) * stretch

    prompts = model.text_features.double()
    differences = prompts[:, 0] - prompts[:, 1]
    inverse = torch.linalg.pinv(differences)
    varying = (seen.features.double() @ weight.T + bias) @ inverse.T
    length = CONSTANT_SHARE * varying.norm(dim=1).max()
    head = stage_pool_tower(model).head
    with torch.no_grad():
        head.weight.copy_(inverse @ weight)
        head.bias.copy_(inverse @ bias + length * neutral_direction(prompts))
    model.logit_scale = float(config.head_gain * length)


def neutral_direction(prompts: Tensor) -> Tensor:
    """A unit vector orthogonal to all prompt features (P, 2, D); the same one for the same prompts."""
    basis = torch.linalg.qr(prompts.flatten(0, 1).T).Q
    ones = torch.ones(prompts.shape[-1], dtype=prompts.dtype)
    rest = ones - basis @ (basis.T @ ones)
    return rest / rest.norm()
