"""Settings of the head that is fitted or tuned to ladders of degraded crops (``head_fit.py``, ``head_adapt.py``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.utils.errors import ConfigError


@dataclass(frozen=True)
class HeadConfig:
    """What the head learns, from which crops, and how far it may bend.

    Attributes:
        share: 0 fits a head from nothing. Above, the head that the weights bring is tuned, and goes this share of the
            way; of what follows, only ``batches``, ``encoded`` and the settings of the bent part then count.
        batches: Batches of crops, one ladder of degradations each, that it is fitted to.
        encoded: Share of the ladders that carry a mild encoding (``encodings.py``) on all their levels.
        pairs: For each of the seven prompt pairs the distortion kinds that it names, with their weights.
        stages: Stages whose features the linear part regresses on; the bent part sees all that the tower pools.
        named, unnamed: Weights of the named and of all other kinds against the variety of contents.
        slope: How far the quality falls with an unnamed kind, in units of the fall with a named one.
        penalty: Ridge penalty of the regression, in units of a feature's variance over contents.
        gains: Argument of a pair's sigmoid for an average pristine crop; the most severe crops of the named kinds lie
            as far below 0. Pairs that are not listed: 4.
        epochs, batch_size, learning_rate, weight_decay, dropout: Of the bent part's training (AdamW, one cycle).
        ranking_margin: By how much the score's logit falls between any two levels of a ladder.
        pristine_weight: Weight of the order between pristine and degraded crops of all photographs.
        twin_weight: Weight of the squared difference between a pristine crop's logits with and without encoding.
        attribute_weight: Weight of the loss by which ``attribute_kinds`` move the pairs that name them most.
        attribute_margin: By how much further the scores of these pairs fall than those of the others.
        restraint: Weight of the bent part's squared size: how strongly it keeps to what is linear.
    """

    batches: int
    pairs: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    stages: tuple[int, ...] = ()
    share: float = 0.0
    encoded: float = 0.6
    named: float = 0.3
    unnamed: float = 1.0
    slope: float = 0.1
    penalty: float = 2.0
    gains: Mapping[str, float] = field(default_factory=dict)
    epochs: int = 20
    batch_size: int = 64
    learning_rate: float = 1e-3
    weight_decay: float = 1e-2
    dropout: float = 0.3
    ranking_margin: float = 0.5
    pristine_weight: float = 0.1
    twin_weight: float = 0.1
    attribute_weight: float = 1.0
    attribute_margin: float = 0.1
    restraint: float = 0.01

    def __post_init__(self) -> None:
        for name in [*self.pairs, *self.gains]:
            if name not in ATTRIBUTES:
                raise ConfigError(f"head: {name!r} is no prompt pair; there are {', '.join(ATTRIBUTES)}")
        for name in ATTRIBUTES if not self.share else ():
            if not any(weight > 0 for weight in self.pairs.get(name, {}).values()):
                raise ConfigError(f"head: the prompt pair {name!r} names no distortion kind")
        for name in ("batches", "epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"head: {name} must be at least 1, not {getattr(self, name)}")
        if not 0 <= self.dropout < 1:
            raise ConfigError(f"head: dropout must be in [0, 1), not {self.dropout}")
        for name in ("encoded", "share"):
            if getattr(self, name) > 1:
                raise ConfigError(f"head: {name} is a share, at most 1, not {getattr(self, name)}")
        weights = [weight for kinds in self.pairs.values() for weight in kinds.values()]
        numbers = [value for value in vars(self).values() if isinstance(value, float)]
        if not all(0 <= value < float("inf") for value in [*weights, *self.gains.values(), *numbers]):
            raise ConfigError("head: weights, margins and gains must be finite and at least 0")
