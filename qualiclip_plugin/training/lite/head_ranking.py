"""The bent part of a fitted head: one hidden layer, trained by ranking on features that are already there.

What a straight line through the features cannot order (colours, brightness, blocks) a small hidden layer can, as it
may look at what else is in the picture. It is added to the linear part and kept small.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.lite.config import HeadConfig
from qualiclip_plugin.training.lite.ladder_features import LadderFeatures
from qualiclip_plugin.training.losses import falls, named_fall_loss
from qualiclip_plugin.training.seeds import derive_seed, preserved_generators

PRISTINE_MARGIN = 1.0
"""By how much the logit of any pristine crop's score exceeds that of any degraded crop's."""


class HiddenLayer(nn.Module):
    """Pooled features (..., C) to additions to the P qualities, (..., P).

    Args:
        inputs, width, outputs: C, hidden units, P.
        dropout: Share of inputs and of hidden units that are left out in training.
    """

    def __init__(self, inputs: int, width: int, outputs: int, dropout: float) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.hidden = nn.Linear(inputs, width)
        self.out = nn.Linear(width, outputs)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, features: Tensor) -> Tensor:
        """See the class."""
        return self.out(self.dropout(nn.functional.gelu(self.hidden(self.dropout(features)))))


def train_hidden_layer(
    seen: LadderFeatures, weight: Tensor, bias: Tensor, width: int, config: TrainConfig
) -> HiddenLayer:
    """Train a hidden layer on top of a linear head.

    Args:
        weight, bias: The linear head, (P, C) and (P,).
        width: Hidden units.

    Returns:
        A layer that takes the pooled features as they are.
    """
    head = config.head
    assert head is not None  # noqa: S101 (narrows the type; only called with a head)
    crops = seen.crops
    linear = (crops.double() @ weight.T + bias).float()
    mean, deviation = seen.features.mean((0, 1)), seen.features.std((0, 1)) + 1e-6
    features = (crops - mean) / deviation
    with preserved_generators():
        torch.manual_seed(derive_seed(config.seed, "head"))
        layer = HiddenLayer(features.shape[-1], width, len(bias), head.dropout)

        def loss(rows: Tensor) -> Tensor:
            addition = layer(features[rows])
            ranked = ladder_loss(linear[rows] + addition, seen.relevant[rows], head)
            return ranked + head.restraint * addition.square().mean()

        minimise(layer, loss, len(features), head)
    return _on_raw_features(layer.eval().requires_grad_(False), mean, deviation)


def minimise(module: nn.Module, loss: Callable[[Tensor], Tensor], ladders: int, head: HeadConfig) -> None:
    """Train a module on batches of ladders, drawn from torch's global generator.

    Args:
        loss: From the indices of a batch to its loss, a scalar.
        head: Epochs, size of a batch, learning rate and decay.
    """
    optimizer = torch.optim.AdamW(module.parameters(), lr=head.learning_rate, weight_decay=head.weight_decay)
    steps = head.epochs * -(-ladders // head.batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, head.learning_rate, total_steps=steps)
    for _ in range(head.epochs):
        for rows in torch.randperm(ladders).split(head.batch_size):
            value = loss(rows)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            schedule.step()


def ladder_loss(qualities: Tensor, relevant: Tensor, config: HeadConfig) -> Tensor:
    """Order within ladders, between pristine and degraded crops, and between prompt pairs; equal twins.

    Args:
        qualities: Arguments of the pairs' sigmoids, (B, L + 2, P), the pristine crop first, its twin last.
        relevant: Pairs that name a ladder's distortion, (B, P) bool; ladders without any take no part in the last.

    Returns:
        Scalar, at least 0.
    """
    scores = torch.sigmoid(qualities)
    logits = torch.logit(scores.mean(-1), eps=1e-6)
    ladders, twins = logits[:, :-1], logits[:, -1]
    ranking = torch.relu(config.ranking_margin - falls(ladders, 1)).mean()
    gaps = torch.cat([ladders[:, 0], twins])[:, None] - ladders[:, 1:].flatten()
    pristine = torch.relu(PRISTINE_MARGIN - gaps).mean()
    apart = (ladders[:, 0] - twins).square().mean()
    attributes = named_fall_loss(scores[:, 0] - scores[:, -2], relevant, config.attribute_margin)
    return (
        ranking
        + config.pristine_weight * pristine
        + config.twin_weight * apart
        + config.attribute_weight * attributes
    )


def _on_raw_features(layer: HiddenLayer, mean: Tensor, deviation: Tensor) -> HiddenLayer:
    """Fold the standardisation of the features into the hidden layer."""
    with torch.no_grad():
        layer.hidden.weight.div_(deviation)
        layer.hidden.bias.sub_(layer.hidden.weight @ mean)
    return layer
