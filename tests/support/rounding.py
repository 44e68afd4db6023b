"""How far rounding may move a score: bounds from arithmetic, which hold on every processor, not readings off one."""

from __future__ import annotations

import math

from torch import nn

from qualiclip_plugin.models.qualiclip import QualiCLIP

UNIT_ROUNDOFF = {"fp32": 2.0**-24, "fp16": 2.0**-11, "bf16": 2.0**-8}
DEVIATIONS = 4


def score_bound(precision: str, *, logit_scale: float = 50.0, dimension: int = 1024, layers: int = 53) -> float:
    """Largest difference that rounding in one precision makes between two computations of one score.

    Each layer adds a relative error of about one unit roundoff in a direction of its own, so the features of a
    network of ``layers`` layers are off by ``sqrt(layers)`` of them. Of such an error a share of
    ``1 / sqrt(dimension)`` lies along a prompt, and the difference of two cosines holds it twice. The score is a mean
    of logistic functions of that difference times ``logit_scale``, whose slope is at most a quarter.

    Args:
        precision: ``fp32``, ``fp16`` or ``bf16``, in which the network computes.
        logit_scale: Factor of the similarities.
        dimension: Of the embedding.
        layers: Convolutions and matrix products in a row; CLIP's RN50 has 53.

    Returns:
        Four standard deviations, in units of the score.
    """
    features = math.sqrt(layers) * UNIT_ROUNDOFF[precision]
    cosines = math.sqrt(2 / dimension) * features
    return DEVIATIONS * logit_scale / 4 * cosines


def bound_of(model: QualiCLIP, precision: str = "fp32") -> float:
    """:func:`score_bound` of one model, which also holds for its attributes.

    Args:
        model: Its factor, its embedding and the number of its convolutions and matrix products count.
        precision: As for :func:`score_bound`.
    """
    layers = sum(isinstance(module, nn.Conv2d | nn.Linear) for module in model.image_encoder.modules())
    return score_bound(
        precision, logit_scale=float(model.logit_scale), dimension=model.text_features.shape[-1], layers=layers
    )
