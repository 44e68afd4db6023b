"""The training objective: crop pairs in, the loss and its named parts out.

:class:`ObjectiveConfig` holds every margin, weight and choice; its defaults are the paper's reading
(arXiv 2403.11176): three losses of weight 1 on every pair of levels and every prompt pair, without the pristine
level. :func:`objective` needs similarities only, so a distributed trainer can gather them first.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.training.losses import (
    PAIRS,
    REDUCTIONS,
    attribute_loss,
    consistency_loss,
    content_ranking_loss,
    falls,
    metric_order_loss,
    negative_ranking_loss,
    positive_ranking_loss,
)
from qualiclip_plugin.utils.errors import ConfigError


@dataclass(frozen=True)
class ObjectiveConfig:
    """Margins, weights and choices of the losses; a weight of 0 switches a loss off.

    Attributes:
        pristine: The pristine crops take part as level 0.
        level_pairs: Levels that the ranking losses compare: ``all`` or ``neighbours``.
        prompt_pairs: ``all``, or the names of the prompt pairs (see ``prompts.ATTRIBUTES``) that are trained.
        reduction: How the terms of one photograph are joined: ``sum`` or ``mean``.
        consistency_margin, ranking_margin: Margins of the three losses, in cosine similarity.
        consistency_weight, positive_weight, negative_weight: Weights of the three losses.
        content_weight: Weight of the ranking across contents.
        content_margin: Its margin, in s_positive - s_negative.
        content_mild, content_severe: Levels up to the first rank above levels from the second on.
        metric_weight: Weight of the order across contents given by GMSD.
        metric_margin, metric_gap: Its margin in s_positive - s_negative, and the GMSD difference that counts.
        attribute_weight: Weight of the loss that ties distortion groups to the prompt pairs that name them.
        attribute_margin: Its margin, in s_positive - s_negative.
    """

    pristine: bool = False
    level_pairs: str = "all"
    prompt_pairs: str | tuple[str, ...] = "all"
    reduction: str = "sum"
    consistency_margin: float = 2.5e-3
    ranking_margin: float = 6.75e-2
    consistency_weight: float = 1.0
    positive_weight: float = 1.0
    negative_weight: float = 1.0
    content_weight: float = 0.0
    content_margin: float = 6.75e-2
    content_mild: int = 1
    content_severe: int = 4
    metric_weight: float = 0.0
    metric_margin: float = 6.75e-2
    metric_gap: float = 0.05
    attribute_weight: float = 0.0
    attribute_margin: float = 6.75e-2

    def __post_init__(self) -> None:
        check_choice("level_pairs", self.level_pairs, PAIRS)
        check_choice("reduction", self.reduction, REDUCTIONS)
        if len(selected_prompt_pairs(self)) == 1 and self.attribute_weight:
            raise ConfigError("attribute_weight compares prompt pairs, of which prompt_pairs names one")
        for name in (name for name in self.__dict__ if name.endswith(("_weight", "_margin", "_gap"))):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"{name} must be finite and at least 0, not {getattr(self, name)}")
        if self.content_mild >= self.content_severe:
            raise ConfigError(
                f"content_mild ({self.content_mild}) must be below content_severe ({self.content_severe})"
            )


def check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    """Raise :class:`ConfigError` unless ``value`` is one of ``choices``."""
    if value not in choices:
        raise ConfigError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def selected_prompt_pairs(config: ObjectiveConfig) -> list[int]:
    """Indices on the prompt-pair axis that take part in the losses.

    Raises:
        ConfigError: A name is not a prompt pair, stands twice, or none is selected.
    """
    if config.prompt_pairs == "all":
        return list(range(len(ATTRIBUTES)))
    names = [config.prompt_pairs] if isinstance(config.prompt_pairs, str) else list(config.prompt_pairs)
    for name in names:
        check_choice("prompt_pairs", name, ATTRIBUTES)
        if names.count(name) > 1:
            raise ConfigError(f"prompt_pairs names {name} twice: the losses would count it so")
    if not names:
        raise ConfigError("prompt_pairs selects nothing; write all or some of: " + ", ".join(ATTRIBUTES))
    return [ATTRIBUTES.index(name) for name in names]


def check_attributes(attributes: Sequence[str], config: ObjectiveConfig) -> None:
    """Refuse settings that name prompt pairs, for a network with other pairs or another order.

    Args:
        config: Settings; ``head`` of a :class:`TrainConfig` names pairs too.

    Raises:
        ConfigError: By their place they would mean other pairs.
    """
    naming = [
        name
        for name in ("prompt_pairs", "attribute_weight", "head")
        if getattr(config, name, 0) not in ("all", 0, None)
    ]
    if naming and tuple(attributes) != ATTRIBUTES:
        raise ConfigError(
            f"{', '.join(naming)}: the prompt pairs of these weights are {', '.join(attributes)}, not "
            f"{', '.join(ATTRIBUTES)}"
        )


@dataclass(frozen=True)
class Seen:
    """What losses are taken of.

    Attributes:
        similarities: Of the prompt pairs that are trained, (B, 2, L, P, 2).
        distances: GMSD of each crop, (B, 2, L); None if no loss needs it.
        relevant: Which of these pairs name the distortion of each photograph, (B, P) bool; None likewise.
    """

    similarities: Tensor
    distances: Tensor | None = None
    relevant: Tensor | None = None


@dataclass(frozen=True)
class Loss:
    """One loss. Its weight is the setting ``NAME_weight`` of :class:`ObjectiveConfig`; logs call it by its name.

    Attributes:
        value: From what is seen and the settings to a scalar with gradient.
        needs: ``distances`` or ``relevant`` of :class:`Seen`, where it needs one.
        always: It is taken and logged at weight 0 as well.
    """

    name: str
    value: Callable[[Any, Any], Tensor]
    needs: str = ""
    always: bool = False

    def weight(self, config: ObjectiveConfig) -> float:
        """Its weight among the losses of a configuration."""
        return float(getattr(config, f"{self.name}_weight"))

    def __call__(self, seen: Seen, config: ObjectiveConfig) -> Tensor:
        """The loss before weighting; :class:`ConfigError` where what it needs is missing."""
        if self.needs and getattr(seen, self.needs) is None:
            raise ConfigError(f"{self.name}_weight is set, so the objective needs {self.needs}")
        return self.value(seen, config)


def _content(seen: Seen, config: ObjectiveConfig) -> Tensor:
    mild, severe = content_levels(config, seen.similarities.shape[2])
    return content_ranking_loss(seen.similarities, mild, severe, config.content_margin)


LOSSES = (
    Loss(
        "consistency", lambda s, c: consistency_loss(s.similarities, c.consistency_margin, c.reduction), always=True
    ),
    Loss(
        "positive",
        lambda s, c: positive_ranking_loss(s.similarities, c.ranking_margin, c.level_pairs, c.reduction),
        always=True,
    ),
    Loss(
        "negative",
        lambda s, c: negative_ranking_loss(s.similarities, c.ranking_margin, c.level_pairs, c.reduction),
        always=True,
    ),
    Loss("content", _content),
    Loss(
        "metric",
        lambda s, c: metric_order_loss(s.similarities, s.distances, c.metric_gap, c.metric_margin),
        needs="distances",
    ),
    Loss("attribute", lambda s, c: attribute_loss(s.similarities, s.relevant, c.attribute_margin), needs="relevant"),
)
"""Every loss; a new one is one more record here, with its settings in :class:`ObjectiveConfig`."""


def losses_of(config: ObjectiveConfig) -> list[Loss]:
    """The losses that a configuration takes, in the order of the logs."""
    return [loss for loss in LOSSES if loss.always or loss.weight(config)]


def needs(config: ObjectiveConfig, what: str) -> bool:
    """Whether a loss that a configuration takes needs ``distances`` or ``relevant``."""
    return any(loss.needs == what for loss in losses_of(config))


def objective(
    similarities: Tensor,
    config: ObjectiveConfig,
    *,
    distances: Tensor | None = None,
    relevant: Tensor | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """The weighted sum of all losses that are switched on.

    Args:
        similarities: (B, 2, L, P, 2) with P the number of all prompt pairs; the level axis starts with the pristine
            crops where ``config.pristine`` says so.
        distances: GMSD of each crop, (B, 2, L); needed where ``metric_weight`` is not 0.
        relevant: Prompt pairs that name the distortion of each photograph, (B, P) bool; needed where
            ``attribute_weight`` is not 0.

    Returns:
        The loss and its parts before weighting, by name; all scalars with gradient.

    Raises:
        ConfigError: A shape is wrong or a needed input is missing.
    """
    named = None if relevant is None else _select(relevant[..., None], config)[..., 0]
    seen = Seen(_select(similarities, config), distances, named)
    losses = losses_of(config)
    parts = {loss.name: loss(seen, config) for loss in losses}
    weighted = [loss.weight(config) * parts[loss.name] for loss in losses]
    return torch.stack(weighted).sum(), parts


def _select(values: Tensor, config: ObjectiveConfig) -> Tensor:
    """The prompt pairs that take part, of values (..., P, any)."""
    # Indices would have to be sent to a GPU, which waits for all that it was given before.
    return values if config.prompt_pairs == "all" else values[..., selected_prompt_pairs(config), :]


def content_levels(config: ObjectiveConfig, levels: int) -> tuple[list[int], list[int]]:
    """Indices on a level axis of length ``levels`` that rank higher and lower across contents.

    Raises:
        ConfigError: One side is empty.
    """
    first = 0 if config.pristine else 1
    mild = [i for i in range(levels) if i + first <= config.content_mild]
    severe = [i for i in range(levels) if i + first >= config.content_severe]
    if not mild or not severe:
        raise ConfigError(
            f"no level of {first}..{levels - 1 + first} is at most {config.content_mild} (content_mild) "
            f"or at least {config.content_severe} (content_severe)"
        )
    return mild, severe


def ranking_accuracy(similarities: Tensor) -> Tensor:
    """Share of level pairs that are in the right order, by the mean of s_positive - s_negative over prompt pairs.

    Args:
        similarities: (B, K, L, P, 2).

    Returns:
        (B,) in [0, 1]; equal values count as wrong.
    """
    quality = (similarities[..., 0] - similarities[..., 1]).mean(-1)
    return (falls(quality, 2) > 0).float().mean((1, 2))
