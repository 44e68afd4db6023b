"""Fit the head of an image tower to ladders of degraded crops, so that the prompt pairs say how degraded a crop is.

The trunk stays as it is; its pooled features of degraded crops are all that is looked at, so a fit takes seconds once
they are there. A feature vector is seen as content + displacement: what the pristine crop shows, and where the
degradation moves it. The fit has two parts.

**Linear, in closed form.** Each prompt pair gets a direction w along which the kinds that it names move far, all
other kinds move little, and pristine crops of different contents hardly differ::

    minimise  w' Cov(content) w + sum over kinds k of weight_k E[(w' displacement - slope_k quality)^2] + ridge

This is Fisher's discriminant with many levels: it turns away from features that change with what a picture shows as
much as with how good it is, which a ranking loss on a few hundred photographs has to learn from examples.

**Bent, by ranking** (``head_ranking.py``): a small hidden layer adds what no direction can say.

The qualities are then written into the head such that the cosine similarities to the prompt features give them back:
with d_p = t_positive - t_negative, the feature is D^+ y + c u, where y are the P qualities, D^+ the pseudo-inverse of
the rows d_p, and u a direction in which no prompt has a share. It keeps the norm of the features nearly constant, so
that normalising them leaves the qualities nearly as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from qualiclip_plugin.models.prompts import ATTRIBUTES
from qualiclip_plugin.models.qualiclip import QualiCLIP
from qualiclip_plugin.training.config import TrainConfig
from qualiclip_plugin.training.lite.config import HeadConfig
from qualiclip_plugin.training.lite.head_ranking import HiddenLayer, train_hidden_layer
from qualiclip_plugin.training.lite.ladder_features import LadderFeatures, collect_ladders, stage_pool_tower
from qualiclip_plugin.utils.errors import ConfigError

LEVEL_POWER = 0.7
"""Shape of the quality over the levels; 1 would be a straight line, 0 a step."""
DEFAULT_GAIN = 4.0
CONSTANT_SHARE = 3.0
"""Length of the constant part of a feature, in largest lengths of its varying part seen in the fit."""


def fit_head(
    model: QualiCLIP,
    crops: Iterable[Tensor],
    config: TrainConfig,
    device: torch.device,
    notice: Callable[[int], None],
) -> None:
    """Fit the head of ``model`` in place.

    Args:
        model: A network whose image encoder is a ``StagePoolTower``.
        crops: Crop pairs of step 0, 1, ..., uint8 (B, 2, 3, S, S).
        config: Degradations and ``head``.
        device: Where the trunk's features are computed; the fit itself runs on the CPU.

    Raises:
        ConfigError: The network has another tower or does not pool the stages, or a kind that a prompt pair names
            was never drawn.
    """
    if config.head is None:
        raise ConfigError("head: there are no settings to fit it with")
    # First, because collecting takes most of the time: stages that the tower does not pool are refused here.
    columns = stage_pool_tower(model).columns(config.head.stages)
    seen = collect_ladders(model, crops, config, config.head.encoded, device, notice)
    weight, bias = fit_directions(ladder_moments(seen, columns), config.head, config.levels)
    hidden = stage_pool_tower(model).hidden
    layer = None
    if hidden is not None:
        layer = train_hidden_layer(seen, weight, bias, hidden.out_features, config)
    write_head(model, weight, bias, layer, seen)


@dataclass(frozen=True)
class Moments:
    """What the linear fit needs to know of the ladders, in fp64.

    Attributes:
        mean: Mean pristine feature, (C,).
        content: Covariance of pristine features, (C, C).
        kinds: Names of the K kinds seen.
        spread: Mean of displacement times displacement over the levels of each kind, (K, C, C).
        shift: Mean displacement of each kind and level, (K, L, C).
        columns: Which pooled features these are, of all C_all that the tower pools, (C,).
        width: C_all.
    """

    mean: Tensor
    content: Tensor
    kinds: tuple[str, ...]
    spread: Tensor
    shift: Tensor
    columns: Tensor
    width: int


def ladder_moments(seen: LadderFeatures, columns: Tensor) -> Moments:
    """Moments of the chosen feature columns, (C,) long, of ladders."""
    features = seen.features[:, :, columns].double()
    pristine = features[:, 0]
    mean = pristine.mean(0)
    centred = pristine - mean
    displacement = features[:, 1:] - pristine[:, None]
    kinds = tuple(sorted(set(seen.kinds)))
    parts = [displacement[torch.tensor([kind == name for kind in seen.kinds])] for name in kinds]
    return Moments(
        mean,
        centred.T @ centred / len(centred),
        kinds,
        torch.stack([_second_moment(part.flatten(0, 1)) for part in parts]),
        torch.stack([part.mean(0) for part in parts]),
        columns,
        seen.features.shape[-1],
    )


def _second_moment(rows: Tensor) -> Tensor:
    return rows.T @ rows / len(rows)


def fit_directions(moments: Moments, config: HeadConfig, levels: int) -> tuple[Tensor, Tensor]:
    """The direction of every prompt pair.

    Args:
        levels: Number L of degraded levels.

    Returns:
        Weights (P, C_all) on all pooled features and biases (P,), fp64: an average pristine crop has quality +gain,
        the most severe crops of the named kinds -gain on average.

    Raises:
        ConfigError: A named kind was never drawn, or no direction orders the named kinds.
    """
    weight = torch.zeros(len(ATTRIBUTES), moments.width, dtype=torch.float64)
    bias = torch.zeros(len(ATTRIBUTES), dtype=torch.float64)
    for pair, name in enumerate(ATTRIBUTES):
        shares = _shares(config.pairs[name], moments.kinds, name)
        direction = _direction(moments, shares, config, levels)
        severe = shares @ (moments.shift[:, -1] @ direction)
        if severe >= 0:
            raise ConfigError(f"head: no direction orders the kinds of {name!r}; take more batches")
        gain = config.gains.get(name, DEFAULT_GAIN)
        direction = direction * (-2 * gain / severe)
        weight[pair, moments.columns] = direction
        bias[pair] = gain - moments.mean @ direction
    return weight, bias


def _shares(named: Mapping[str, float], kinds: tuple[str, ...], pair: str) -> Tensor:
    if missing := [kind for kind in named if kind not in kinds]:
        raise ConfigError(f"head: {', '.join(missing)} of {pair!r} was never drawn; take more batches")
    shares = torch.tensor([named.get(kind, 0.0) for kind in kinds], dtype=torch.float64)
    return shares / shares.sum()


def _direction(moments: Moments, shares: Tensor, config: HeadConfig, levels: int) -> Tensor:
    """Solve the ridge regression of the module's description for one pair; (C,)."""
    quality = -((torch.arange(1, levels + 1, dtype=torch.float64) / levels) ** LEVEL_POWER)
    others = (shares == 0).double()
    weights = config.named * shares + config.unnamed * others / others.sum().clamp_min(1)
    slopes = torch.where(shares > 0, 1.0, config.slope)
    deviation = moments.content.diagonal().sqrt() + 1e-6
    gram = moments.content + torch.einsum("k,kcd->cd", weights, moments.spread)
    target = torch.einsum("k,l,klc->c", weights * slopes, quality / levels, moments.shift)
    ridge = config.penalty * torch.eye(len(target), dtype=torch.float64)
    return torch.linalg.solve(gram / torch.outer(deviation, deviation) + ridge, target / deviation) / deviation


