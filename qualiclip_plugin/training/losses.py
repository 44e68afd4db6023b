"""QualiCLIP's margin losses, as pure functions on cosine similarities.

The paper (arXiv 2403.11176) trains the image encoder with three hinges on s = cos(image crop, prompt): two crops
with the same degradation score alike, the similarity to a positive prompt falls as the degradation grows, and the
similarity to a negative prompt rises. The other losses here go beyond the paper and are off by default.

Shapes: ``similarities`` is (B, K, L, P, 2): B photographs, K crops of each, L levels from mild to severe, P prompt
pairs, the positive prompt at 0 and the negative one at 1. Every loss is a mean over photographs and prompt pairs;
``reduction`` says how the terms of one photograph (levels, level pairs, crops) are joined: ``"sum"``, the paper's
reading, or ``"mean"``.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from qualiclip_plugin.utils.errors import ConfigError

PAIRS = ("all", "neighbours")
REDUCTIONS = ("sum", "mean")


def level_pairs(levels: int, pairs: str = "all") -> tuple[list[int], list[int]]:
    """Indices (milder, more severe) of the level pairs that a ranking loss compares.

    Args:
        levels: Number of levels L, at least 2.
        pairs: ``"all"`` i < j, or ``"neighbours"`` j = i + 1.

    Returns:
        Two lists of one length: L (L - 1) / 2 pairs, or L - 1 neighbours.

    Raises:
        ConfigError: Fewer than two levels, or an unknown kind of pairs.
    """
    if pairs not in PAIRS:
        raise ConfigError(f"pairs must be one of {', '.join(PAIRS)}, not {pairs!r}")
    if levels < 2:
        raise ConfigError(f"ranking needs at least 2 levels, not {levels}")
    reach = levels if pairs == "all" else 2
    found = [(i, j) for i in range(levels) for j in range(i + 1, min(i + reach, levels))]
    return [i for i, _ in found], [j for _, j in found]


def falls(values: Tensor, dim: int, pairs: str = "all") -> Tensor:
    """By how much values fall from the milder to the more severe level of each pair.

    Args:
        values: With the levels along axis ``dim``, the mildest first.
        dim: Not negative.
        pairs: As for :func:`level_pairs`.

    Returns:
        The same shape, with the pairs in place of the levels.
    """
    levels = values.unbind(dim)
    # Indices would have to be sent to a GPU, which waits for all that it was given before.
    milder, worse = (torch.stack([levels[i] for i in side], dim) for side in level_pairs(len(levels), pairs))
    return milder - worse


def consistency_loss(similarities: Tensor, margin: float = 2.5e-3, reduction: str = "sum") -> Tensor:
    """Equally degraded crops of one photograph have equal similarities: relu(|s_1 - s_2| - margin).

    Args:
        similarities: (B, 2, L, P, 2).
        margin: Difference that costs nothing.
        reduction: Over the levels and the two prompts of a pair.

    Returns:
        Scalar, at least 0.

    Raises:
        ConfigError: There are not exactly two crops, or the shape is another one.
    """
    _check_shape(similarities)
    if similarities.shape[1] != 2:
        raise ConfigError(f"consistency compares 2 crops of a photograph, not {similarities.shape[1]}")
    gap = (similarities[:, 0] - similarities[:, 1]).abs()
    return _reduce(torch.relu(gap - margin).movedim(-2, 1), reduction)


def positive_ranking_loss(
    similarities: Tensor, margin: float = 6.75e-2, pairs: str = "all", reduction: str = "sum"
) -> Tensor:
    """The similarity to the positive prompt falls with the level: relu(margin - (s_mild - s_severe)).

    Args:
        similarities: (B, K, L, P, 2).
        margin: Fall that every compared pair of levels must reach.
        pairs: Levels compared, see :func:`level_pairs`.
        reduction: Over the level pairs and crops.

    Returns:
        Scalar, at least 0; 0 if every pair falls by the margin.
    """
    _check_shape(similarities)
    return _ranking_loss(similarities[..., 0], margin, pairs, reduction)


def negative_ranking_loss(
    similarities: Tensor, margin: float = 6.75e-2, pairs: str = "all", reduction: str = "sum"
) -> Tensor:
    """The similarity to the negative prompt rises with the level: relu(margin - (s_severe - s_mild)).

    Args:
        similarities: (B, K, L, P, 2).
        margin: Rise that every compared pair of levels must reach.
        pairs: Levels compared, see :func:`level_pairs`.
        reduction: Over the level pairs and crops.

    Returns:
        Scalar, at least 0; 0 if every pair rises by the margin.
    """
    _check_shape(similarities)
    return _ranking_loss(-similarities[..., 1], margin, pairs, reduction)


def content_ranking_loss(
    similarities: Tensor, mild: Sequence[int], severe: Sequence[int], margin: float = 6.75e-2
) -> Tensor:
    """Mildly degraded crops of any photograph rank above severely degraded ones of any other.

    The ranked quantity is s_positive - s_negative, the argument of the score's softmax.

    Args:
        similarities: (B, K, L, P, 2).
        mild: Indices on the level axis that must rank higher, such as ``[0, 1]``.
        severe: Indices on the level axis that must rank lower, such as ``[4, 5]``.
        margin: Distance that every compared pair must reach.

    Returns:
        Scalar, the mean over all pairs of two photographs, their crops and levels, and prompt pairs; 0 for one
        photograph.
    """
    _check_shape(similarities)
    quality = similarities[..., 0] - similarities[..., 1]
    photographs, prompt_pairs = quality.shape[0], quality.shape[-1]
    upper = quality[:, :, list(mild)].reshape(photographs, -1, prompt_pairs)
    lower = quality[:, :, list(severe)].reshape(photographs, -1, prompt_pairs)
    hinge = torch.relu(margin - (upper[:, None, :, None] - lower[None, :, None, :]))
    others = ~torch.eye(photographs, dtype=torch.bool, device=quality.device)
    return hinge[others].mean() if photographs > 1 else hinge.sum() * 0.0


def metric_order_loss(similarities: Tensor, distances: Tensor, gap: float = 0.05, margin: float = 6.75e-2) -> Tensor:
    """Crops of any photographs rank as a full-reference metric orders them.

    Args:
        similarities: (B, K, L, P, 2).
        distances: Distance of each degraded crop from its pristine one, (B, K, L), higher is worse; no gradient.
        gap: Two crops are compared where their distances differ by more than this.
        margin: Distance in s_positive - s_negative that every compared pair must reach.

    Returns:
        Scalar, the mean over the compared pairs and prompt pairs; 0 if nothing is compared.
    """
    _check_shape(similarities)
    quality = (similarities[..., 0] - similarities[..., 1]).flatten(0, 2)
    distance = distances.detach().flatten()
    better = distance[:, None] + gap < distance[None, :]
    hinge = torch.relu(margin - (quality[:, None] - quality[None, :])).mean(-1)
    return (hinge * better).sum() / better.sum().clamp_min(1)


def attribute_loss(similarities: Tensor, relevant: Tensor, margin: float = 6.75e-2) -> Tensor:
    """A distortion moves the prompt pairs that name it more than the others.

    A pair's fall is its s_positive - s_negative at the first level minus that at the last level.

    Args:
        similarities: (B, K, L, P, 2).
        relevant: Which prompt pairs name the distortion of a photograph, (B, P) bool. Photographs with none, or
            with all of them, take no part.
        margin: By how much the mean fall of the relevant pairs must exceed the fall of each other pair.

    Returns:
        Scalar, the mean over the other pairs of the photographs that take part; 0 if there are none.
    """
    _check_shape(similarities)
    quality = similarities[..., 0] - similarities[..., 1]
    return named_fall_loss((quality[:, :, 0] - quality[:, :, -1]).mean(1), relevant, margin)


def named_fall_loss(fall: Tensor, relevant: Tensor, margin: float) -> Tensor:
    """The prompt pairs that name a distortion fall further than the others.

    Args:
        fall: From the mildest to the most severe level, by prompt pair, (B, P).
        relevant, margin: As for :func:`attribute_loss`.

    Returns:
        See :func:`attribute_loss`.
    """
    count = relevant.sum(-1, keepdim=True)
    named = (fall * relevant).sum(-1, keepdim=True) / count.clamp_min(1)
    others = ~relevant & (count > 0)
    return (torch.relu(margin - (named - fall)) * others).sum() / others.sum().clamp_min(1)


def _ranking_loss(falling: Tensor, margin: float, pairs: str, reduction: str) -> Tensor:
    """Hinge on quantities (B, K, L, P) that must fall along the level axis."""
    hinge = torch.relu(margin - falls(falling, 2, pairs))
    return _reduce(hinge.movedim(-1, 1), reduction)


def _reduce(terms: Tensor, reduction: str) -> Tensor:
    """Join terms (B, P, ...): the trailing axes by ``reduction``, then the mean over B and P."""
    if reduction not in REDUCTIONS:
        raise ConfigError(f"reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    joined = terms.flatten(2)
    return (joined.sum(-1) if reduction == "sum" else joined.mean(-1)).mean()


def _check_shape(similarities: Tensor) -> None:
    if similarities.dim() != 5 or similarities.shape[-1] != 2:
        raise ConfigError(f"similarities must be (B, K, L, P, 2), not {tuple(similarities.shape)}")