def write_head(
    model: QualiCLIP, weight: Tensor, bias: Tensor, layer: HiddenLayer | None, seen: LadderFeatures
) -> None:
    """Write qualities into the head, and the scale that gives them back.

    Args:
        model: The network; its head, its hidden layer and ``logit_scale`` change.
        weight, bias: Of :func:`fit_directions`.
        layer: The hidden layer, where the tower has one.
    """
    prompts = model.text_features.double()
    inverse = torch.linalg.pinv(prompts[:, 0] - prompts[:, 1])
    features = seen.features.flatten(0, 1).double()
    qualities = features @ weight.T + bias
    if layer is not None:
        qualities = qualities + layer(features.float()).double()
        weight = torch.cat([weight, layer.out.weight.double()], dim=1)
        bias = bias + layer.out.bias.double()
    length = CONSTANT_SHARE * (qualities @ inverse.T).norm(dim=1).max()
    tower = stage_pool_tower(model)
    with torch.no_grad():
        if layer is not None and tower.hidden is not None:
            tower.hidden.load_state_dict(layer.hidden.state_dict())
        tower.head.weight.copy_(inverse @ weight)
        tower.head.bias.copy_(inverse @ bias + length * neutral_direction(prompts))
    model.logit_scale = float(length)


def neutral_direction(prompts: Tensor) -> Tensor:
    """A unit vector orthogonal to all prompt features (P, 2, D); the same one for the same prompts."""
    basis = torch.linalg.qr(prompts.flatten(0, 1).T).Q
    ones = torch.ones(prompts.shape[-1], dtype=prompts.dtype)
    rest = ones - basis @ (basis.T @ ones)
    return rest / rest.norm()
